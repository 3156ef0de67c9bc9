"""Files are known by every byte: digests are kept for a state of a file, and never outlive it."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from larder.vllm.identity import files, model
from larder.vllm.identity.files import Changed, Digests, adapter_state

LONG_AGO_NS = 60_000_000_000


@pytest.fixture
def digests(tmp_path: Path) -> Digests:
    return Digests(tmp_path / "cache")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not rest before their digests are kept."""
    monkeypatch.setattr(files, "QUIET_NS", -LONG_AGO_NS)


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(range(256)) * 40_000)
    (folder / "model-00002-of-00002.safetensors").write_bytes(bytes(100))
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text(str(folder))
    return folder


def engine(folder: Path, **changes: Any) -> SimpleNamespace:
    settings = {
        "model": str(folder),
        "model_weights": "",
        "revision": None,
        "trust_remote_code": False,
        "code_revision": None,
        "multimodal_config": None,
        "hf_config": SimpleNamespace(),
        **changes,
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(**settings),
        load_config=SimpleNamespace(load_format=settings.get("load_format", "auto"), download_dir=None),
        speculative_config=None,
    )


@pytest.mark.parametrize("at", [0, 1, 5_000_000, 10_239_999])
def test_one_byte_anywhere_in_a_checkpoint_counts(tmp_path: Path, digests: Digests, at: int) -> None:
    folder = checkpoint(tmp_path / "model")
    before = model.model_digest(engine(folder), digests)
    with (folder / "model-00001-of-00002.safetensors").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    assert before is not None
    assert model.model_digest(engine(folder), digests) not in (before, None)


def test_the_same_files_elsewhere_are_the_same(tmp_path: Path, digests: Digests) -> None:
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert model.model_digest(engine(one), digests) == model.model_digest(engine(two), digests)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "NOTICE", "pytorch_model.bin", "a.py"])
def test_files_that_are_not_read_or_only_make_tokens_do_not_count(tmp_path: Path, digests: Digests, name: str) -> None:
    folder = checkpoint(tmp_path / "model")
    before = model.model_digest(engine(folder), digests)
    (folder / name).write_text("other")
    assert model.model_digest(engine(folder), digests) == before


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("modeling_mine.py", {"trust_remote_code": True}),
        ("inner/layers.py", {"trust_remote_code": True}),
        ("preprocessor_config.json", {"multimodal_config": object()}),
        ("processor_config.json", {"multimodal_config": object()}),
        ("video_preprocessor_config.json", {"multimodal_config": object()}),
        ("tekken.json", {"multimodal_config": object()}),
        ("hf_quant_config.json", {}),
        ("quantize_config.json", {}),
        ("encoder/weights.safetensors", {}),
    ],
)
def test_code_settings_and_weights_beside_the_checkpoint_count(
    tmp_path: Path, digests: Digests, name: str, settings: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path / "model")
    names = [model.model_digest(engine(folder, **settings), digests)]
    (folder / name).parent.mkdir(exist_ok=True)
    for text in ("one", "two"):
        (folder / name).write_text(text)
        names.append(model.model_digest(engine(folder, **settings), digests))
    assert len(set(names) - {None}) == 3


def test_a_text_model_does_not_read_processors(tmp_path: Path, digests: Digests) -> None:
    folder = checkpoint(tmp_path / "model")
    before = model.model_digest(engine(folder), digests)
    (folder / "preprocessor_config.json").write_text("{}")
    assert model.model_digest(engine(folder), digests) == before


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".gguf"])
def test_other_formats_count_where_there_is_no_safetensors(tmp_path: Path, digests: Digests, suffix: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    names = []
    for byte in (b"a", b"b"):
        (folder / f"weights{suffix}").write_bytes(byte)
        names.append(model.model_digest(engine(folder), digests))
    assert len(set(names) - {None}) == 2


def test_a_single_file_is_a_model(tmp_path: Path, digests: Digests) -> None:
    file = tmp_path / "model.gguf"
    names = []
    for byte in (b"a", b"b"):
        file.write_bytes(byte)
        names.append(model.model_digest(engine(file), digests))
    assert len(set(names) - {None}) == 2


def test_random_weights_are_not_those_of_the_folder(tmp_path: Path, digests: Digests) -> None:
    folder = checkpoint(tmp_path / "model")
    random = model.model_digest(engine(folder, load_format="dummy"), digests)
    assert random not in (None, model.model_digest(engine(folder), digests))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"other")
    assert model.model_digest(engine(folder, load_format="dummy"), digests) == random


def test_a_draft_models_weights_count(tmp_path: Path, digests: Digests) -> None:
    folder, draft = checkpoint(tmp_path / "model"), checkpoint(tmp_path / "draft")
    names = [model.model_digest(engine(folder), digests)]
    for byte in (b"a", b"b"):
        (draft / "model-00002-of-00002.safetensors").write_bytes(byte)
        drafting = engine(folder)
        drafting.speculative_config = SimpleNamespace(draft_model_config=engine(draft).model_config)
        names.append(model.model_digest(drafting, digests))
    assert len(set(names) - {None}) == 3


