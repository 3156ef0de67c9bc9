"""Settings that contradict each other, or that nobody reads. Of variables' values only addresses are shown."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from larder.doctor.finding import Finding, Part
from larder.errors import InvalidArgument
from larder.options import (
    CONFIG_FILE_VARIABLE,
    MASTER_VARIABLE,
    MOONCAKE_VARIABLE,
    PORTS_VARIABLE,
    Options,
    from_file,
)

PART: Final = Part("settings")
KNOWN: Final = (MASTER_VARIABLE, CONFIG_FILE_VARIABLE, PORTS_VARIABLE)
SERVICES: Final = ("LARDER_MASTER_", "LARDER_STORAGE_NODE_", "LARDER_PROXY_")
"""What the services' own variables begin with; they refuse those that they do not know."""


def check_settings(
    environ: Mapping[str, str], given: str | None, options: Options | None, trouble: str
) -> list[Finding]:
    """`given`: --master. `options`: what all sources gave; None if nothing, because of `trouble`."""
    if options is None:
        return [_unusable(environ, trouble), *_unread(environ)]
    masters = ",".join(options.masters)
    source = "--master" if given else _source(environ)
    found = [*_contradictions(environ, given, options), *_unread(environ)]
    return found or [PART.ok("master's address", f"{masters}, by {source}")]


def _source(environ: Mapping[str, str]) -> str:
    set_ones = [name for name in (MASTER_VARIABLE, CONFIG_FILE_VARIABLE, MOONCAKE_VARIABLE) if environ.get(name)]
    return set_ones[0] if set_ones else "default"


def _unusable(environ: Mapping[str, str], trouble: str) -> Finding:
    for variable in (CONFIG_FILE_VARIABLE, MOONCAKE_VARIABLE):
        path = environ.get(variable)
        if path and not Path(path).is_file():
            said = f"{variable} names {path}, where no file is"
            return PART.bad("configuration file", said, remedy=f"unset {variable}", advice="or write the file")
    return PART.bad("master's address", trouble, advice="mend what is named")


def _contradictions(environ: Mapping[str, str], given: str | None, options: Options) -> list[Finding]:
    try:
        wanted = from_file(environ).get("master")
    except InvalidArgument as error:
        variable = CONFIG_FILE_VARIABLE if environ.get(CONFIG_FILE_VARIABLE) else MOONCAKE_VARIABLE
        said = f"{error}; engines that have no {MASTER_VARIABLE} do not start"
        return [PART.warn("configuration file", said, remedy=f"unset {variable}", advice="or mend the file")]
    masters = ",".join(options.masters)
    said_here = environ.get(MASTER_VARIABLE)
    if given or not said_here or not wanted or wanted == said_here:
        return []
    said = f"{MASTER_VARIABLE} says {masters}, the configuration file {wanted}: who reads the file only is elsewhere"
    return [PART.bad("master's address", said, remedy=f"unset {MASTER_VARIABLE}", advice="or correct the file")]


def _unread(environ: Mapping[str, str]) -> list[Finding]:
    """Variables that look like Larder's but are nobody's."""
    found = []
    for name in sorted(environ):
        if name.startswith("LARDER_") and name not in KNOWN and not name.startswith(SERVICES):
            near = difflib.get_close_matches(name, KNOWN, n=1)
            is_free = near and near[0] not in environ
            remedy = f'export {near[0]}="${name}"; unset {name}' if is_free else f"unset {name}"
            hint = f"; is {near[0]} meant?" if near else ""
            found.append(PART.warn("environment", f"nobody reads the variable {name}{hint}", remedy=remedy))
    return found
