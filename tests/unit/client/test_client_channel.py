"""One module makes the channels, so that one place has their options and credentials."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_channels_are_made_in_one_place() -> None:
    sources = [*ROOT.glob("clients/python/larder/**/*.py"), *ROOT.glob("services/**/*.py")]
    makers = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if path.parent.name != "v1" and re.search(r"secure_channel\(", path.read_text())
    }
    assert makers == {"clients/python/larder/channel.py"}
