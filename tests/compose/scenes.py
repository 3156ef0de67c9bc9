"""What `make test-compose` asks of the running cluster. Each raises Wrong, which says what is not as it should be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.cluster import BLOCK_TOKENS
from demo.traffic import Prompt, ask, metric
from tests.compose.cluster import ENGINES, LARDER, Cluster, get_json, wait_until
from tests.compose.load import Load

BACK_S = 60.0
ENGINE_BACK_S = 180.0
TARGETS = {"master": 1, "storage-node": 3, "proxy": 1, "engine": 2}
USER = 65532


class Wrong(RuntimeError):
    pass


def check(holds: object, what: str) -> None:
    if not holds:
        raise Wrong(what)


def are_confined(cluster: Cluster, services: list[str]) -> None:
    for service in services:
        described = cluster.inspect(service)
        host, state = described["HostConfig"], described["State"]
        check(host["ReadonlyRootfs"] and host["Init"], f"{service}: its root can be written, or it has no init")
        check(host["Memory"] and host["NanoCpus"] and host["PidsLimit"], f"{service} has not every limit")
        check(host["CapDrop"] == ["ALL"] and not host["CapAdd"], f"{service} has capabilities")
        check(host["RestartPolicy"]["Name"] == "unless-stopped", f"{service} is not restarted")
        bound = {port["HostIp"] for ports in (host["PortBindings"] or {}).values() for port in ports}
        check(bound <= {"127.0.0.1"}, f"{service} is published on {bound}")
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{state['Pid']}/status").read_text().splitlines() if ":" in line
        )
        check(int(status["Uid"].split()[0]) != 0, f"{service} runs as root")
        check(int(status["CapEff"], 16) == 0, f"{service} has capabilities {status['CapEff'].strip()}")
        if service in ENGINES:
            cluster.docker.run("exec", described["Id"], "touch", "/cache/written")
        if service.startswith("node-") or service in ENGINES:
            limits = Path(f"/proc/{state['Pid']}/limits").read_text()
            [locked] = [line.split() for line in limits.splitlines() if line.startswith("Max locked memory")]
            wanted = cluster.settings.get("MEMLOCK", "unlimited")
            check(locked[3:5] == [wanted] * 2, f"{service} may not lock memory: {locked}")


def answers(cluster: Cluster, warm_up: Prompt, prompt: Prompt) -> None:
    """Engines share nothing until they know their model's weights by content, so one request goes before."""
    ask(cluster.proxy, warm_up)
    before = _external_hits(cluster)
    first = ask(cluster.proxy, prompt)
    again = ask(cluster.proxy, prompt)
    check(first.token_ids and first.token_ids == again.token_ids, f"answers differ: {first}, {again}")
    whole = first.prompt_tokens // BLOCK_TOKENS * BLOCK_TOKENS
    check(again.cached_tokens >= whole - BLOCK_TOKENS, f"the second time {again.cached_tokens} tokens were cached")
    loaded = _external_hits(cluster) - before
    check(loaded >= whole - BLOCK_TOKENS, f"the decode engine loaded {loaded} tokens from the store")


def pools_are_mapped(cluster: Cluster) -> None:
    for engine in ENGINES:
        files = set()
        for pid in cluster.docker.run("top", cluster.inspect(engine)["Id"], "-o", "pid").splitlines()[1:]:
            maps = Path(f"/proc/{int(pid)}/maps").read_text()
            files |= {line.split()[-1] for line in maps.splitlines() if line.endswith(".pool")}
        check(files, f"{engine} maps no pool")
        check(all(Path(file).parent == cluster.pool_dir for file in files), f"{engine} maps {files}")


def refuses_what_does_not_fit(cluster: Cluster) -> None:
    pools, image = str(cluster.pool_dir), cluster.inspect("master")["Image"]
    result = cluster.docker.call(
        "run", "--rm", "--network=none", "--memory=128m", f"--volume={pools}:{pools}", image,
        "storage-node", "--master=127.0.0.1:1", "--advertise=127.0.0.1", "--dram=256MB", f"--pool-dir={pools}",
        timeout_s=60,
    )  # fmt: skip
    said = (result.stdout + result.stderr).decode()
    check(result.returncode == 1, f"a pool larger than its container ended with status {result.returncode}: {said}")
    check("of the 134217728 bytes of memory that this container may use" in said, f"it does not say why: {said}")


def is_shown(cluster: Cluster) -> None:
    said = cluster.run("exec", "-T", "master", "larder", "status")
    check(all(node in said for node in LARDER[1:4]), f"larder status: {said}")
    doctor = ("larder", "--format", "json", "doctor", "--pool-dir", str(cluster.pool_dir))
    for service in ("node-1", "prefill"):
        report = json.loads(cluster.run("exec", "-T", service, *doctor))
        found = [each for each in report["findings"] if each["verdict"] in ("warn", "bad")]
        check(not found, f"larder doctor, at {service}: {found}")


def is_joined(cluster: Cluster) -> None:
    cluster.run_node("up", "--detach")
    _wait_for_nodes(cluster, 4)
    cluster.run_node("down", "--timeout", "30")
    _wait_for_nodes(cluster, 3)


