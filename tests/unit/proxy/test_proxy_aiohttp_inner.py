"""What the proxy uses of aiohttp's insides is where the installed release has it, and is used in only one file."""

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http import StreamWriter

from services.proxy import aiohttp_inner, client_limits

PROXY = Path(aiohttp_inner.__file__).parent
INNER = (web.AppRunner, web.Server, web.RequestHandler, web.StreamResponse, web.Response, StreamWriter)
PUBLIC = {"aiohttp", "aiohttp.web", "aiohttp.typedefs", "aiohttp.http_exceptions"}
OWN = [
    each
    for module in (aiohttp_inner, client_limits)
    for each in vars(module).values()
    if inspect.isclass(each) and each.__module__ == module.__name__ and issubclass(each, INNER)
]
OVERRIDDEN = [
    (own, base, name)
    for own in OWN
    for name, method in vars(own).items()
    if inspect.isfunction(method) and name != "__init__"
    for base in own.__mro__[1:]
    if base.__module__.startswith("aiohttp.") and inspect.isfunction(vars(base).get(name))
]


def private_attributes(tree: ast.AST) -> Iterator[ast.Attribute]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr) and node.attr != "_replace":
            yield node  # _replace is a named tuple's, and documented


def is_of_aiohttp(name: str, kinds: tuple[type, ...] = INNER) -> bool:
    """Whether it is a member of one of its classes, or an attribute they give their instances."""
    return any(hasattr(kind, name) or re.search(rf"\bself\.{name}\b[^=\n]*=[^=]", source(kind)) for kind in kinds)


@functools.cache
def source(kind: type) -> str:
    return "".join(inspect.getsource(each) for each in kind.__mro__ if each.__module__.startswith("aiohttp."))


def test_each_inner_name_is_there() -> None:
    used = {node.attr for node in private_attributes(ast.parse((PROXY / "aiohttp_inner.py").read_text()))}
    assert len(used) >= 12
    assert not is_of_aiohttp("_no_such_name")
    assert not {name for name in used if not is_of_aiohttp(name)}


@pytest.mark.parametrize(("own", "base", "name"), OVERRIDDEN, ids=lambda each: getattr(each, "__name__", each))
def test_what_is_overridden_is_called_as_before(own: type, base: type, name: str) -> None:
    def parameters(kind: type) -> list[Any]:
        found = inspect.signature(vars(kind)[name]).parameters.values()
        return [(each.name, each.kind, each.default) for each in found]

    assert parameters(own) == parameters(base)
    assert inspect.iscoroutinefunction(vars(own)[name]) == inspect.iscoroutinefunction(vars(base)[name])


def test_the_insides_are_used_in_one_file() -> None:
    found = []
    for path in set(PROXY.rglob("*.py")) - {PROXY / "aiohttp_inner.py"}:
        tree = ast.parse(path.read_text())
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
        of_aiohttp = {name for name in imported if name.partition(".")[0] == "aiohttp"}
        found += [f"{path.name} imports {name}" for name in of_aiohttp - PUBLIC]
        if of_aiohttp:
            others = (node for node in private_attributes(tree) if ast.unparse(node.value) != "self")
            found += [f"{path.name}: {ast.unparse(node)}" for node in others]
    for own in OWN:
        if own.__module__ == client_limits.__name__:
            kinds = tuple(kind for kind in INNER if issubclass(own, kind))
            names = {node.attr for node in private_attributes(ast.parse(inspect.getsource(own)))}
            found += [f"{own.__name__}: {name}" for name in names if is_of_aiohttp(name, kinds)]
    assert not found
