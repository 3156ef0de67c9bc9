"""What this process's engine has in memory, as far as it can change while it serves: weights and LoRA adapters.

`hooks.py` writes it, from the engine's thread; a worker asks it before it loads or saves. Pure.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol
from weakref import WeakSet

from larder.vllm.jobs import Adapter


class Reader(Protocol):
    """Someone who reads the engine's KV memory."""

    def quiet(self) -> None:
        """Read no more of it."""


@dataclass(slots=True)
class Watch:
    """`exchanges` counts how often weights were exchanged; `adapters` has the state of the files an adapter was read
    from, by the engine's number for it, empty where they changed meanwhile. `readers` must be quiet before the engine
    gives its KV memory away."""

    exchanges: int = 0
    adapters: dict[int, str] = field(default_factory=dict)
    readers: WeakSet[Reader] = field(default_factory=WeakSet)

    def may_load(self, adapter: Adapter | None) -> bool:
        """Whether KV of this adapter is right for the one in memory, or for the one about to be read."""
        return adapter is None or self.adapters.get(adapter.number, adapter.state) == adapter.state

    def may_save(self, adapter: Adapter | None) -> bool:
        """Whether what the engine computed was computed with this adapter."""
        return adapter is None or self.adapters.get(adapter.number) == adapter.state


WATCH: Final = Watch()
"""This process's: its workers share their engine's weights."""
