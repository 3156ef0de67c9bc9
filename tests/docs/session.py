"""Runs one session of a document: a program, in namespaces of its own. Prints "held" where all was as it is written.

Each host is a shell that lives as long as the session. A command that serves (SERVERS) goes on in the background once
it has said that it is ready, as it would in a terminal of its own. Everything ends with the session's processes.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.docs.blocks import Session, Step, expected, read, squeeze

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {  # how each begins, what it says when it is ready, and how long that may take
    r"(larder )?master\b": ("master ready: ", 120.0),
    r"larder node\b|storage-node\b": ("storage-node ready: ", 120.0),
    r"(larder )?proxy\b": ("proxy ready: ", 120.0),
    r"vllm serve\b": ("Application startup complete", 600.0),
    r"prometheus\b": ("Server is ready to receive web requests", 60.0),
    r"make up\b": ("Ctrl-C ends it", 600.0),
}
AS_HOST = 'mount -t tmpfs none /dev/shm && hostname "$0" && exec "$@"'
HOSTS = {"host-a": "198.18.0.1", "host-b": "198.18.0.2"}  # RFC 2544: for tests, and routed nowhere


class WrongError(Exception):
    """A step did not do what is written."""


class Shell:
    """One bash, on one host; `step` runs a command in it to its end, or to its readiness."""

    def __init__(self, host: str, work_dir: Path) -> None:
        within = ["nsenter", f"--net=/run/netns/{host}", "unshare", "--mount", "--uts", "sh", "-c", AS_HOST, host]
        argv = [*(within if host else []), "bash", "--noprofile", "--norc"]
        self._shell = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._scratch = work_dir / (host or "here")
        self._scratch.mkdir()
        self._number = 0
        self.status = 0
        self.failed: Step | None = None
        self._starting: list[tuple[Step, int, Path, str, float]] = []

    def step(self, step: Step) -> None:
        self._number += 1
        script, output = self._scratch / f"{self._number}.sh", self._scratch / f"{self._number}.out"
        script.write_text(step.text)
        command = re.sub(r"^(\w+=\S+ )*", "", step.text)
        served = next((value for start, value in SERVERS.items() if re.match(start, command)), None)
        if step.printed is not None or not served:
            self.wait_ready()  # else it starts beside those before it, as engines should
        if served and "--help" not in step.text:
            output.touch()
            server = self._say(f". {script} > {output} 2>&1 < /dev/null & rc=$!")
            self._say("rc=0")
            self._starting.append((step, server, output, *served))
            if step.printed is not None:
                self.wait_ready()
            return
        run = f"python {script}" if step.is_python else f". {script}"
        status = self._say(f"(exit ${{rc:-0}}); {run} > {output} 2>&1 < /dev/null; rc=$?")
        text = output.read_text()
        if step.printed is not None and not re.fullmatch(expected(step.printed), squeezed(text)):
            raise WrongError(f"{step.where}: {step.text}printed\n{text}\nand not\n" + "\n".join(step.printed))
        self.status, self.failed = status, step if status else None

    def wait_ready(self) -> None:
        """For every server started so far."""
        while self._starting:
            self._wait_ready(*self._starting.pop(0))

    def _say(self, line: str) -> int:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{line}; echo done $rc\n")
        self._shell.stdin.flush()
        said = self._shell.stdout.readline().split()
        if said[:1] != ["done"]:
            raise WrongError(f"the shell ended at: {line}")
        return int(said[1])

    def _wait_ready(self, step: Step, server: int, output: Path, ready: str, deadline_s: float) -> None:
        lines = [squeeze(line) for line in step.printed or [] if squeeze(line) != "…"]
        wanted = [".*".join(map(re.escape, line.split("…"))) for line in lines]
        pattern = re.compile(f"(?s){'.*?'.join(f'^{line}$' for line in wanted) or re.escape(ready)}", re.MULTILINE)
        until = time.monotonic() + deadline_s
        while not (ready in (text := output.read_text()) and pattern.search(squeezed(text))):
            if time.monotonic() > until or not Path(f"/proc/{server}").exists():
                shown = "".join(f"\n{line}" for line in step.printed or [])
                raise WrongError(f"{step.where}: {step.text}printed\n{text[-6000:]}\nand not {ready!r}{shown}")
            time.sleep(0.05)


def squeezed(text: str) -> str:
    return "".join(squeeze(line) + "\n" for line in text.splitlines())


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def make_network(hosts: set[str]) -> None:
    run("mount", "-t", "tmpfs", "none", "/dev/shm")  # noqa: S108  (its own)
    run("mount", "-t", "tmpfs", "none", "/run")
    for tree, access in ((ROOT, "ro"), ((ROOT / ".venv").resolve(), "rw")):  # Python keeps what it compiles there
        run("mount", "--bind", str(tree), str(tree))
        run("mount", "-o", f"remount,bind,{access}", str(tree))
    run("ip", "link", "set", "lo", "up")
    if not hosts:
        return
    run("ip", "link", "add", "bridge", "type", "bridge")
    run("ip", "link", "set", "bridge", "up")
    for name, address in HOSTS.items():
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", f"to-{name}", "master", "bridge", "up")
        run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")


def make_checkout(path: Path) -> None:
    """A folder in which relative paths are the repository's, and what commands write is not in it."""
    path.mkdir()
    for each in ROOT.iterdir():
        if each.name not in (".work", ".git"):
            (path / each.name).symlink_to(each)


def sessions_of(documents: list[Path]) -> dict[str, Session]:
    return {session.name: session for path in documents for session in read(path).sessions}


def all_steps(session: Session) -> list[Step]:
    if not session.based_on:
        return session.steps
    name, _, section = session.based_on.partition("#")
    base = [each for each in read(ROOT / "docs" / name).sessions if section in each.sections]
    if len(base) != 1 or base[0].based_on:
        raise WrongError(f"{session.name} is based on {session.based_on}, which has no commands of its own")
    kept = [step for step, above in zip(base[0].steps, base[0].sections, strict=True) if above == section]
    return kept + session.steps


def main() -> None:
    work_dir, path, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    steps = all_steps(sessions_of([path])[name])
    work_dir.mkdir()
    make_network({step.host for step in steps} - {""})
    make_checkout(work_dir / "checkout")
    os.chdir(work_dir / "checkout")
    if any("make " in step.text for step in steps) and subprocess.run(["make", "-q", "setup"], check=False).returncode:
        raise WrongError("the environment is not up to date: run make setup")
    shells: dict[str, Shell] = {}
    for step in steps:
        if step.host not in shells:
            shells[step.host] = Shell(step.host, work_dir)
        shell = shells[step.host]
        if shell.failed and "$?" not in step.text:
            break
        started = time.monotonic()
        shell.step(step)
        print(f"{step.where}: {time.monotonic() - started:.1f} s: {step.text.strip()[:100]}", flush=True)
    for shell in shells.values():
        shell.wait_ready()
        if shell.failed:
            raise WrongError(f"{shell.failed.where}: {shell.failed.text}ended with status {shell.status}")
    print("held")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        main()
    except WrongError as error:
        sys.exit(str(error))
