"""The images under test, and what they are made from where no registry can be reached.

pip's own settings of this machine reach the build as arguments and are never written down; where they name folders,
those are served on loopback as long as the build lasts. Images.stand_ins tells what stands in for an image that cannot
be had.
"""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.compose.daemon import Docker, DockerError

BASE = "debian:12.12-slim"
OWN_BASE = "larder-test-base:bookworm"
SUITE = "bookworm"
PROMETHEUS = "prom/prometheus:v3.4.1"
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host")
CERTIFICATES = Path("/usr/local/share/ca-certificates")  # that this machine trusts beside Debian's
BOOTSTRAP_S = 900.0
BUILD_S = 1800.0
DEBIANS_PROMETHEUS = """
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends prometheus wget && rm -rf /var/lib/apt/lists/* \\
    && install -d -o 65534 -g 65534 /prometheus
USER 65534
VOLUME /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
"""


@dataclass
class Images:
    base: str
    stand_ins: list[str] = field(default_factory=list)


def prepare(docker: Docker) -> Images:
    """What the builds and the cluster need beside what they build."""
    images = Images(BASE)
    if not docker.has_image(BASE):
        images.base = OWN_BASE
        images.stand_ins.append(f"{BASE} is one made by debootstrap")
        if docker.call("image", "inspect", OWN_BASE, timeout_s=60.0).returncode:
            _bootstrap(docker)
    if not docker.has_image(PROMETHEUS):
        argument = f"BASE_IMAGE={images.base}"
        docker.run("build", "--network=host", "--build-arg", argument, "--tag", PROMETHEUS, "-",
                   stdin=DEBIANS_PROMETHEUS.encode(), timeout_s=BUILD_S)  # fmt: skip
    version = docker.run("run", "--rm", "--network=none", PROMETHEUS, "--version").split()[2]
    if version not in PROMETHEUS:
        images.stand_ins.append(f"{PROMETHEUS} is Debian's, {version}")
    return images


def _bootstrap(docker: Docker) -> None:
    root = docker.work_dir / "base"
    shutil.rmtree(root, ignore_errors=True)
    try:
        _tool(["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(root), *_mirror()])
        shutil.copytree(CERTIFICATES, root / CERTIFICATES.relative_to("/"), dirs_exist_ok=True)
        _tool(["chroot", str(root), "update-ca-certificates"])
        tar = ["tar", f"--directory={root}", "--exclude=./dev/*", "--exclude=./proc/*", "--exclude=*.deb", "-c", "."]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as packed:
            subprocess.run(["docker", "import", "-", OWN_BASE], stdin=packed.stdout, env=docker.env, check=True,
                           stdout=subprocess.DEVNULL, timeout=BOOTSTRAP_S)  # fmt: skip
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _tool(argv: list[str]) -> str:
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=BOOTSTRAP_S, check=False)
    except FileNotFoundError as error:
        raise DockerError(f"{BASE} cannot be pulled, and there is no {argv[0]} to make a base image with") from error
    if result.returncode:
        raise DockerError(f"{argv[0]}: status {result.returncode}\n{(result.stdout + result.stderr)[-2000:]}")
    return result.stdout


def _mirror() -> list[str]:
    """Where this machine's own packages come from, if it is of that suite; else debootstrap knows one."""
    if not shutil.which("apt-get"):
        return []
    listed = _tool(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
    sites = [line.split()[0] for line in listed.splitlines() if line.split()[1:] == [SUITE, "main"]]
    return sites[:1]


# -- pip --------------------------------------------------------------------------------------------------------------


@contextmanager
def pip_arguments() -> Iterator[dict[str, str]]:
    """PIP_* for the builds, good inside the block."""
    with _Folders() as folders:
        found = {}
        for name in PIP_SETTINGS:
            variable = f"PIP_{name.replace('-', '_').upper()}"
            value = os.environ.get(variable) or _pip_config(f"global.{name}")
            if value:
                found[variable] = " ".join(folders.url(part) for part in value.split())
        yield found


def _pip_config(name: str) -> str:
    argv = [sys.executable, "-m", "pip", "config", "get", name]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60.0, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Folders:
    """Serves folders on loopback: one server for each, since their files may point to their parents."""

    def __init__(self) -> None:
        self._servers: list[http.server.ThreadingHTTPServer] = []

    def __enter__(self) -> "_Folders":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def url(self, place: str) -> str:
        """A URL that says the same as `place`, a URL or a folder."""
        path = place.removeprefix("file://")
        if not path.startswith("/"):
            return place
        folder, rest = (Path(path).parent, Path(path).name) if place != path else (Path(path), "")
        handler = functools.partial(_Quiet, directory=str(folder))
        port = 42_000 + zlib.crc32(str(folder).encode()) % 2_000  # the same each time: another would be another build
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/{rest}"
