"""What decides KV bytes decides what is shared: real vLLM engines whose weights, adapters or media differ, or do not.

Each scene of identity_scenes.py is a few engines over one store; whatever is answered with the store's help is compared
with what the same engine answers without, and each has a control that must still hit.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import Cluster
from demo.tiny_model import make_model
from tests.e2e.tiny_models import make_audio_model, make_latent_model

SCENES = Path(__file__).with_name("identity_scenes.py")
DEADLINE_S = 400.0
PROMPT = 192  # of 200 tokens, those in whole blocks
BEFORE_SOUND = 32
pytestmark = pytest.mark.timeout(DEADLINE_S + 30)


@pytest.fixture(scope="module")
def scenes(store_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was answered, by scene."""
    folder = tmp_path_factory.mktemp("scenes")
    make_model(folder / "model")
    make_audio_model(folder / "audio", tokenizer=folder / "model")
    make_latent_model(folder / "latent", tokenizer=folder / "model")
    argv = [sys.executable, SCENES, store_cluster.master, folder]
    played = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S)
    lines = [line.removeprefix("SCENE ") for line in played.stdout.splitlines() if line.startswith("SCENE ")]
    assert played.returncode == 0, (played.stdout + played.stderr)[-8000:]
    return {scene["scene"]: scene["answers"] for scene in map(json.loads, lines)}


def same(answer: dict[str, Any], other: dict[str, Any], *, cached: int) -> bool:
    """Whether the first is the second's answer, and `cached` tokens of its prompt came from the store."""
    return (answer["tokens"], answer["cached"]) == (other["tokens"], cached)


def test_a_model_is_its_bytes_wherever_it_lies(scenes: dict[str, Any]) -> None:
    seen = scenes["weights"]
    assert same(seen["elsewhere"], seen["first"], cached=PROMPT)
    assert seen["changed, plain"]["tokens"] != seen["first"]["tokens"]
    assert same(seen["changed"], seen["changed, plain"], cached=0)
    assert same(seen["changed, again"], seen["changed, plain"], cached=PROMPT)


def test_weights_reloaded_in_a_running_engine_leave_what_others_share_alone(scenes: dict[str, Any]) -> None:
    seen = scenes["reload"]
    assert seen["reset"] is True
    assert seen["reloaded, plain"]["tokens"] != seen["first"]["tokens"]
    assert same(seen["reloaded"], seen["reloaded, plain"], cached=0)
    assert same(seen["reloaded, again"], seen["reloaded, plain"], cached=PROMPT)
    assert same(seen["old"], seen["first"], cached=PROMPT)
    assert seen["old, other, plain"]["tokens"] != seen["reloaded, other"]["tokens"]
    assert same(seen["old, other"], seen["old, other, plain"], cached=0)


def test_weights_reloaded_without_a_reset_are_noticed(scenes: dict[str, Any]) -> None:
    seen = scenes["reload"]
    assert same(seen["back, not reset"], seen["first"], cached=0)
    assert same(seen["back, again"], seen["first"], cached=PROMPT)


def test_an_adapter_is_its_bytes_whatever_it_is_called(scenes: dict[str, Any]) -> None:
    seen = scenes["adapters"]
    assert seen["first"]["tokens"] != seen["base"]["tokens"]
    assert same(seen["moved"], seen["first"], cached=PROMPT)
    assert same(seen["base again"], seen["base"], cached=PROMPT)
    assert seen["applied elsewhere, plain"]["tokens"] != seen["first"]["tokens"]
    assert same(seen["applied elsewhere"], seen["applied elsewhere, plain"], cached=0)
    assert seen["trained anew, plain"]["tokens"] != seen["first"]["tokens"]
    assert same(seen["trained anew"], seen["trained anew, plain"], cached=0)
    assert same(seen["trained anew, again"], seen["trained anew, plain"], cached=PROMPT)


def test_an_adapter_whose_files_were_exchanged_is_what_the_engine_has_read(scenes: dict[str, Any]) -> None:
    seen = scenes["adapters"]
    assert same(seen["files exchanged"], seen["trained anew, plain"], cached=0)
    assert same(seen["read anew"], seen["first"], cached=0)


def test_sounds_are_shared_by_content_and_by_chosen_names_within_a_salt(scenes: dict[str, Any]) -> None:
    seen = scenes["media"]
    assert seen["again"]["tokens"] == seen["first"]["tokens"]
    assert seen["again"]["cached"] > BEFORE_SOUND + 50
    assert seen["other sound, plain"]["tokens"] != seen["first"]["tokens"]
    assert same(seen["other sound"], seen["other sound, plain"], cached=BEFORE_SOUND)
    assert same(seen["chosen again"], seen["first"], cached=seen["again"]["cached"])
    assert same(seen["other salt"], seen["first"], cached=0)


def test_sounds_that_vllm_only_numbers_are_not_shared_but_the_text_before_them_is(scenes: dict[str, Any]) -> None:
    seen = scenes["media"]
    assert same(seen["counted 1"], seen["counted 1, plain"], cached=BEFORE_SOUND)
    assert same(seen["counted 2"], seen["counted 2, plain"], cached=BEFORE_SOUND)
    assert seen["counted 2"]["tokens"] != seen["counted 1"]["tokens"]


def test_a_processor_that_hears_otherwise_shares_nothing(scenes: dict[str, Any]) -> None:
    seen = scenes["processor"]
    assert seen["again"]["cached"] > BEFORE_SOUND + 50
    assert seen["n_fft, plain"]["tokens"] != seen["first"]["tokens"]
    assert same(seen["n_fft"], seen["n_fft, plain"], cached=0)


def test_names_that_clients_chose_need_not_be_trusted(scenes: dict[str, Any]) -> None:
    seen = scenes["processor"]
    assert same(seen["chosen again"], seen["first"], cached=seen["again"]["cached"])
    assert seen["chosen, other sound"]["tokens"] != seen["first"]["tokens"]
    assert seen["chosen, other sound"]["cached"] == BEFORE_SOUND


def test_an_engine_that_cannot_go_on_from_a_prefix_is_offered_none(scenes: dict[str, Any]) -> None:
    seen = scenes["prefixes"]
    first, second = seen["mean"]
    assert same(second, first, cached=0)
    first, second = seen["latent"]
    assert same(first, seen["latent, plain"], cached=0)
    assert same(second, seen["latent, plain"], cached=0)


def test_an_engine_whose_user_wants_no_cache_of_its_own_loads_all_the_same(scenes: dict[str, Any]) -> None:
    first, second = scenes["prefixes"]["own cache off"]
    assert same(second, first, cached=PROMPT)
