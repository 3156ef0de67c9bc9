"""Which of its masters a node attaches to, and when it moves to another.

The master that has nodes is in charge (`larder.masters`): so a node goes where others already are, and only if no
master has any, to the first that answers. A node attached to the smaller part moves over: a network that was split
leaves two masters with nodes each, but only until both can be reached again.
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
    """The addresses (HOST:PORT each), in the order given."""

    def __init__(self, addresses: Sequence[str], recheck_s: float = RECHECK_S) -> None:
        self._addresses = addresses
        self._recheck_s = recheck_s

    async def candidates(self) -> list[str]:
        """Addresses to try, in order. If one is in charge it is the only one: elsewhere the node would be alone."""
        if len(self._addresses) == 1:
            return list(self._addresses)
        return choose(await survey(self._addresses, SURVEY_S))

    async def watch(self, address: str) -> None:
        """Raises Elsewhere once a master other than `address` is in charge; does not return."""
        while len(self._addresses) > 1:
            await asyncio.sleep(self._recheck_s * random.uniform(0.5, 1.5))  # noqa: S311  (spreads nodes, hides nothing)
            seen = await survey(self._addresses, SURVEY_S)
            better = in_charge(seen)
            own = next(each for each in seen if each.address == address)
            if better is not None and not own.trouble and better.rank > own.rank:
                raise Elsewhere(f"the master at {better.address} has {better.nodes} nodes, this one {own.nodes}")
        await asyncio.Event().wait()


def choose(seen: Sequence[Seen]) -> list[str]:
    """The one in charge; else those that answered, then the others."""
    leader = in_charge(seen)
    if leader is not None:
        return [leader.address]
    return [each.address for each in sorted(seen, key=lambda each: bool(each.trouble))]
