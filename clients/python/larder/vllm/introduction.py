"""The line in which an engine says under what name it shares KV, and what is in that name. Written and read here.

Needs nothing of vLLM, so that logs can be compared anywhere.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_SHARES: Final = "Larder: this engine shares KV as {}, with those that say the same. In that name: {}"
_SHARES_LINE: Final = re.compile(re.escape(_SHARES).replace(r"\{\}", "(.+)", 1).replace(r"\{\}", r"(\{.*\})"))
_ALONE_LINE: Final = re.compile(r"Larder: (.*shares with itself alone.*)")


@dataclass(frozen=True, slots=True)
class Introduction:
    """What an engine said last. `alone`: why it shares with nobody, in its words."""

    name: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    alone: str = ""


def introduce(name: str, facts: Mapping[str, object]) -> str:
    return _SHARES.format(name, json.dumps(facts, sort_keys=True, default=str))


def heard(lines: Iterable[str]) -> Introduction | None:
    """The last word of a log; None where the connector says nothing in it."""
    said = None
    for line in lines:
        if match := _SHARES_LINE.search(line):
            try:
                said = Introduction(match[1], json.loads(match[2]))
            except ValueError:  # cut off
                continue
        elif match := _ALONE_LINE.search(line):
            said = Introduction(alone=match[1])
    return said
