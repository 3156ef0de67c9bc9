"""What a caller reads: every public name says what it is, every number its unit, every call what it raises.

Public: what `larder.__all__` names, `larder.aio.connect`, `larder.aio.Store`, and their methods. The methods of
`larder.Store` are those of `larder.aio.Store`, whose docstring has the errors.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import larder
import pytest
from larder import aio, errors

UNIT = re.compile(r"_(s|ms|bytes)$")
COUNTS = {"copies", "depths"}  # of things: the name says which
NO_ERRORS = {"stats", "close"}  # raise nothing
ERRORS = {name for name, value in vars(errors).items() if inspect.isclass(value)}


def public() -> Iterator[tuple[str, Any]]:
    for owner in (larder, aio):
        for name in getattr(owner, "__all__", ("Store", "connect")):
            value = getattr(owner, name)
            yield f"{owner.__name__}.{name}", value
            if inspect.isclass(value):
                for method in vars(value):
                    if not method.startswith("_"):
                        yield f"{owner.__name__}.{name}.{method}", inspect.getattr_static(value, method)


NAMES = dict(public())
CALLS = {name: value for name, value in NAMES.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_is(name: str) -> None:
    value = NAMES[name]
    is_value = not callable(value) and not inspect.ismodule(value)
    assert is_value or inspect.getdoc(value)


@pytest.mark.parametrize("name", CALLS)
def test_a_number_has_its_unit_in_its_name(name: str) -> None:
    numbers = [
        each.name
        for each in inspect.signature(CALLS[name]).parameters.values()
        if re.search(r"\b(int|float)\b", str(each.annotation))
    ]
    assert all(each in COUNTS or UNIT.search(each) for each in numbers)


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("larder.aio.")])
def test_a_call_says_what_it_raises(name: str) -> None:
    """By the errors' names, after "Raises", or as what stands in a batch in a key's place."""
    said = inspect.getdoc(CALLS[name]) or ""
    raised = re.findall(r"\b[Rr]aises ([^.;]+)", said)
    named = {word for part in raised for word in re.findall(r"\b[A-Z]\w+", part)}
    assert named <= ERRORS
    assert named or "the error" in said or name.rpartition(".")[2] in NO_ERRORS