def is_watched(cluster: Cluster) -> None:
    def up() -> bool:
        targets = get_json(cluster.prometheus, "/api/v1/targets?state=active")["data"]["activeTargets"]
        counted = {job: 0 for job in TARGETS}
        for target in targets:
            if target["health"] == "up" and target["labels"]["job"] in counted:
                counted[target["labels"]["job"]] += 1
        return counted == TARGETS and all(target["health"] == "up" for target in targets)

    wait_until(f"Prometheus has the targets {TARGETS}, all up", up, 60)
    groups: list[dict[str, Any]] = get_json(cluster.prometheus, "/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    check(rules, "Prometheus has no rules")
    check(all(not rule.get("lastError") for rule in rules), f"rules fail: {rules}")


# -- what breaks ----------------------------------------------------------------------------------------------------


def kill_node(cluster: Cluster, prompts: list[Prompt]) -> str:
    """docker kill of a storage node; up brings it back"""
    return _under_load(cluster, prompts, lambda load: _kill(cluster, load, "node-2", BACK_S))


def kill_master(cluster: Cluster, prompts: list[Prompt]) -> str:
    """docker kill of the master; up brings it back"""

    def scene(load: Load) -> None:
        _kill(cluster, load, "master", BACK_S)
        _wait_for_nodes(cluster)

    return _under_load(cluster, prompts, scene)


def crash_master(cluster: Cluster, prompts: list[Prompt]) -> str:
    """a crash of the master; Docker brings it back"""

    def scene(load: Load) -> None:
        restarts = cluster.inspect("master")["RestartCount"]
        cluster.crash("master")
        wait_until("the master was restarted", lambda: cluster.inspect("master")["RestartCount"] > restarts, BACK_S)
        cluster.wait_healthy("master", deadline_s=BACK_S)
        _wait_for_nodes(cluster)
        load.more(20)

    return _under_load(cluster, prompts, scene)


def kill_prefill(cluster: Cluster, prompts: list[Prompt]) -> str:
    """docker kill of the prefill engine; up brings it back"""
    return _under_load(cluster, prompts, lambda load: _kill(cluster, load, "prefill", ENGINE_BACK_S))


def upgrade(cluster: Cluster, prompts: list[Prompt]) -> str:
    """an upgrade: new containers for the master, then for one node after the other, each drained before"""

    def scene(load: Load) -> None:
        cluster.run("up", "--detach", "--no-deps", "--force-recreate", "master")
        cluster.wait_healthy("master", deadline_s=BACK_S)
        _wait_for_nodes(cluster)
        for node in LARDER[1:4]:
            said = cluster.run("exec", "-T", "master", "larder", "drain", node)
            check("is drained" in said, f"larder drain {node}: {said}")
            cluster.run("up", "--detach", "--no-deps", "--force-recreate", node)
            cluster.wait_healthy(node, deadline_s=BACK_S)
            _wait_for_nodes(cluster)
        load.more(20)

    return _under_load(cluster, prompts, scene)


def stops(cluster: Cluster) -> None:
    cluster.run("--profile", "demo", "stop")
    for service in LARDER:
        state = cluster.inspect(service)["State"]
        check(state["ExitCode"] == 0 and not state["OOMKilled"], f"{service} ended with status {state['ExitCode']}")
    left = sorted(path.name for path in cluster.pool_dir.iterdir())
    check(not left, f"left in the pools' folder: {left}")


def _kill(cluster: Cluster, load: Load, service: str, back_s: float) -> None:
    """To Docker a kill is an operator's stop: the container stays down until it is told to come up."""
    cluster.kill(service)
    load.more(20)
    check(cluster.health(service) == "exited", f"{service} is {cluster.health(service)} after docker kill")
    cluster.up(service)
    cluster.wait_healthy(service, deadline_s=back_s)
    load.more(20)


def _under_load(cluster: Cluster, prompts: list[Prompt], scene: Callable[[Load], None]) -> str:
    with Load(cluster.proxy, prompts) as load:
        load.more(20)
        scene(load)
    check(not load.failures, f"{len(load.failures)} of {load.answered} requests failed: {load.failures[:5]}")
    return f"{load.answered} requests, 0 failed, the slowest {load.slowest_s:.1f} s, {load.cached_tokens} tokens cached"


def _wait_for_nodes(cluster: Cluster, wanted: int = 3) -> None:
    def all_there() -> bool:
        return metric(cluster.metrics, "larder_master_nodes", state="attached") == wanted

    wait_until(f"{wanted} nodes are attached", all_there, BACK_S)


def _external_hits(cluster: Cluster) -> int:
    """Of the decode engine, whose port is not published."""
    container = cluster.inspect("decode")["Id"]
    text = cluster.docker.run("exec", container, "curl", "-fsS", "http://127.0.0.1:8200/metrics")
    lines = [line for line in text.splitlines() if line.startswith("vllm:external_prefix_cache_hits_total")]
    return int(sum(float(line.split()[-1]) for line in lines))
