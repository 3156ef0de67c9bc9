"""Scenes in which an engine's or a request's identity decides, each with engines opened one after the other.

`python identity_scenes.py MASTER FOLDER SCENE…` plays them in one process, for opening a second engine costs a fraction
of the first; engines of a real cluster share as little as these do. One line of JSON a scene says what was answered:
tokens, and how many of the prompt's were cached. The tests judge them.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.cluster import ENGINE_ENV

os.environ.update(ENGINE_ENV | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})

import numpy as np
from tiny_models import AUDIO_S, SAMPLES_A_S, change_tensor, make_adapter
from vllm import LLM, PoolingParams, SamplingParams
from vllm.config import KVTransferConfig
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest

BLOCK = 32
DRAIN_S = 20.0
Answer = dict[str, Any]
SCENES: dict[str, Callable[["Stage"], dict[str, Any]]] = {}


class Engine:
    """One vLLM, its prompts and how they are answered."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._core = llm.llm_engine.engine_core.engine_core

    def ask(
        self,
        prompt: Any,
        *,
        lora: LoRARequest | None = None,
        plain: bool = False,
        keep: bool = False,
        settle: bool = True,
    ) -> Answer:
        """Eight tokens at temperature 0; `plain`: all of it computed. Afterwards saves have ended, and the engine's own
        cache is empty; with `keep` it is as it was, and without `settle` both are."""
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, skip_reading_prefix_cache=plain)
        prompt = {"prompt_token_ids": prompt} if isinstance(prompt, list) else prompt
        [output] = self.llm.generate([prompt], params, use_tqdm=False, lora_request=lora)
        if settle:
            self._settle(keep=keep)
        return {"tokens": list(output.outputs[0].token_ids), "cached": output.num_cached_tokens}

    def embed(self, prompt: list[int]) -> Answer:
        [output] = self.llm.encode(
            [{"prompt_token_ids": prompt}], PoolingParams(), pooling_task="embed", use_tqdm=False
        )
        self._settle(keep=True)
        return {"tokens": output.outputs.data.tolist()[:4], "cached": output.num_cached_tokens}

    def _settle(self, *, keep: bool) -> None:
        deadline = time.monotonic() + DRAIN_S
        while self._core.scheduler.has_requests():
            self.llm.llm_engine.step()
            time.sleep(0.001)
            if time.monotonic() > deadline:
                raise RuntimeError("the engine still has requests or saves")
        if not keep and not self.llm.reset_prefix_cache():
            raise RuntimeError("blocks are still in use")


class Stage:
    """Where scenes find the store and their models."""

    def __init__(self, master: str, folder: Path) -> None:
        self.master = master
        self.folder = folder

    def copy(self, model: str, name: str) -> Path:
        return Path(shutil.copytree(self.folder / model, self.folder / name))

    @contextmanager
    def engine(self, model: str | Path, *, extra: dict[str, Any] | None = None, **options: Any) -> Iterator[Engine]:
        transfer = KVTransferConfig(
            kv_connector="LarderConnector",
            kv_connector_module_path="larder.vllm",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={"master": self.master, "chunk_blocks": 1, **(extra or {})},
        )
        settings = {"dtype": "float32", "max_model_len": 512, "block_size": BLOCK, "num_gpu_blocks_override": 64}
        llm = LLM(
            model=str(self.folder / model),
            kv_transfer_config=transfer,
            enforce_eager=True,
            distributed_executor_backend="uni",
            **settings | options,
        )
        try:
            yield Engine(llm)
        finally:
            llm.llm_engine.engine_core.shutdown()
            cleanup_dist_env_and_memory()


def scene(play: Callable[[Stage], dict[str, Any]]) -> Callable[[Stage], dict[str, Any]]:
    SCENES[play.__name__] = play
    return play


def prompt_of(seed: int, tokens: int = 200) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(5, 500, tokens)]


