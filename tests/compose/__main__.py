"""`make test-compose`: builds the images, brings the compose file up with its demo engines, asks, breaks, ends it.

    python -m tests.compose [--work-dir .work/compose]

Takes a Docker daemon that runs, or one of its own (root). Status 0 when everything held; each step is told with its
time. Not part of `make test`: it builds gigabytes and wants a Docker daemon.
"""

import argparse
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.tiny_model import make_model
from demo.traffic import make_prompts
from tests.compose import images, scenes
from tests.compose.cluster import ENGINES, LARDER, Cluster
from tests.compose.daemon import Docker, DockerError

HEALTHY_S = 120.0
LATE_S = 600.0  # what is late is wrong, and what comes after it is still told
BUILD_S = 3000.0
PROMPT_TOKENS = [300, 500, 700, 900, 1100, 1300, 1500, 1700]


@contextmanager
def step(what: str) -> Iterator[None]:
    print(f"  {what} ...", flush=True)
    begun = time.monotonic()
    yield
    print(f"  {what}: {time.monotonic() - begun:.1f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.compose", description=__doc__.partition("\n")[0])
    parser.add_argument("--work-dir", type=Path, default=Path(".work/compose"))
    work_dir = parser.parse_args().work_dir
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started is ended then, too
    begun = time.monotonic()
    try:
        with Docker(work_dir) as docker:
            print(f"compose: {'a daemon of its own' if docker.is_own else 'the daemon that runs'}, logs in {work_dir}")
            run(docker)
    except (DockerError, scenes.Wrong) as error:
        print(f"WRONG {error}", flush=True)
        return 1
    print(f"everything as it should be, after {time.monotonic() - begun:.0f} s")
    return 0


def run(docker: Docker) -> None:
    with step("base images"):
        made = images.prepare(docker)
    for stand_in in made.stand_ins:
        print(f"  stand-in: {stand_in}")
    services = [*LARDER, *ENGINES, "prometheus"]
    if docker.has_image("grafana/grafana:12.2.0"):
        services.append("grafana")
    else:
        print("  left out: Grafana, whose image cannot be had here")
    with images.pip_arguments() as pip:
        settings = {"BASE_IMAGE": made.base, "BUILD_NETWORK": "host", **pip}
        _, lockable = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if docker.is_own and lockable != resource.RLIM_INFINITY:
            print(f"  limited: no process here may lock more than {lockable} bytes")
            settings["MEMLOCK"] = str(lockable)
        with Cluster(docker, settings) as cluster:
            with step("build"):
                cluster.run("--profile", "demo", "build", "master", "prefill", timeout_s=BUILD_S)
            with step(f"everything healthy ({HEALTHY_S:.0f} s at most)"):
                begun = time.monotonic()
                cluster.up(*services)
                cluster.wait_healthy(*services, deadline_s=LATE_S)
                took_s = time.monotonic() - begun
            break_it(cluster, services)
            scenes.check(took_s <= HEALTHY_S, f"it took {took_s:.0f} s until everything was healthy")


def break_it(cluster: Cluster, services: list[str]) -> None:
    model = cluster.docker.work_dir / "model"
    make_model(model)
    prompts = make_prompts(model, tokens=PROMPT_TOKENS)
    with step("containers are confined"):
        scenes.are_confined(cluster, services)
    with step("a completion is answered by both engines, the second time from what is cached"):
        scenes.answers(cluster, prompts[1], prompts[2])
    with step("engines map the nodes' pools"):
        scenes.pools_are_mapped(cluster)
    with step("Prometheus sees every target up and every rule well"):
        scenes.is_watched(cluster)
    with step("larder status shows the nodes, and larder doctor finds nothing wrong"):
        scenes.is_shown(cluster)
    with step("a pool that does not fit its container is refused by name"):
        scenes.refuses_what_does_not_fit(cluster)
    with step("a node of node.yml joins, and leaves"):
        scenes.is_joined(cluster)
    for scene in (scenes.kill_node, scenes.kill_master, scenes.crash_master, scenes.kill_prefill, scenes.upgrade):
        with step(scene.__doc__ or ""):
            print(f"    {scene(cluster, prompts)}")
    with step("a stop is clean and leaves no pool"):
        scenes.stops(cluster)


if __name__ == "__main__":
    sys.exit(main())
