"""Which of the masters that this node names it attaches to, and when to another.

Nodes are what makes a master the one in charge (`larder.masters`): so they go where others are already, and only where
none has nodes to the first that answers. A node that sits with another master than most comes over: a network that was
cut in two leaves two masters with nodes each, and no longer than both can be reached again.
"""

import asyncio
import random
from collections.abc import Sequence

from larder.masters import SURVEY_S, Seen, in_charge, survey

from services.storage_node.stream import StreamError

RECHECK_S = 5.0


class Elsewhere(StreamError):
    """Another master is in charge."""


class Masters:
    """The addresses (HOST:PORT each) in the order they were given."""

    def __init__(self, addresses: Sequence[str], recheck_s: float = RECHECK_S) -> None:
        self._addresses = addresses
        self._recheck_s = recheck_s

    async def candidates(self) -> list[str]:
        """To be tried in this order. Where one is in charge no other is: there the node would be alone."""
        if len(self._addresses) == 1:
            return list(self._addresses)
        return choose(await survey(self._addresses, SURVEY_S))

    async def watch(self, address: str) -> None:
        """Raises Elsewhere once another than `address` is in charge; does not return."""
        while len(self._addresses) > 1:
            await asyncio.sleep(self._recheck_s * random.uniform(0.5, 1.5))  # noqa: S311  (spreads nodes, hides nothing)
            seen = await survey(self._addresses, SURVEY_S)
            better = in_charge(seen)
            own = next(each for each in seen if each.address == address)
            if better is not None and not own.trouble and better.rank > own.rank:
                raise Elsewhere(f"the master at {better.address} has {better.nodes} nodes, this one {own.nodes}")
        await asyncio.Event().wait()


def choose(seen: Sequence[Seen]) -> list[str]:
    """Whoever is in charge; else those that answered, then the others."""
    leader = in_charge(seen)
    if leader is not None:
        return [leader.address]
    return [each.address for each in sorted(seen, key=lambda each: bool(each.trouble))]