def heard(seed: int, **more: Any) -> dict[str, Any]:
    """A sound between two texts, which are the same for all sounds."""
    rng = np.random.default_rng(seed)
    at = np.arange(AUDIO_S * SAMPLES_A_S) / SAMPLES_A_S
    sound = sum(rng.uniform(0.1, 1) * np.sin(2 * np.pi * rng.uniform(100, 4000) * at) for _ in range(4))
    before, after = "the quick brown fox " * 8, " jumps over the lazy dog" * 8
    text = f"{before}<|audio_bos|><|AUDIO|><|audio_eos|>{after}"
    return {"prompt": text, "multi_modal_data": {"audio": (sound.astype(np.float32), SAMPLES_A_S)}, **more}


@scene
def weights(stage: Stage) -> dict[str, Any]:
    """The same model elsewhere; then one number of one tensor changed in place; then a reload in a running engine."""
    answers = {}
    model, prompt = stage.copy("model", "weights"), prompt_of(1)
    with stage.engine(model) as engine:
        answers["first"] = engine.ask(prompt)
    other = stage.copy("model", "weights-elsewhere")
    with stage.engine(other) as engine:
        answers["elsewhere"] = engine.ask(prompt)
    change_tensor(model, "model.layers.0.input_layernorm.weight")
    with stage.engine(model) as engine:
        answers["changed"] = engine.ask(prompt)
        answers["changed, plain"] = engine.ask(prompt, plain=True)
        answers["changed, again"] = engine.ask(prompt)
    return answers


@scene
def reload(stage: Stage) -> dict[str, Any]:
    """New weights in a running engine, with a reset and without; another engine still has the old ones."""
    answers: dict[str, Any] = {}
    model, prompt, other = stage.copy("model", "reload"), prompt_of(2), prompt_of(3)
    trained = stage.copy("model", "reload-trained")
    change_tensor(trained, "model.layers.0.input_layernorm.weight")
    with stage.engine(model) as engine:
        answers["first"] = engine.ask(prompt)
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(trained)})
        engine.ask(prompt_of(6), settle=False)  # its saves have not ended yet
        answers["reset"] = engine.llm.reset_prefix_cache(reset_connector=True)
        answers["reloaded"] = engine.ask(prompt)
        answers["reloaded, plain"] = engine.ask(prompt, plain=True)
        answers["reloaded, again"] = engine.ask(prompt)
        answers["reloaded, other"] = engine.ask(other)
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
        answers["back, not reset"] = engine.ask(prompt)
        answers["back, again"] = engine.ask(prompt)
    with stage.engine(model) as engine:
        answers["old"] = engine.ask(prompt)
        answers["old, other"] = engine.ask(other)
        answers["old, other, plain"] = engine.ask(other, plain=True)
    return answers


@scene
def adapters(stage: Stage) -> dict[str, Any]:
    """An adapter at two paths; trained anew in place; exchanged in a running engine."""
    answers, prompt = {}, prompt_of(4)
    path, moved = stage.folder / "adapter", stage.folder / "adapter-moved"
    make_adapter(path, stage.folder / "model", seed=1)
    shutil.copytree(path, moved)
    options: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8}
    with stage.engine("model", **options) as engine:
        answers["first"] = engine.ask(prompt, lora=LoRARequest("one", 1, str(path)))
        answers["base"] = engine.ask(prompt)
    with stage.engine("model", **options) as engine:
        answers["moved"] = engine.ask(prompt, lora=LoRARequest("two", 1, str(moved)))
        answers["base again"] = engine.ask(prompt)
    with stage.engine("model", lora_target_modules=["o_proj"], **options) as engine:
        lora = LoRARequest("two", 1, str(moved))
        answers["applied elsewhere"] = engine.ask(prompt, lora=lora)
        answers["applied elsewhere, plain"] = engine.ask(prompt, lora=lora, plain=True)
    make_adapter(path, stage.folder / "model", seed=2)
    with stage.engine("model", **options) as engine:
        lora = LoRARequest("one", 1, str(path))
        answers["trained anew"] = engine.ask(prompt, lora=lora)
        answers["trained anew, plain"] = engine.ask(prompt, lora=lora, plain=True)
        answers["trained anew, again"] = engine.ask(prompt, lora=lora)
        make_adapter(path, stage.folder / "model", seed=1)
        answers["files exchanged"] = engine.ask(prompt, lora=lora)
        in_place = LoRARequest("one", 1, str(path), load_inplace=True)
        answers["read anew"] = engine.ask(prompt, lora=in_place)
    return answers


