"""The `proxy` command: its settings, and its life as a real process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.common.settings import load
from services.proxy.config import ProxySettings

PROXY = Path(sys.executable).with_name("proxy")
VARIABLES = ("PREFILL_ENDPOINTS", "DECODE_ENDPOINTS", "ADMIN_API_KEY", "OPENAI_API_KEY")


@pytest.fixture(autouse=True)
def _clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def read(*argv: str) -> ProxySettings:
    return load(ProxySettings, prog="proxy", argv=argv)


@pytest.mark.parametrize(
    "argv",
    [
        ("--prefill", "localhost:8100", "localhost:8101", "--decode", "localhost:8200", "127.0.0.1:8201"),
        ("--prefill", "localhost:8100,localhost:8101", "--decode=localhost:8200,127.0.0.1:8201"),
        ("--prefill", "http://localhost:8100/", "--prefill", "localhost:8101", "--decode", "localhost:8200,http://127.0.0.1:8201"),
    ],
)  # fmt: skip
def test_engines_in_every_spelling(argv: tuple[str, ...]) -> None:
    settings = read("--model", "tiny", "--scheduling", "round_robin", *argv)
    assert settings.prefill == ("localhost:8100", "localhost:8101")
    assert settings.decode == ("localhost:8200", "127.0.0.1:8201")
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, "tiny")


def test_engines_and_keys_from_the_environment_and_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFILL_ENDPOINTS", "http://10.0.0.1:8100, 10.0.0.2/")
    (tmp_path / ".env").write_text("DECODE_ENDPOINTS=http://[::1]:8200\nADMIN_API_KEY=hidden\nOPENAI_API_KEY=\n")
    with pytest.raises(SystemExit):
        read()  # no port, and no scheme that implies one
    monkeypatch.setenv("PREFILL_ENDPOINTS", "http://10.0.0.1:8100, 10.0.0.2:8100/")
    settings = read()
    assert settings.prefill == ("10.0.0.1:8100", "10.0.0.2:8100")
    assert settings.decode == ("[::1]:8200",)
    assert settings.admin_api_key is not None
    assert settings.admin_api_key.get_secret_value() == "hidden"
    assert settings.openai_api_key is None
    assert "hidden" not in repr(settings)
    assert read("--decode", "localhost:1").decode == ("localhost:1",)


def test_networks_in_every_spelling() -> None:
    for flags in (("10.0.0.0/8", "::/0"), ("10.0.0.0/8,::/0",)):
        assert read("--decode", "a:1", "--instance-allow", *flags).instance_allow == ("10.0.0.0/8", "::/0")


def test_origins_as_vllm_writes_them_or_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    page, other = "https://app.example", "http://localhost:3000"
    assert read("--decode", "a:1").allowed_origins == ()  # vLLM's default
    assert read("--decode", "a:1").allowed_headers == read("--decode", "a:1").allowed_methods == ("*",)
    for flags in ((f'["{page}", "{other}"]',), (page, other), (f"{page},{other}",)):
        settings = read("--decode", "a:1", "--allow-credentials", "--allowed-origins", *flags)
        assert (settings.allowed_origins, settings.allow_credentials) == ((page, other), True)
    monkeypatch.setenv("LARDER_PROXY_ALLOWED_METHODS", '["GET", "POST"]')
    settings = read("--decode", "a:1", "--allowed-origins", '["*"]', "--allowed-headers", "[]")
    assert settings.allowed_methods == ("GET", "POST")
    assert (settings.allowed_origins, settings.allowed_headers) == (("*",), ())


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("--decode", "a:1", "--allowed-origins", '["*"'), 'not a JSON list such as ["*"]'),
        (("--decode", "a:1", "--allowed-origins", "[1]"), "--allowed-origins"),
        (("--decode", "a:1", "--allowed-origins", "https://a/b"), "'https://a/b' is not an origin such as https://"),
        ((), "no decode engine: give --decode HOST:PORT (or DECODE_ENDPOINTS), or --discover"),
        (("--decode", "a:1,b:2,a:1"), "--decode lists a:1 more than once"),
        (("--decode", "localhost"), "'localhost' is not HOST:PORT"),
        (
            ("--decode", "ftp://localhost:1"),
            "'ftp://localhost:1' is not HOST:PORT, nor a URL such as https://HOST:PORT",
        ),
        (("--decode", "http://localhost:1/../v1"), "'http://localhost:1/../v1' is not a path without .."),
        (("--decode", "https://a,https://a:443/"), "--decode lists https://a:443 more than once"),
        (
            ("--decode", "a:1", "--engine-ca-file", "/none"),
            "not a file of certificates in PEM that can be read (No such",
        ),
        (("--decode", "a:1", "--engine-ca-file", "/dev/null"), "not a file of certificates in PEM that can be read ("),
        (("--decode", "a:1", "--scheduling", "magic"), "--scheduling"),
        (("--decode", "a:1", "--request-timeout", "0"), "--request-timeout 0"),
        (("--decode", "a:1", "--workers", "0"), "--workers 0"),
        (("--decode", "a:1", "--instance-allow", "10.0.0.1/8"), "'10.0.0.1/8' is not a network such as 10.0.0.0/8"),
        (("--decode", "a:1", "--instance-allow", "localhost"), "'localhost' is not a network"),
        (("--decode", "a:1", "--otlp-endpoint", "localhost:4318"), "--otlp-endpoint localhost:4318"),
        (("--decode", "a:1", "--log-format", "xml"), "--log-format"),
        (("--decode", "a:1", "--openai-api-key", "a\nb"), "a key that goes into a header must be printable ASCII"),
        (("--decode", "a:1", "--prefil", "b:1"), "unknown flag --prefil (did you mean --prefill?)"),
    ],
)
def test_bad_settings_are_refused(argv: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read(*argv)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def start(*argv: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROXY, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310
        return response.read()


def test_the_command_serves_and_drains_on_sigterm(closed_port: str) -> None:
    process = start("--port", "0", "--prefill", "127.0.0.1:9", DECODE_ENDPOINTS=f"http://{closed_port}")
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("proxy ready: http://127.0.0.1:")
        url = line.removeprefix("proxy ready: ").strip()
        assert get(f"{url}/health") == b"alive\n"
        assert json.loads(get(f"{url}/status"))["decode_nodes"] == [closed_port]
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, rest) == (0, "")
    assert "Traceback" not in errors


async def test_a_request_under_way_is_finished_after_sigterm(start_cluster: Any, events: list[bytes]) -> None:
    cluster = await start_cluster()
    engine = cluster.decodes[0]
    engine.next_event = asyncio.Semaphore(1)
    process = await asyncio.to_thread(start, "--port", "0", "--decode", engine.address)
    assert process.stdout is not None
    try:
        line = await asyncio.to_thread(process.stdout.readline)
        url = line.removeprefix("proxy ready: ").strip()
        async with (
            aiohttp.ClientSession(url) as client,
            client.post("/v1/completions", json={"stream": True}) as response,
        ):
            await response.content.readany()
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert process.poll() is None
            for _ in events:
                engine.next_event.release()
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        _, errors = await asyncio.to_thread(process.communicate, timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors


def test_a_taken_port_is_reported_in_one_clear_line() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        process = start("--port", str(port), "--decode", "127.0.0.1:9")
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (1, "")
    assert len(errors.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in errors
    assert "choose another --port" in errors


def test_a_damaged_state_file_is_reported_in_one_clear_line(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text("{")
    output, errors = start("--port", "0", "--decode", "127.0.0.1:9", "--state-file", str(state)).communicate(timeout=30)
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith(f"proxy: {state} is not a state file of this proxy, or it is damaged")
