"""Where a setting comes from, and that everything that cannot be understood is refused in one line with status 2."""

import re
from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from services.common.settings import HostPorts, Port, ServiceSettings, Size, load
from services.common.version import VERSION


class Settings(ServiceSettings):
    """A service for the tests."""

    other_env = {"ENDPOINTS": "peers", "API_KEY": "api_key"}  # noqa: RUF012  (as a ClassVar in the base)

    dram: Size = Field(description="bytes of memory")
    port: Port = 50001
    peers: HostPorts = ()
    masters: HostPorts = Field(("m:1",), min_length=1)
    spill: bool = False
    api_key: SecretStr | None = None


@pytest.fixture(autouse=True)
def _clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ENDPOINTS", "API_KEY"):
        monkeypatch.delenv(name, raising=False)


def read(*argv: str) -> Settings:
    return load(Settings, prog="test-store", argv=argv)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    with pytest.raises(SystemExit) as stopped:
        read(*argv)
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert lines
    assert all(line.startswith("test-store: ") for line in lines)
    return [line.removeprefix("test-store: ") for line in lines]


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "store.yaml"
    assert read("--dram", "1GB").port == 50001
    config.write_text("dram: 1GB\nport: 1\n")
    assert read("--config", str(config)).port == 1
    monkeypatch.setenv("LARDER_TEST_STORE_PORT", "2")
    assert read("--config", str(config)).port == 2
    assert read("--config", str(config), "--port", "3").port == 3
    assert read("--config", str(config), "--port", "50001").port == 50001  # also where the flag says the default


def test_the_file_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "store.yaml"
    config.write_text("dram: 4096\nspill: true\npeers: [a:1, b:2]\n")
    monkeypatch.setenv("LARDER_TEST_STORE_CONFIG", str(config))
    assert read() == Settings(config=config, dram=4096, spill=True, peers=("a:1", "b:2"))


def test_other_variables_and_dotenv_fill_a_field_below_the_own_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("ENDPOINTS=file:1\nAPI_KEY=hidden\n")
    settings = read("--dram", "1GB")
    assert settings.peers == ("file:1",)
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "hidden"
    monkeypatch.setenv("ENDPOINTS", "env:1")
    assert read("--dram", "1GB").peers == ("env:1",)
    monkeypatch.setenv("LARDER_TEST_STORE_PEERS", "own:1,own:2")
    assert read("--dram", "1GB").peers == ("own:1", "own:2")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4096", 4096), ("512MiB", 512 * 2**20), ("2GB", 2 * 10**9), ("1.5 kib", 1536), ("3g", 3 * 10**9)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert read("--dram", text).dram == size_bytes


@pytest.mark.parametrize("text", ["2XB", "1,5GB", "2GB!", "GB", "-1", "", "8Gbit"])
def test_bad_sizes_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refusal(capsys, f"--dram={text}")
    assert line.startswith(f"--dram {text}: not a size")


def test_a_size_of_zero_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--dram", "0") == ["--dram 0: Input should be greater than 0"]


def test_lists_take_every_spelling() -> None:
    settings = read("--dram", "1GB", "--peers", "a:1", "b:2", "--peers", "c:3,d:4", "--peers=[::1]:5", "--spill")
    assert settings.peers == ("a:1", "b:2", "c:3", "d:4", "[::1]:5")
    assert settings.spill


def test_unknown_flags_are_refused_with_a_near_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--dramm", "1GB", "--wholly=1") == [
        "unknown flag --dramm (did you mean --dram?)",
        "unknown flag --wholly",
    ]
    assert refusal(capsys, "--dram", "1GB", "--por", "1") == ["unknown flag --por (did you mean --port?)"]
    assert refusal(capsys, "--dram", "1GB", "stray")[0].startswith("unexpected argument 'stray'")
    assert refusal(capsys, "--dram", "1GB", "--port") == ["argument --port: expected one argument"]


def test_an_unknown_variable_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARDER_TEST_STORE_DARM", "1GB")
    monkeypatch.setenv("LARDER_OTHER_SERVICE_DARM", "1GB")  # not this service's
    assert refusal(capsys, "--dram", "1GB") == [
        "unknown environment variable LARDER_TEST_STORE_DARM (did you mean LARDER_TEST_STORE_DRAM?)"
    ]


def test_unknown_keys_of_the_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "store.yaml"
    config.write_text("dram: 1GB\nprot: 1\nconfig: other.yaml\n")
    assert refusal(capsys, "--config", str(config)) == [
        f"unknown key prot (did you mean port?) in {config}",
        f"unknown key config in {config}",
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("dram: [", "is not YAML: while parsing"), ("- dram", "must hold `key: value` lines, not a list")],
)
def test_a_broken_file_is_refused(
    content: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "store.yaml"
    config.write_text(content)
    (line,) = refusal(capsys, "--config", str(config))
    assert line.startswith(f"{config} {complaint}")


def test_a_missing_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--config", "nowhere.yaml") == [
        "cannot read the settings file nowhere.yaml: No such file or directory"
    ]


def test_a_bad_value_names_its_origin_and_each_has_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "store.yaml"
    config.write_text("spill: perhaps\n")
    monkeypatch.setenv("LARDER_TEST_STORE_PORT", "65536")
    monkeypatch.setenv("ENDPOINTS", "a:1,b")
    lines = refusal(capsys, "--config", str(config), "--dram", "2XB", "--log-level", "loud")
    assert len(lines) == 5
    assert any(line.startswith("--dram 2XB: not a size") for line in lines)
    assert any(line.startswith("--log-level loud: Input should be 'debug'") for line in lines)
    assert any(line.startswith("LARDER_TEST_STORE_PORT 65536: Input should be less than") for line in lines)
    assert any(line.startswith(f"spill in {config} perhaps: Input should be a valid boolean") for line in lines)
    assert "ENDPOINTS b: 'b' is not HOST:PORT" in lines


def test_each_bad_item_of_a_list_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--dram", "1GB", "--masters", "a", "b:0") == [
        "--masters a: 'a' is not HOST:PORT",
        "--masters b:0: 'b:0' is not HOST:PORT",
    ]
    assert refusal(capsys, "--dram", "1GB", "--masters", "")[0].startswith("--masters []: Tuple should have at least 1")


def test_a_missing_setting_says_every_way_to_give_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys) == ["--dram is required (or LARDER_TEST_STORE_DRAM, or dram in the file given by --config)"]


def test_a_secret_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "store.yaml"
    config.write_text("dram: 1GB\napi-key: 12345\n")  # a number, not a string
    (line,) = refusal(capsys, "--config", str(config))
    assert "api-key" in line
    assert "12345" not in line


def test_made_directly_it_looks_at_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "5")
    monkeypatch.setenv("LARDER_TEST_STORE_PORT", "6")
    assert Settings(dram=1).port == 50001


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, shown in ((["--version"], f"test-store {VERSION}\n"), (["--help"], "--dram SIZE")):
        with pytest.raises(SystemExit) as stopped:
            read(*argv)
        assert stopped.value.code == 0
        assert shown in capsys.readouterr().out


def test_help_shows_values_as_they_are_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        read("--help")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("(default: m:1)") for line in lines)
    assert any(line.split() == ["--api-key", "TEXT"] for line in lines)
    assert not [line for line in lines if re.search(r"default: (None|\()|default: \)|SecretStr", line)]
