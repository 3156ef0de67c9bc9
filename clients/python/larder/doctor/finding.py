"""What a check says: what it looked at, whether that is in order, what is wrong, and what mends it."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """`remedy`: one line for a shell, or empty if no command mends it. `advice`: where to type it, or what else to
    do."""

    part: str
    looked_at: str
    verdict: Verdict
    said: str
    remedy: str = ""
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Part:
    """Makes the findings of one part of the report."""

    name: str

    def ok(self, looked_at: str, said: str) -> Finding:
        return Finding(self.name, looked_at, Verdict.OK, said)

    def skipped(self, looked_at: str, said: str) -> Finding:
        return Finding(self.name, looked_at, Verdict.SKIPPED, said)

    def warn(self, looked_at: str, said: str, *, remedy: str = "", advice: str = "") -> Finding:
        return Finding(self.name, looked_at, Verdict.WARN, said, remedy, advice)

    def bad(self, looked_at: str, said: str, *, remedy: str = "", advice: str = "") -> Finding:
        return Finding(self.name, looked_at, Verdict.BAD, said, remedy, advice)
