"""What `larder` is made of: services as its commands, commands of other distributions, completion, Ctrl-C."""

import os
import signal
import socket
import subprocess
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from click.testing import CliRunner
from larder.cli import app

from demo.cluster import free_port
from demo.processes import Process
from tests.contract.commands import TOOL, larder, run_larder


def test_the_services_are_commands_of_it(tmp_path: Path) -> None:
    port = free_port()
    env = dict(os.environ)
    argv = [TOOL, "master", "--port", str(port), "--metrics-port", "0"]
    master = Process("master", argv, log_dir=tmp_path, env=env)
    at, pool = ("--master", f"127.0.0.1:{port}"), ("--dram", "16MB", "--pool-dir", tmp_path)
    argv = [TOOL, "node", *at, *pool, "--metrics-port", "0"]
    node = Process("node", argv, log_dir=tmp_path, env=env)
    try:
        node.wait_line("storage-node ready", 60)
        assert b"used on 1 node of 1" in larder(*at, "status").stdout
    finally:
        assert (node.stop(), master.stop()) == (0, 0)
    argv = [TOOL, "proxy", "--port", "0", "--model", "m", "--prefill", "127.0.0.1:9", "--decode", "127.0.0.1:10"]
    proxy = Process("proxy", argv, log_dir=tmp_path, env=env)
    try:
        proxy.wait_line("proxy ready", 60)
    finally:
        assert proxy.stop() == 0


@pytest.mark.parametrize("name", ["master", "node", "proxy"])
def test_their_help_and_complaints_are_their_own(name: str) -> None:
    assert larder(name, "--help").stdout.startswith(f"usage: larder {name} ".encode())
    refused = larder(name, "--no-such-flag")
    assert refused.returncode == 2
    assert b"unknown flag --no-such-flag" in refused.stderr


def test_without_the_services_it_says_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "entry_points", lambda group: EntryPoints())
    said = CliRunner().invoke(app.cli, ["master", "--port", "0"])
    assert said.exit_code == 2
    assert "larder master is the services', which are not installed: pip install larder-server" in said.stderr
    assert "\n  master " not in CliRunner().invoke(app.cli, ["--help"]).stdout


def test_a_command_that_cannot_be_loaded_hurts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("trace", "no.such.module:trace", app.GROUP)
    monkeypatch.setattr(app, "entry_points", lambda group: EntryPoints([broken]))
    assert CliRunner().invoke(app.cli, ["--help"]).exit_code == 0
    said = CliRunner().invoke(app.cli, ["trace"])
    assert (said.exit_code, said.stderr.count("\n")) == (1, 1)
    assert said.stderr.startswith("larder: larder trace is installed but cannot be loaded: No module named 'no'")


def test_a_name_that_is_nearly_right_is_told() -> None:
    refused = larder("stauts")
    assert refused.returncode == 2
    assert b"no such command 'stauts'; is status meant?" in refused.stderr


def test_bash_completes_its_commands_and_options() -> None:
    script = 'PATH="$1:$PATH"; eval "$(larder completion bash)"; COMP_WORDS=(larder "${@:2}"); COMP_CWORD=$(($# - 1))'
    script += '; _larder_completion larder; printf "%s\\n" "${COMPREPLY[@]}"'

    def complete(*words: str) -> list[str]:
        argv = ["bash", "-c", script, "bash", TOOL.parent, *words]
        done = subprocess.run(argv, capture_output=True, timeout=60, check=True, text=True)
        return done.stdout.split()

    assert complete("sta") == ["status", "stat"]
    assert complete("verify", "--ra") == ["--rate"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete_it_too(shell: str) -> None:
    assert f"_LARDER_COMPLETE={shell}_complete".encode() in larder("completion", shell).stdout


def test_ctrl_c_ends_it_without_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        argv = [TOOL, "--master", f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "50", "ls"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
            caller, _ = silent.accept()
            with caller:
                waiting.send_signal(signal.SIGINT)
                said, told = waiting.communicate(timeout=60)
    assert (waiting.returncode, said, told) == (130, "", "larder: interrupted\n")


def test_a_closed_output_is_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"'{TOOL}' completion zsh >&-"], stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_color_means_none() -> None:
    assert b"\x1b" not in run_larder("--help", env={"NO_COLOR": "1", "FORCE_COLOR": "1"}).stdout
