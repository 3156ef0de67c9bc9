"""What an engine's weights are called: by their files, by what its user vouches for, or by a name of its own."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from larder.vllm.identity import engine
from larder.vllm.identity.engine import EngineIdentity
from larder.vllm.settings import ConnectorSettings


class Scheduler:
    weights: bytes | None = None

    def set_weights(self, weights: bytes | None) -> None:
        self.weights = weights


def config(*, supported: bool = True) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(model="org/model", revision=None, is_prefix_caching_supported=supported),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
    )


def identity(*, supported: bool = True, namespace: str = "") -> EngineIdentity:
    settings = ConnectorSettings(master="127.0.0.1:1", namespace=namespace)
    return EngineIdentity(config(supported=supported), SimpleNamespace(kv_cache_groups=[]), settings)


def named(made: EngineIdentity) -> bytes | None:
    scheduler: Any = Scheduler()
    made.wait(scheduler)
    made.close()
    return scheduler.weights  # type: ignore[no-any-return]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    found: dict[str, str | None] = {"digest": "abc"}
    monkeypatch.setattr(engine, "model_digest", lambda *_: found["digest"])
    return found


def test_engines_of_the_same_files_share(files: dict[str, str | None]) -> None:
    first = named(identity())
    assert first is not None
    assert named(identity()) == first
    files["digest"] = "abd"
    assert named(identity()) not in (first, None)


def test_an_engine_of_unknown_files_shares_with_itself_and_says_how_to_mend_it(
    files: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    files["digest"] = None
    with caplog.at_level("WARNING", logger="vllm.larder"):
        assert named(identity()) != named(identity())
    assert "`namespace`" in caplog.text
    assert named(identity(namespace="run 7")) == named(identity(namespace="run 7"))


def test_an_engine_that_cannot_use_a_store_says_why_and_reads_nothing(
    files: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="vllm.larder"):
        assert named(identity(supported=False)) is None
    assert "does not support prefix caching" in caplog.text


def test_large_files_are_read_while_the_engine_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    read = threading.Event()
    monkeypatch.setattr(engine, "START_WAIT_S", 0.01)
    monkeypatch.setattr(engine, "model_digest", lambda *_: "abc" if read.wait(10) else None)
    made, scheduler = identity(), Scheduler()
    made.wait(scheduler)  # type: ignore[arg-type]
    assert scheduler.weights is None
    read.set()
    assert made._reading is not None
    made._reading.result(10)
    made.learn(scheduler)  # type: ignore[arg-type]
    assert scheduler.weights is not None
    made.close()


def test_a_reset_before_the_files_are_read_stays(files: dict[str, str | None]) -> None:
    made, scheduler = identity(), Scheduler()
    scheduler.weights = b"renewed"
    made.wait(scheduler)  # type: ignore[arg-type]
    assert scheduler.weights == b"renewed"
    made.close()
