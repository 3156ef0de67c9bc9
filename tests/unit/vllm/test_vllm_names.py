"""What a request's chunks are called: by content, whatever names came with adapters and media."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from larder.vllm.identity.adapters import Adapters, effect_of_settings
from larder.vllm.identity.files import Digests
from larder.vllm.identity.names import RequestNaming
from larder.vllm.identity.watch import Watch
from larder.vllm.jobs import Adapter

BLOCK = 16


@dataclass
class Request:
    """vLLM's request's shape; its hashes name what vLLM's name."""

    tokens: list[int]
    lora_request: Any = None
    mm_features: list[Any] = field(default_factory=list)
    prompt_embeds: Any = None
    prompt_is_token_ids: list[bool] | None = None
    cache_salt: str | None = None
    block_hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.block_hashes += hashed(self)


def hashed(request: Any) -> list[bytes]:
    """As vLLM does it: a chain over tokens, an adapter's name and path, media's identifiers and the salt."""
    lora = request.lora_request
    names = [] if lora is None else [lora.lora_name, lora.lora_path]
    made, chain = [], list(request.block_hashes)
    for i in range(len(chain), len(request.tokens) // BLOCK):
        start, end = i * BLOCK, (i + 1) * BLOCK
        media = [
            f.identifier
            for f in request.mm_features
            if f.mm_position.offset < end and f.mm_position.offset + f.mm_position.length > start
        ]
        named = [chain[-1] if chain else b"", request.tokens[start:end], names, media, request.cache_salt]
        chain.append(hashlib.sha256(repr(named).encode()).digest())
        made.append(chain[-1])
    return made


class Now(Executor):
    """Does at once what it is given, or `later`."""

    def __init__(self) -> None:
        self.later = False
        self.left: list[Callable[[], None]] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.left.append(lambda: future.set_result(call(*args, **kwargs)))
        if not self.later:
            self.left.pop()()
        return future


@pytest.fixture
def readers() -> Now:
    return Now()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def naming(tmp_path: Path, readers: Now, watch: Watch) -> Callable[..., RequestNaming]:
    def make(*, counted: bool = False, by_content: bool = False, context: str = "") -> RequestNaming:
        return RequestNaming(
            hash_tokens=BLOCK,
            hasher=hashed,
            adapters=Adapters(Digests(tmp_path / "cache"), watch, readers, context),
            readers=readers,
            counted_media=counted,
            media_by_content=by_content,
        )

    return make


def media(at: int, identifier: str, content: Any = 1.0, *, tokens: int = 20) -> SimpleNamespace:
    data = content if content is None else SimpleNamespace(get_data=lambda: {"features": torch.full((3,), content)})
    position = SimpleNamespace(offset=at, length=tokens)
    return SimpleNamespace(identifier=identifier, mm_position=position, modality="audio", data=data)


def lora(path: Path, *, name: str = "one", number: int = 1, **more: Any) -> SimpleNamespace:
    named = {"lora_name": name, "lora_int_id": number, "lora_path": str(path), "is_3d_lora_weight": False}
    return SimpleNamespace(**named | more)


def trained(path: Path, weights: bytes) -> Path:
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(weights)
    return path


def shared(one: Sequence[bytes] | None, two: Sequence[bytes] | None) -> int:
    """Leading blocks that two requests have in common."""
    assert one is not None
    assert two is not None
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


TOKENS = list(range(100))


def test_an_ordinary_request_goes_by_the_engines_hashes(naming: Callable[..., RequestNaming]) -> None:
    request = Request(TOKENS)
    names = naming()(request)
    assert names.hashes() is request.block_hashes
    assert names.adapter is None
    assert not names.suspect


@pytest.mark.parametrize(
    "identifier",
    [
        "renderer0-mm-1-audio-0",
        "renderer-1-mm-7-image-3",
        "renderer12-mm-345-video-0",
        "adapter:renderer0-mm-1-audio-0",
    ],
)
def test_what_is_numbered_ends_what_is_shared(naming: Callable[..., RequestNaming], identifier: str) -> None:
    for at, blocks in ((0, 0), (15, 0), (16, 1), (40, 2), (64, 4)):
        request = Request(TOKENS, mm_features=[media(at, identifier)])
        assert naming()(request).hashes() == request.block_hashes[:blocks]


def test_where_identifiers_may_be_numbers_in_disguise_none_is_trusted(naming: Callable[..., RequestNaming]) -> None:
    request = Request(TOKENS, mm_features=[media(40, "5d41402abc4b2a76b9719d911017c592")])
    assert naming()(request).hashes() == request.block_hashes
    assert naming(counted=True)(request).hashes() == request.block_hashes[:2]


def test_the_first_of_several_media_without_content_ends_it(naming: Callable[..., RequestNaming]) -> None:
    request = Request(TOKENS, mm_features=[media(0, "abc"), media(40, "renderer0-mm-1-audio-0"), media(70, "def")])
    assert naming()(request).hashes() == request.block_hashes[:2]


def test_media_that_a_session_adds_count(naming: Callable[..., RequestNaming]) -> None:
    request = Request(TOKENS, mm_features=[media(40, "abc")])
    names = naming()(request)
    assert names.hashes() == request.block_hashes
    request.mm_features.append(media(70, "renderer0-mm-1-audio-0"))
    assert names.hashes() == request.block_hashes[:4]


def test_chosen_identifiers_share_within_one_salt_only(naming: Callable[..., RequestNaming]) -> None:
    hashes = [naming()(Request(TOKENS, mm_features=[media(40, "mine")], cache_salt=s)).hashes() for s in "aab"]
    assert shared(hashes[0], hashes[1]) == 6
    assert shared(hashes[0], hashes[2]) == 0


def test_by_content_one_identifier_for_two_media_shares_only_what_is_before(
    naming: Callable[..., RequestNaming],
) -> None:
    def hashes(content: Any) -> Any:
        return naming(by_content=True)(Request(TOKENS, mm_features=[media(40, "mine", content)])).hashes()

    assert shared(hashes(1.0), hashes(1.0)) == 6
    assert shared(hashes(1.0), hashes(2.0)) == 2
    assert len(hashes(None)) == 2  # what cannot be seen from here is not shared


def test_by_content_nothing_is_known_before_it_was_read(naming: Callable[..., RequestNaming], readers: Now) -> None:
    readers.later = True
    names = naming(by_content=True)(Request(TOKENS, mm_features=[media(40, "mine")]))
    assert names.hashes() is None
    readers.left.pop()()
    assert len(names.hashes() or ()) == 6


def test_an_adapter_is_its_content_not_its_name_path_or_number(
    naming: Callable[..., RequestNaming], tmp_path: Path
) -> None:
    one, other = trained(tmp_path / "one", b"1"), trained(tmp_path / "other", b"2")
    moved = Path(shutil.copytree(one, tmp_path / "moved"))
    first = naming()(Request(TOKENS, lora_request=lora(one))).hashes()
    assert shared(first, naming()(Request(TOKENS, lora_request=lora(moved, name="two", number=7))).hashes()) == 6
    assert shared(first, naming()(Request(TOKENS, lora_request=lora(other))).hashes()) == 0
    assert shared(first, naming()(Request(TOKENS)).hashes()) == 0
    assert shared(first, naming(context="bfloat16")(Request(TOKENS, lora_request=lora(one))).hashes()) == 0
    thin = lora(one, is_3d_lora_weight=True)
    assert shared(first, naming()(Request(TOKENS, lora_request=thin)).hashes()) == 0


def test_tokens_and_salts_count_with_an_adapter_too(naming: Callable[..., RequestNaming], tmp_path: Path) -> None:
    adapter = lora(trained(tmp_path / "one", b"1"))
    first = naming()(Request(TOKENS, lora_request=adapter)).hashes()
    assert shared(first, naming()(Request([*TOKENS[:50], 0, *TOKENS[51:]], lora_request=adapter)).hashes()) == 3
    assert shared(first, naming()(Request(TOKENS, lora_request=adapter, cache_salt="a")).hashes()) == 0


def test_an_adapter_trained_anew_in_place_is_another(naming: Callable[..., RequestNaming], tmp_path: Path) -> None:
    made, path = naming(), trained(tmp_path / "one", b"1")
    first = made(Request(TOKENS, lora_request=lora(path)))
    before = list(first.hashes() or ())
    assert not first.suspect
    trained(path, b"2")
    second = made(Request(TOKENS, lora_request=lora(path)))
    assert shared(before, second.hashes()) == 0
    assert second.suspect  # the engine's own cache goes by name and path
    assert second.adapter != first.adapter


def test_an_adapter_whose_files_are_not_those_in_memory_is_not_shared(
    naming: Callable[..., RequestNaming], tmp_path: Path, watch: Watch
) -> None:
    made, path = naming(), trained(tmp_path / "one", b"1")
    adapter = made(Request(TOKENS, lora_request=lora(path))).adapter
    assert adapter is not None
    watch.adapters[1] = adapter.state
    assert len(made(Request(TOKENS, lora_request=lora(path))).hashes() or ()) == 6
    trained(path, b"2")
    names = made(Request(TOKENS, lora_request=lora(path)))
    assert names.hashes() == ()
    assert names.adapter is None


def test_an_adapter_is_not_known_before_it_was_read(
    naming: Callable[..., RequestNaming], tmp_path: Path, readers: Now
) -> None:
    readers.later = True
    names = naming()(Request(TOKENS, lora_request=lora(trained(tmp_path / "one", b"1"))))
    assert names.hashes() is None
    readers.left.pop()()
    assert len(names.hashes() or ()) == 6


def test_an_adapter_that_changes_while_it_is_read_or_is_nowhere_is_not_shared(
    naming: Callable[..., RequestNaming], tmp_path: Path, readers: Now
) -> None:
    readers.later = True
    path = trained(tmp_path / "one", b"1")
    names = naming()(Request(TOKENS, lora_request=lora(path)))
    trained(path, b"2")
    readers.left.pop()()
    assert names.hashes() == ()
    assert naming()(Request(TOKENS, lora_request=lora(tmp_path / "nowhere"))).hashes() == ()


@dataclass
class LoraSettings:
    """As vLLM's, with a setting that a later release may bring."""

    max_loras: int = 1
    lora_dtype: str = "auto"
    target_modules: list[str] | None = None
    enable_tower_connector_lora: bool = False
    a_setting_to_come: bool = False


def test_what_an_adapter_is_applied_to_counts_and_how_many_there_may_be_does_not() -> None:
    settings = [
        LoraSettings(),
        LoraSettings(target_modules=["o_proj", "qkv_proj"]),
        LoraSettings(target_modules=["o_proj"]),
        LoraSettings(lora_dtype="bfloat16"),
        LoraSettings(enable_tower_connector_lora=True),
        LoraSettings(a_setting_to_come=True),
    ]
    assert len({effect_of_settings(one) for one in settings}) == len(settings)
    assert effect_of_settings(LoraSettings(max_loras=4)) == effect_of_settings(LoraSettings())
    assert effect_of_settings(LoraSettings(target_modules=["qkv_proj", "o_proj"])) == effect_of_settings(settings[1])
    assert effect_of_settings(None) == ""


def test_an_adapter_is_read_once(naming: Callable[..., RequestNaming], tmp_path: Path, readers: Now) -> None:
    readers.later = True
    made, path = naming(), trained(tmp_path / "one", b"1")
    for _ in range(3):
        made(Request(TOKENS, lora_request=lora(path)))
    assert len(readers.left) == 1


def test_names_grow_with_the_tokens_and_follow_a_session_that_takes_some_back(
    naming: Callable[..., RequestNaming], tmp_path: Path
) -> None:
    adapter = lora(trained(tmp_path / "one", b"1"))
    request = Request(TOKENS[:40], lora_request=adapter)
    names = naming()(request)
    assert len(names.hashes() or ()) == 2
    request.tokens += range(200, 240)
    request.block_hashes += hashed(request)
    whole = naming()(Request(list(request.tokens), lora_request=adapter)).hashes()
    assert names.hashes() == whole
    request.tokens[30:] = TOKENS[:50]
    del request.block_hashes[1:]
    request.block_hashes += hashed(request)
    assert names.hashes() == naming()(Request(list(request.tokens), lora_request=adapter)).hashes()


def test_prompts_given_as_embeddings_count_their_type_and_which_are_tokens(
    naming: Callable[..., RequestNaming],
) -> None:
    def hashes(kind: torch.dtype, mask: list[bool] | None = None) -> Any:
        embeds = torch.zeros(100, 4, dtype=kind)
        return naming()(Request(TOKENS, prompt_embeds=embeds, prompt_is_token_ids=mask)).hashes()

    assert shared(hashes(torch.float16), hashes(torch.float16)) == 6
    assert shared(hashes(torch.float16), hashes(torch.bfloat16)) == 0
    assert shared(hashes(torch.float16), hashes(torch.float16, [True] * 100)) == 0


def test_a_worker_saves_only_what_the_adapter_in_memory_computed() -> None:
    watch, adapter = Watch(), Adapter(1, "a")
    assert watch.may_load(None)
    assert watch.may_save(None)
    assert watch.may_load(adapter)  # not read yet: it will be
    assert not watch.may_save(adapter)
    watch.adapters[1] = "a"
    assert watch.may_load(adapter)
    assert watch.may_save(adapter)
    for state in ("b", ""):
        watch.adapters[1] = state
        assert not watch.may_load(adapter)
        assert not watch.may_save(adapter)
