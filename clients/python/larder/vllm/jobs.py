"""What scheduler and workers tell each other each step.

Plain data, pickled by vLLM on its way to the worker processes of one engine and nowhere else. Block ids are the
engine's own numbers of blocks; hashes become keys only in the worker, which knows its namespace.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

SKIP: Final = -1
"""Stands where a chunk has a block that must not be written: it is there already, or its group holds none."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter by the engine's number for it and by the state of the files it was read from."""

    number: int
    state: str


@dataclass(frozen=True, slots=True)
class ChunkBlocks:
    """One chunk and where it lies: block ids per KV cache group. No ids: that group's part is left out."""

    block_hash: bytes
    depth: int
    blocks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class LoadJob:
    """Fill these blocks for a request that waits for them, and that is computed with `adapter`."""

    request_id: str
    chunks: tuple[ChunkBlocks, ...]
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class SaveJob:
    """Put these chunks. Their blocks keep their bytes until every worker has reported the job done.

    `recheck`: the blocks came out of the engine's own cache, so the store most likely has them; ask before the bytes
    are gathered. `announce`: someone will ask for these as soon as the step has ended, so it ends only when the master
    knows of the puts.
    """

    job_id: int
    chunks: tuple[ChunkBlocks, ...]
    recheck: bool
    announce: bool
    adapter: Adapter | None = None


@dataclass(slots=True)
class StepPlan:
    """The work of one engine step. `weights` is what the engine's weights are called in all of its keys."""

    weights: bytes = b""
    loads: list[LoadJob] = field(default_factory=list)
    saves: list[SaveJob] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)  # earlier save jobs to end at once: their blocks are needed


@dataclass(frozen=True, slots=True)
class WorkerNames:
    """The namespaces of one worker's objects, one a KV cache group: what a scheduler needs to look them up.

    `facts` are those that all its groups have in common, to be read by people who compare two engines.
    """

    namespaces: tuple[bytes, ...]
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class WorkerReport:
    """What ended since the last step: save jobs by how many workers are done with them, and failed loads.

    `outdated`: what weights were called that a worker has since exchanged. `adapters`: the states of the files that
    adapters were read from, by the engine's numbers; empty where workers read different ones. `refused`: of these jobs
    the store took nothing, on some worker. `names`: told once, by the worker's pipeline and tensor parallel rank.
    """

    saves_done: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    failed_loads: set[str] = field(default_factory=set)
    outdated: set[bytes] = field(default_factory=set)
    adapters: dict[int, str] = field(default_factory=dict)
    names: dict[tuple[int, int], WorkerNames] = field(default_factory=dict)

    def aggregate(self, other: Self) -> Self:
        """This and another worker's report as one."""
        for job_id, workers in other.saves_done.items():
            self.saves_done[job_id] = self.saves_done.get(job_id, 0) + workers
        self.refused |= other.refused
        self.failed_loads |= other.failed_loads
        self.outdated |= other.outdated
        self.names |= other.names
        for number, state in other.adapters.items():
            self.adapters[number] = state if self.adapters.get(number, state) == state else ""
        return self