def test_a_model_from_the_hub_is_its_bytes_too(tmp_path: Path, digests: Digests) -> None:
    local = checkpoint(tmp_path / "model")
    cache = tmp_path / "hub" / "models--org--model"
    for folder in ("refs", "blobs", "snapshots/abc"):
        (cache / folder).mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    for file in local.iterdir():
        (cache / "blobs" / file.name).write_bytes(file.read_bytes())
        (cache / "snapshots" / "abc" / file.name).symlink_to(f"../../blobs/{file.name}")

    def named() -> str | None:
        made = engine(local, model="org/model")
        made.load_config.download_dir = str(tmp_path / "hub")
        return model.model_digest(made, digests)

    assert named() == model.model_digest(engine(local), digests)
    (cache / "blobs" / "model-00002-of-00002.safetensors").write_bytes(b"other")
    assert named() not in (model.model_digest(engine(local), digests), None)


def test_code_that_a_configuration_takes_from_elsewhere_counts(tmp_path: Path, digests: Digests) -> None:
    folder, code = checkpoint(tmp_path / "model"), tmp_path / "code"
    code.mkdir()
    config = SimpleNamespace(auto_map={"AutoModel": f"{code}--modeling.Model"})
    names = [model.model_digest(engine(folder, trust_remote_code=True, hf_config=config), digests)]
    for text in ("one", "two"):
        (code / "modeling.py").write_text(text)
        names.append(model.model_digest(engine(folder, trust_remote_code=True, hf_config=config), digests))
    assert len(set(names) - {None}) == 3
    code.rename(tmp_path / "gone")
    assert model.model_digest(engine(folder, trust_remote_code=True, hf_config=config), digests) is None


@pytest.mark.parametrize("name", ["nobody/nowhere", "/nowhere/at/all", "s3://bucket/model"])
def test_a_model_that_is_not_on_this_host_has_no_name(digests: Digests, name: str) -> None:
    assert model.model_digest(engine(Path(name), model=name), digests) is None


def test_an_empty_folder_has_no_name(tmp_path: Path, digests: Digests) -> None:
    assert model.model_digest(engine(tmp_path), digests) is None


def test_files_that_changed_since_the_engine_began_have_no_name(
    tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "model")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: time.time() - 60)
    assert model.model_digest(engine(folder), digests) is None
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: time.time() + 60)
    assert model.model_digest(engine(folder), digests) is not None


@pytest.mark.usefixtures("settled")
def test_a_digest_is_made_once_for_a_state_of_a_file(tmp_path: Path, digests: Digests) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    first = digests.file(file)
    kept = next((tmp_path / "cache").iterdir())
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"digest": "from the cache"}))
    assert digests.file(file) == "from the cache"
    times = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # the time of its last change cannot be set back
    assert digests.file(file) not in (first, "from the cache")


def test_the_digest_of_a_file_that_just_changed_is_not_kept(tmp_path: Path, digests: Digests) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    digests.file(file)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": [], "digest": 1}', "null"])
@pytest.mark.usefixtures("settled")
def test_a_damaged_cache_is_no_cache(tmp_path: Path, digests: Digests, text: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    right = digests.file(file)
    next((tmp_path / "cache").iterdir()).write_text(text)
    assert digests.file(file) == right


@pytest.mark.usefixtures("settled")
def test_the_cache_forgets_the_oldest(tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "KEPT_MAX", 3)
    for i in range(6):
        (tmp_path / f"{i}").write_bytes(bytes([i]))
        digests.file(tmp_path / f"{i}")
    kept = [json.loads(entry.read_text())["path"] for entry in (tmp_path / "cache").iterdir()]
    assert len(kept) == 3
    assert str(tmp_path / "5") in kept


def test_without_a_place_for_the_cache_digests_are_made_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    (tmp_path / "file").write_bytes(b"one")
    assert Digests(tmp_path / "cache").file(tmp_path / "file") == Digests(tmp_path / "other").file(tmp_path / "file")


def test_a_file_that_changes_while_it_is_read_has_no_digest(
    tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    monkeypatch.setattr(digests, "_progress", lambda *_: file.write_bytes(b"two"))
    with pytest.raises(Changed):
        digests.file(file)


def test_an_engine_that_ends_does_not_read_on(tmp_path: Path, digests: Digests) -> None:
    digests.close()
    (tmp_path / "file").write_bytes(b"one")
    with pytest.raises(Changed):
        digests.file(tmp_path / "file")


def test_progress_is_told_of_long_reads(
    tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "PROGRESS_S", 0.0)
    with caplog.at_level("INFO", logger="vllm.larder"):
        digests.folder(checkpoint(tmp_path / "model").glob("*.safetensors"), tmp_path)
    assert "of 0.0 GB" in caplog.text


def test_an_adapters_state_is_that_of_the_files_it_is_read_from(tmp_path: Path) -> None:
    assert adapter_state(str(tmp_path)) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    before = adapter_state(str(tmp_path))
    (tmp_path / "README.md").write_text("one")
    assert adapter_state(str(tmp_path)) == before
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert adapter_state(str(tmp_path)) not in (before, None)
