"""The rest: what looks free is not used as long as writes of an earlier master's time may still land there; and what a
put is told that found no room.

It begins when a node is adopted whose pools an earlier master may have promised, or this one before it gave the node
up. Nothing is displaced for repairs meanwhile: the room is there, and will be free.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from services.master.core.tables import State


class Rest:
    """Since when and until when, on the core's clock. One that follows at once goes on with the one before."""

    __slots__ = ("since", "until")

    def __init__(self) -> None:
        self.since = self.until = 0

    def extend(self, now: int, until: int) -> None:
        if now >= self.until:
            self.since = now
        self.until = max(self.until, until)

    def left_ms(self, now: int) -> int:
        return max(0, self.until - now)

    def said(self, now: int) -> str:
        """For people; empty where nothing rests."""
        left_ms = self.left_ms(now)
        if not left_ms:
            return ""
        return (
            f"free space has rested for {(now - self.since) / 1000:.1f} s and does for {left_ms / 1000:.1f} s more, "
            "since a master started, or a node came back, while earlier writes may still land there"
        )


class Shortage(NamedTuple):
    """Why a put found no room, and what to do; empty: the pools are full."""

    reason: str = ""
    remedy: str = ""


def shortage(state: "State") -> Shortage:
    if not state.nodes:
        return Shortage("no storage node is attached", "start storage nodes, or look at why they do not attach")
    if not any(segment.live for segment in state.segments.values()):
        return Shortage(f"none of {len(state.nodes)} storage nodes answers now", "try again when they do")
    rests = state.rest.said(state.now)
    left_s = state.rest.left_ms(state.now) / 1000
    return (
        Shortage(rests, f"try again in {left_s:.0f} s; what is stored can be read meanwhile") if rests else Shortage()
    )
