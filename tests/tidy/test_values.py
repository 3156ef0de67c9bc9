"""What leaves the master's core is whole: nobody who tells the world of it looks into the core's state."""

import ast
from pathlib import Path

import pytest

MASTER = Path(__file__).resolve().parents[2] / "services/master"
TELLERS = ("rpc.py", "wire.py", "overview.py", "metrics.py", "page.py", "reach.py")
VALUES = {"services.master.core.messages", "services.master.core.packed"}


def looks_inside(source: str) -> list[str]:
    """The places where a module reaches into a core, or knows more of it than its values."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            if any(name.startswith("services.master.core.") for name in names) and not names & VALUES:
                found.append(f"line {node.lineno} imports {node.module}")
        elif isinstance(node, ast.Attribute) and node.attr in ("core", "_core"):
            found.append(f"line {node.lineno} reaches for .{node.attr}")
    return found


@pytest.mark.parametrize("name", TELLERS)
def test_who_tells_of_the_core_knows_its_values_only(name: str) -> None:
    path = MASTER / name
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    assert looks_inside(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from services.master.core.tables import Node",
        "from services.master.core import tables",
        "x = self._driver.core.state.nodes",
    ],
)
def test_a_look_inside_is_found(line: str) -> None:
    assert looks_inside(line)
