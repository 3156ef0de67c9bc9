"""How numbers of things are said to people."""


def counted(count: int, one: str, many: str = "") -> str:
    """1 copy, 2 copies; `many` where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