@scene
def media(stage: Stage) -> dict[str, Any]:
    """Sounds named by content, by a counter, and by clients; then by a processor that hears otherwise."""
    answers = {}
    with stage.engine("audio") as engine:
        answers["first"] = engine.ask(heard(1))
        answers["chosen"] = engine.ask(heard(1, multi_modal_uuids={"audio": "mine"}))
        answers["salted"] = engine.ask(heard(1, multi_modal_uuids={"audio": "mine"}, cache_salt="a"))
    with stage.engine("audio") as engine:
        answers["again"] = engine.ask(heard(1))
        answers["other sound"] = engine.ask(heard(2))
        answers["other sound, plain"] = engine.ask(heard(2), plain=True)
        answers["chosen again"] = engine.ask(heard(1, multi_modal_uuids={"audio": "mine"}))
        answers["other salt"] = engine.ask(heard(1, multi_modal_uuids={"audio": "mine"}, cache_salt="b"))
    for number in (1, 2):
        with stage.engine("audio", mm_processor_cache_gb=0, enable_prefix_caching=False) as engine:
            answers[f"counted {number}"] = engine.ask(heard(number), keep=True)
            answers[f"counted {number}, plain"] = engine.ask(heard(number), plain=True, keep=True)
    return answers


@scene
def processor(stage: Stage) -> dict[str, Any]:
    """The processor's settings changed at the same path, and clients' identifiers not trusted."""
    answers = {}
    model = stage.copy("audio", "audio-processor")
    extra, chosen = {"media_by_content": True}, {"multi_modal_uuids": {"audio": "its"}}
    with stage.engine(model, extra=extra) as engine:
        answers["first"] = engine.ask(heard(3))
        answers["chosen"] = engine.ask(heard(3, **chosen))
    with stage.engine(model, extra=extra) as engine:
        answers["again"] = engine.ask(heard(3))
        answers["chosen again"] = engine.ask(heard(3, **chosen))
    with stage.engine(model, extra=extra) as engine:
        answers["chosen, other sound"] = engine.ask(heard(4, **chosen))
    for file in model.glob("*processor*.json"):
        file.write_text(file.read_text().replace('"n_fft": 400', '"n_fft": 256'))
    with stage.engine(model) as engine:
        answers["n_fft"] = engine.ask(heard(3))
        answers["n_fft, plain"] = engine.ask(heard(3), plain=True)
    return answers


@scene
def prefixes(stage: Stage) -> dict[str, Any]:
    """Engines that cannot go on from a prefix, and one whose user only wants no cache of its own."""
    answers, prompt = {}, prompt_of(5)
    pooling = {"runner": "pooling", "convert": "embed", "pooler_config": {"seq_pooling_type": "MEAN"}}
    with stage.engine("model", **pooling) as engine:
        answers["mean"] = [engine.embed(prompt) for _ in range(2)]
    with stage.engine("latent", dtype="bfloat16", block_size=16, attention_config={"backend": "CPU_MLA"}) as engine:
        answers["latent"] = [engine.ask(prompt, keep=True) for _ in range(2)]
        answers["latent, plain"] = engine.ask(prompt, plain=True, keep=True)
    with stage.engine("model", enable_prefix_caching=False) as engine:
        answers["own cache off"] = [engine.ask(prompt, keep=True) for _ in range(2)]
    return answers


def main() -> None:
    stage = Stage(sys.argv[1], Path(sys.argv[2]))
    for name in sys.argv[3:] or list(SCENES):
        began = time.monotonic()
        answers = SCENES[name](stage)
        print("SCENE " + json.dumps({"scene": name, "answers": answers, "s": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
