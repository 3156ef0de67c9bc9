"""The table of switches, and how one is applied."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

Put = Callable[[Any, str, Any], None]
MUTANTS: dict[str, tuple[str, Callable[[Put], None]]] = {}


def breaks(invariants: str) -> Callable[[Callable[[Put], None]], Callable[[Put], None]]:
    def register(mutant: Callable[[Put], None]) -> Callable[[Put], None]:
        MUTANTS[mutant.__name__] = (invariants, mutant)
        return mutant

    return register


@contextmanager
def applied(name: str | None) -> Iterator[None]:
    """The product with that switch; as it is, where there is none."""
    with ExitStack() as stack:
        if name is not None:
            MUTANTS[name][1](lambda owner, what, value: stack.enter_context(patch.object(owner, what, value)))
        yield
