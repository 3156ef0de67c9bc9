"""The files that an engine computes with: weights, code and settings of its model and of a draft model.

Read whole, in the background, once for each state of a file (`files.py`). Which files: a superset of what vLLM reads,
without what only turns text into tokens or tokens into an answer, for keys name tokens. A model whose files cannot be
found or keep changing has no name, and its engine shares with nobody.
"""

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

from larder.vllm.identity.files import WEIGHT_SUFFIXES, Changed, Digests, local_folder, state_of

logger = logging.getLogger("vllm.larder")

TEXT_ONLY: Final = {
    "added_tokens.json",
    "chat_template.json",
    "generation_config.json",
    "merges.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}
"""Settings that only turn text into tokens, or tokens into an answer."""
PARSED: Final = {"config.json", "params.json"}
"""What vLLM has read into `hf_config`, which is among the facts without the paths in it."""
AS_FILES: Final = {
    "auto",
    "hf",
    "safetensors",
    "fastsafetensors",
    "instanttensor",
    "runai_streamer",
    "gguf",
    "bitsandbytes",
}
"""Load formats that read the same files of a folder in different ways."""
OTHER_FILES: Final = {"dummy", "mistral", "pt", "sharded_state", "runai_streamer_sharded"}
"""Load formats that read others of a folder's files, or none. What a format not named here reads is not known."""
TOWERS: Final = ("audio_model_id", "text_model_id")
"""In a configuration, other checkpoints that a part of the model is read from."""
RECORDS: Final = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")
NOT_THE_MODEL: Final = ("original", "checkpoint-", "runs", ".")
"""Beginnings of folders' names in which other checkpoints, or none, lie."""


def model_digest(vllm_config: Any, digests: Digests) -> str | None:
    """One text for all the files; None where they cannot be known. Reads them: minutes, for a large model."""
    model, draft = vllm_config.model_config, getattr(vllm_config, "speculative_config", None)
    found = [_digest(model, vllm_config.load_config, digests)]
    if draft is not None and (other := getattr(draft, "draft_model_config", None)) is not None:
        load = getattr(draft, "draft_load_config", None) or vllm_config.load_config
        found.append("same" if other.model == model.model else _digest(other, load, digests))
    if None in found:
        return None
    return hashlib.blake2b(json.dumps(found).encode(), digest_size=16).hexdigest()


def _digest(model: Any, load: Any, digests: Digests) -> str | None:
    name = model.model_weights or model.model
    try:
        folder = local_folder(name, model.revision, load.download_dir)
        if folder is None:
            logger.warning("the files of %s cannot be found here", name)
            return None
        root = folder if folder.is_dir() else folder.parent
        if (read_as := _read_as(load.load_format, folder)) is None:
            logger.warning("what load format %s reads is not known", load.load_format)
            return None
        weights = [] if read_as == "dummy" else weight_files(folder)
        others = list(setting_files(root, multimodal=model.multimodal_config is not None))
        others += code_files(root) if model.trust_remote_code else []
        if read_as != "dummy" and not weights:
            logger.warning("there are no weights in %s", folder)
            return None
        if Path(name).exists() and _newer_than_this_process([*weights, *others]):
            logger.warning("files in %s changed since this engine was started", folder)
            return None
        parts = [read_as, digests.folder([*weights, *others], root)]
        for tower in filter(None, (getattr(model.hf_config, key, None) for key in TOWERS)):
            if (part := local_folder(tower, cache_dir=load.download_dir)) is None:
                logger.warning("the files of %s cannot be found here", tower)
                return None
            parts.append(digests.folder(weight_files(part), part))
        for repository in _foreign_code(model):
            if (code := local_folder(repository, model.code_revision)) is None:
                logger.warning("the code in %s cannot be found here", repository)
                return None
            parts.append(digests.folder(code_files(code), code))
        return json.dumps(parts)
    except (OSError, Changed) as error:
        logger.warning("the files of %s could not be read whole: %s", name, error)
        return None


def _read_as(load_format: str, folder: Path) -> str | None:
    """The same for formats that read the same of this folder's files; None: it cannot be said what is read."""
    if load_format == "auto" and any(folder.glob("consolidated*.safetensors")):
        return "mistral"
    if load_format in AS_FILES:
        return "files"
    return load_format if load_format in OTHER_FILES else None


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's files, in the folder and below it: in each folder those of the first format there is.

    And what lies beside them as .pt, which some models read as well.
    """
    if folder.is_file():
        return [folder]
    files = _below(folder)
    first: dict[Path, str] = {}
    for suffix in reversed(WEIGHT_SUFFIXES):
        first |= {file.parent: suffix for file in files if file.suffix == suffix}
    weights = [file for file in files if file.suffix == ".pt" or file.suffix == first.get(file.parent)]
    return weights + ([file for file in files if file.name.endswith(".index.json")] if weights else [])


def code_files(folder: Path) -> list[Path]:
    """The model's own code, which vLLM runs where it is trusted."""
    return [file for file in _below(folder) if file.suffix == ".py"]


def setting_files(folder: Path, *, multimodal: bool) -> Iterable[Path]:
    """Settings that decide what is computed: of quantisation, and of processors where there are media."""
    for file in sorted(folder.glob("*.json")):
        name = file.name
        if name in TEXT_ONLY | PARSED or name in RECORDS or name.endswith(".index.json"):
            continue
        if multimodal or "processor" not in name:
            yield file


def _foreign_code(model: Any) -> list[str]:
    """Other repositories that a configuration takes its code from: `auto_map` says "owner/name--module.Class"."""
    if not model.trust_remote_code:
        return []
    named = json.dumps(getattr(model.hf_config, "auto_map", None) or {})
    return sorted({part.rsplit('"', 1)[-1] for part in named.split("--")[:-1]})


def _below(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.is_file()]
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.name.startswith(NOT_THE_MODEL):
            files += [file for file in inner.rglob("*") if file.is_file()]
    return sorted(files)


def _newer_than_this_process(files: Iterable[Path]) -> bool:
    """Whether the engine may have read other bytes than are there now: its process begins before it reads.

    Only where it has a process of its own; in another's the files may well be younger than that.
    """
    if multiprocessing.parent_process() is None:
        return False
    began = psutil.Process().create_time() * 1e9
    return any(max(state_of(file)[2:]) > began for file in files)
