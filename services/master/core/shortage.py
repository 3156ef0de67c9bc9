"""Why a put found no room, and what to do, in words."""

from typing import NamedTuple

from services.master.core.tables import State


class Shortage(NamedTuple):
    """Both empty if the pools are simply full."""

    reason: str = ""
    remedy: str = ""


def shortage(state: State) -> Shortage:
    if not state.nodes:
        return Shortage("no storage node is attached", "start storage nodes, or look at why they do not attach")
    if not any(segment.live for segment in state.segments.values()):
        return Shortage(f"none of {len(state.nodes)} storage nodes answers now", "try again when they do")
    rests = state.rest.said(state.now)
    left_s = state.rest.left_ms(state.now) / 1000
    return (
        Shortage(rests, f"try again in {left_s:.0f} s; what is stored can be read meanwhile") if rests else Shortage()
    )
