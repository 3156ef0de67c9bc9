"""Errors say key, node and what to do, survive pickling, and are what their docstring draws."""

import inspect
import pickle

import larder
import pytest
from larder import errors
from larder.errors import DataLost, InvalidArgument, LarderError, NoSpace, TooLarge, Unavailable, show_key

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, LarderError)]


def test_what_an_error_says() -> None:
    said = str(DataLost("every copy failed", key=b"some key", node="node-1"))
    assert said.startswith("every copy failed, key 'some key', node node-1; ")
    assert "put it again" in said


@pytest.mark.parametrize("kind", TREE)
def test_the_whole_tree(kind: type[LarderError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "") or kind is LarderError
    assert getattr(larder, kind.__name__) is kind
    assert kind.remedy or kind in (LarderError, InvalidArgument)
    error = pickle.loads(pickle.dumps(kind("what happened", key=b"\xff", node="n")))  # noqa: S301
    assert (type(error), error.key, error.node, str(error)) == (
        kind,
        b"\xff",
        "n",
        str(kind("what happened", key=b"\xff", node="n")),
    )


def test_kinship() -> None:
    assert issubclass(TooLarge, NoSpace)
    assert issubclass(InvalidArgument, ValueError)
    assert issubclass(larder.DeadlineExceeded, TimeoutError)
    assert not issubclass(Unavailable, KeyError)


def test_keys_are_shown_short_and_printable() -> None:
    assert show_key(b"key") == "'key'"
    assert show_key("grün".encode()) == "'grün'"
    assert show_key(b"\x00\x01") == "'0001'"
    assert len(show_key(b"k" * 1024)) < 90
