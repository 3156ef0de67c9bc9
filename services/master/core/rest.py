"""The rest: adopted free space is not used while writes that an earlier master let begin may still land there.

It begins when a node is adopted in whose pools an earlier master may have promised space, or this one before it gave
the node up. Nothing is displaced for repairs meanwhile: the room is there, and will be free.
"""


class Rest:
    """Since when and until when, on the core's clock. A rest that follows at once continues the one before."""

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
        """For people; empty if nothing rests."""
        left_ms = self.left_ms(now)
        if not left_ms:
            return ""
        return (
            f"free space has rested for {(now - self.since) / 1000:.1f} s and does for {left_ms / 1000:.1f} s more, "
            "since a master started, or a node came back, while earlier writes may still land there"
        )
