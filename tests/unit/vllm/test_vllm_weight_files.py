"""Which of a folder's files a model's weights are read from, for each load format."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from larder.vllm.identity import model
from larder.vllm.identity.files import Digests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model", "model.safetensors", "config.json")


def write(folder: Path, *names: str, text: str = "one") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def name_of(folder: Path, *, load_format: str = "auto", **config: Any) -> str | None:
    """What the weights are called by an engine that reads them now."""
    settings = SimpleNamespace(
        model=str(folder),
        model_weights="",
        revision=None,
        trust_remote_code=False,
        code_revision=None,
        multimodal_config=None,
        hf_config=SimpleNamespace(**config),
    )
    load = SimpleNamespace(load_format=load_format, download_dir=None)
    digests = Digests(folder.parent / "cache")
    return model.model_digest(SimpleNamespace(model_config=settings, load_config=load), digests)


@pytest.mark.parametrize(
    ("load_format", "name"),
    [
        ("auto", "model.safetensors"),
        ("safetensors", "model.safetensors"),
        ("mistral", "consolidated.safetensors"),
        ("pt", "weights.pt"),
        ("auto", "mask_embedding.pt"),
        ("sharded_state", "model-rank-0-part-0.safetensors"),
    ],
)
def test_what_a_load_format_reads_is_in_the_name(folder: Path, load_format: str, name: str) -> None:
    write(folder, name)
    before = name_of(folder, load_format=load_format)
    write(folder, name, text="two")
    assert name_of(folder, load_format=load_format) not in (None, before)
    write(folder, name)
    assert name_of(folder, load_format=load_format) == before


def test_formats_that_read_other_files_of_one_folder_are_told_apart(folder: Path) -> None:
    write(folder, "consolidated.safetensors", "weights.pt")
    names = [name_of(folder, load_format=name) for name in ("auto", "safetensors", "pt", "sharded_state", "dummy")]
    assert len(set(names) - {None}) == len(names)
    assert name_of(folder, load_format="mistral") == names[0]


def test_ways_to_read_the_same_files_share(folder: Path) -> None:
    names = {name_of(folder, load_format=name) for name in ("auto", "hf", "safetensors", "fastsafetensors")}
    assert len(names) == 1
    assert None not in names


@pytest.mark.parametrize("load_format", ["tensorizer", "npcache", "ipc_cache", "modelexpress", "somebodys_own"])
def test_what_an_unknown_format_reads_has_no_name(
    folder: Path, load_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="vllm.larder"):
        assert name_of(folder, load_format=load_format) is None
    assert load_format in caplog.text


def test_each_folder_has_a_format_of_its_own(tmp_path: Path) -> None:
    """As sentence-transformers lays them out: the model in one format, a layer on top of it in another."""
    folder = write(tmp_path / "model", "pytorch_model.bin", "2_Dense/model.safetensors")
    names = {name_of(folder)}
    for name in ("pytorch_model.bin", "2_Dense/model.safetensors"):
        write(folder, name, text="two")
        names.add(name_of(folder))
    assert len(names - {None}) == 3


def test_checkpoints_that_a_configuration_names_are_part_of_the_model(folder: Path, tmp_path: Path) -> None:
    """Ultravox reads its language model and its encoder from folders, or repositories, of their own."""
    other = write(tmp_path / "language", "model.safetensors")
    names = [name_of(folder), name_of(folder, text_model_id=str(other))]
    write(other, "model.safetensors", text="two")
    names.append(name_of(folder, text_model_id=str(other)))
    assert len(set(names) - {None}) == 3
    assert name_of(folder, audio_model_id=str(tmp_path / "nowhere")) is None
