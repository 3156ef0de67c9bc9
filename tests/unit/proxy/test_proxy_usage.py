"""The client is billed by what the prefill engine found cached, wherever that stands and however the answer is cut."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from services.proxy import billing
from services.proxy.core.usage import Cached, Corrector, cached_of
from tests.unit.proxy.fake_engine import Bootstrap

TEXT = r"says \"cached_tokens\": 5 and \"usage\""
USAGE = {"prompt_tokens": 650, "completion_tokens": 2, "total_tokens": 652}


def usage(cached: int | None, **more: Any) -> dict[str, Any]:
    return USAGE | {"prompt_tokens_details": {"cached_tokens": cached} | more}


@pytest.mark.parametrize("said", ["640", "null", "7"])
@pytest.mark.parametrize("found", [0, 12_345])
@pytest.mark.parametrize("ends", ["}}\n\ndata: [DONE]\n\n", ',"multimodal_tokens":null}}', " }"])
def test_the_number_is_right_however_the_answer_is_cut(said: str, found: int, ends: str) -> None:
    before = f'data: {{"text":"{TEXT}","prompt_tokens":650,"d":{{"cached_tokens":'
    content = (before + said + ends).encode()
    expected = (before + str(found) + ends).encode()
    for cut in range(len(content) + 1):
        for second in range(cut, min(cut + 4, len(content)) + 1):
            pieces = (content[:cut], content[cut:second], content[second:])
            corrector = Corrector()
            got = [corrector.feed(piece, Cached(found), last=piece is pieces[-1]) for piece in pieces]
            assert b"".join(got) == expected, pieces


def test_an_unknown_number_is_not_made_up() -> None:
    assert Corrector().feed(b'{"cached_tokens": 640}', Cached(None), last=True) == b'{"cached_tokens":null}'
    assert Corrector().feed(b'{"cached_tokens": 640}', None, last=True) == b'{"cached_tokens": 640}'
    both = b'{"cached_tokens":640,"created_cache_tokens":0}'
    assert Corrector().feed(both, Cached(0, 650), last=True) == b'{"cached_tokens":0,"created_cache_tokens":650}'


def test_a_piece_that_cannot_hold_a_number_is_not_held_back() -> None:
    corrector = Corrector()
    for piece in (b"data: {}\n\n", b'{"a', b'{"completion_tokens":1', b'{"cached_toads', b'"cached_tokens":1}'):
        assert corrector.feed(piece, None, last=False) == piece


@pytest.mark.parametrize(
    ("answer", "cached"),
    [
        ({"usage": usage(640)}, Cached(640)),
        ({"usage": usage(0, created_cache_tokens=650)}, Cached(0, 650)),
        ({"usage": usage(None)}, Cached()),
        ({"usage": USAGE}, Cached()),
        ({"usage": None}, Cached()),
        ({}, Cached()),
        ([], Cached()),
        ({"usage": {"prompt_tokens_details": {"cached_tokens": "x"}}}, Cached()),
    ],
)
def test_what_a_prefill_reports(answer: Any, cached: Cached) -> None:
    assert cached_of(json.dumps(answer).encode()) == cached


# -- through the proxy


def says(cached: int | None, *, chat: bool = False, delay_s: float = 0) -> Any:
    """An engine's answer with this usage; None: it was not told to report it."""

    async def act(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        told = USAGE if cached is None else usage(cached)
        choice = {"message": {"content": TEXT}} if chat else {"text": TEXT}
        whole = {"choices": [choice], "usage": told}
        if not (await request.json()).get("stream"):
            return web.json_response(whole, dumps=lambda value: json.dumps(value, separators=(",", ":")))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"text": "a"}]}\n\n')
        last = f'data: {{"choices":[],"usage":{json.dumps(told)}}}\n\ndata: [DONE]\n\n'.encode()
        for piece in (last[:-60], last[-60:-40], last[-40:]):  # also within the number
            await response.write(piece)
            await asyncio.sleep(0.01)
        return response

    return act


async def ask(cluster: Any, path: str, *, stream: bool) -> tuple[Any, bytes]:
    async with cluster.client.post(path, json={"model": "tiny", "prompt": "x", "stream": stream}) as response:
        assert response.status == 200
        content = await response.read()
        assert int(response.headers.get("Content-Length", len(content))) == len(content)
    last = content.split(b"\n\n")[-3].removeprefix(b"data: ") if stream else content
    return json.loads(last)["usage"]["prompt_tokens_details"]["cached_tokens"], content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("found", [0, 128, 1_000_000])
async def test_a_client_is_told_what_prefill_found(cluster: Any, path: str, stream: bool, found: int) -> None:
    (prefill,), (decode,) = cluster.prefills, cluster.decodes
    prefill.act, decode.act = says(found), says(640, chat="chat" in path)
    assert (await ask(cluster, path, stream=stream))[0] == found


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prefill_that_does_not_say_leaves_the_number_null(cluster: Any, stream: bool) -> None:
    """Anything else would be made up; decode's number is known to be too high."""
    cluster.prefills[0].act, cluster.decodes[0].act = says(None), says(640)
    assert (await ask(cluster, "/v1/completions", stream=stream))[0] is None


async def test_without_a_prefill_the_decode_engines_number_counts(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 1)
    cluster.prefills[0].act, cluster.decodes[0].act = cluster.prefills[0].answer_500, says(640)
    assert (await ask(cluster, "/v1/completions", stream=False))[0] == 640
    cluster = await start_cluster(0, 1)
    cluster.decodes[0].act = says(512)
    assert (await ask(cluster, "/v1/completions", stream=True))[0] == 512


@pytest.mark.parametrize("stream", [False, True])
async def test_a_pair_waits_for_its_prefills_number(start_cluster: Any, bootstrap: Bootstrap, stream: bool) -> None:
    cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
    cluster.prefills[0].act, cluster.decodes[0].act = says(0, delay_s=0.3), says(640)
    assert (await ask(cluster, "/v1/completions", stream=stream))[0] == 0


async def test_a_pair_does_not_wait_long_for_a_silent_prefill(
    start_cluster: Any, bootstrap: Bootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing, "WAIT_S", 0.2)
    cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
    cluster.prefills[0].act, cluster.decodes[0].act = cluster.prefills[0].hang, says(640)
    assert (await ask(cluster, "/v1/completions", stream=True))[0] == 640


async def test_a_long_answer_is_correct_and_complete(cluster: Any) -> None:
    async def act(_: web.Request) -> web.StreamResponse:
        text = json.dumps({"choices": [{"text": "é" * 500_000}], "usage": usage(640)}, separators=(",", ":"))
        return web.Response(text=text, content_type="application/json")

    cluster.prefills[0].act, cluster.decodes[0].act = says(0), act
    cached, content = await ask(cluster, "/v1/completions", stream=False)
    assert (cached, json.loads(content)["choices"][0]["text"]) == (0, "é" * 500_000)
