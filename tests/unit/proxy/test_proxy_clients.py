"""The openai and anthropic clients behind the proxy, with engines that break off: each client raises its own exception,
and no text that an engine left unfinished is taken for the whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web

Ask = Callable[[str], AsyncIterator[Any]]


def event(data: dict[str, Any], *, named: bool) -> bytes:
    name = f"event: {data['type']}\n" if named else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def chat_chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}


def completion_chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
    return {"id": "1", "object": "text_completion", "created": 1, "model": "tiny", "choices": [choice]}


def response_delta(number: int, text: str) -> dict[str, Any]:
    where = {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
    return {"type": "response.output_text.delta", "sequence_number": number, "delta": text} | where


def content_delta(text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


SAID = {  # by path: two whole events, and a third
    "/v1/chat/completions": [event(chat_chunk(text), named=False) for text in "abc"],
    "/v1/completions": [event(completion_chunk(text), named=False) for text in "abc"],
    "/v1/responses": [event(response_delta(number, text), named=True) for number, text in enumerate("abc")],
    "/v1/messages": [event(content_delta(text), named=True) for text in "abc"],
}
TORN = {  # what is there of the third event when the engine breaks off
    "between events": lambda third: b"",
    "within a name or a field": lambda third: third[:4],
    "within the data": lambda third: third[:-12],
    "before the blank line": lambda third: third[:-1],
}


def breaking_off(path: str, tail: Callable[[bytes], bytes]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        first, second, third = SAID[path]
        await response.write(first)
        await response.write(second)
        await asyncio.sleep(0.02)
        await response.write(tail(third))
        await asyncio.sleep(0.02)  # so that it is on its way
        assert request.transport is not None
        request.transport.abort()
        return response

    return act


def text_of(path: str, said: Any) -> str:
    match path:
        case "/v1/chat/completions":
            return str(said.choices[0].delta.content)
        case "/v1/completions":
            return str(said.choices[0].text)
        case "/v1/responses":
            return str(said.delta)
    return str(said.delta.text)


@pytest.fixture
async def ask(cluster: Any) -> AsyncIterator[Ask]:
    """Streams the answer's texts through the client for the path."""
    ours = openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="k", max_retries=0, timeout=10)
    theirs = anthropic.AsyncAnthropic(base_url=cluster.url, api_key="k", max_retries=0, timeout=10)
    messages: Any = [{"role": "user", "content": "hello"}]

    async def asking(path: str) -> AsyncIterator[Any]:
        stream: Any
        match path:
            case "/v1/chat/completions":
                stream = await ours.chat.completions.create(model="tiny", messages=messages, stream=True)
            case "/v1/completions":
                stream = await ours.completions.create(model="tiny", prompt="hello", stream=True)
            case "/v1/responses":
                stream = await ours.responses.create(model="tiny", input="hello", stream=True)
            case _:
                stream = await theirs.messages.create(model="tiny", max_tokens=9, messages=messages, stream=True)
        async with stream:
            async for said in stream:
                yield text_of(path, said)

    async with ours, theirs:
        yield asking


async def heard(asking: AsyncIterator[Any]) -> tuple[str, Exception | None]:
    """What came, and what the client then raised."""
    texts = ""
    try:
        async with aclosing(asking):  # type: ignore[type-var]
            async for text in asking:
                texts += text
    except Exception as error:
        return texts, error
    return texts, None


def own_error(path: str) -> type[Exception]:
    return anthropic.APIError if path == "/v1/messages" else openai.APIError


@pytest.mark.parametrize("where", TORN)
@pytest.mark.parametrize("path", SAID)
async def test_a_stream_that_breaks_off_raises_the_clients_own_error(
    cluster: Any, ask: Ask, path: str, where: str
) -> None:
    cluster.decodes[0].act = breaking_off(path, TORN[where])
    texts, error = await asyncio.wait_for(heard(ask(path)), 10)
    assert texts == "ab"
    assert isinstance(error, own_error(path)), repr(error)
    assert "the decode engine broke off" in str(error)
    await cluster.metric_is(1, "requests_total", outcome="broken")


@pytest.mark.parametrize("path", SAID)
async def test_an_event_too_large_to_hold_back_is_cut_off_with_its_connection(
    cluster: Any, ask: Ask, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing the proxy could add would be read as a separate event."""
    monkeypatch.setattr("services.proxy.core.events.HELD_BYTES_MAX", 16)
    cluster.decodes[0].act = breaking_off(path, TORN["before the blank line"])
    texts, error = await asyncio.wait_for(heard(ask(path)), 10)
    assert texts == "ab"
    assert error is not None
    if path != "/v1/messages":  # that client's streams raise httpx's own error
        assert isinstance(error, openai.APIConnectionError)


@pytest.mark.parametrize("path", SAID)
async def test_a_stream_that_times_out_raises_the_clients_own_error(start_cluster: Any, path: str) -> None:
    cluster = await start_cluster(0, 1, request_timeout=0.5)
    held = asyncio.Event()

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(SAID[path][0] + SAID[path][1][:-5])
        await held.wait()
        return response

    cluster.decodes[0].act = act
    async with cluster.client.post(path, json={"stream": True}) as response:
        content = await asyncio.wait_for(response.read(), 10)
    assert content.startswith(SAID[path][0])
    last = content.removeprefix(SAID[path][0])
    assert last.startswith(b"data: " if path.endswith("completions") else b"event: error\n")
    assert b"no byte of the answer passed for 0.5 s" in last
    assert last.count(b"\n\n") == 1


LAST = {
    "/v1/chat/completions": b"data: [DONE]\n\n",
    "/v1/completions": b'data: {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}\n\n',
    "/v1/responses": event({"type": "response.completed", "sequence_number": 3, "delta": ""}, named=True),
    "/v1/messages": b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
}


@pytest.mark.parametrize("path", SAID)
@pytest.mark.parametrize("whole", [True, False])
async def test_a_stream_that_ends_with_its_connection_is_complete_if_its_events_say_so(
    cluster: Any, path: str, whole: bool
) -> None:
    """As with HTTP/1.0, where an engine that dies looks like one that is done."""
    content = b"".join(SAID[path]) + (LAST[path] if whole else b"data: {")

    async def act(request: web.Request) -> web.StreamResponse:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        assert request.transport is not None
        request.transport.write(head + content)  # type: ignore[attr-defined]
        request.transport.close()
        return web.Response()

    cluster.decodes[0].act = act
    async with cluster.client.post(path, json={"stream": True}) as response:
        got = await asyncio.wait_for(response.read(), 10)
    if whole:
        assert got == content
    else:
        assert got.startswith(b"".join(SAID[path]))
        assert b"closed the connection before the stream's end" in got.removeprefix(b"".join(SAID[path]))
        assert b"data: {data" not in got
    await cluster.metric_is(1, "requests_total", outcome="ok" if whole else "broken")


@pytest.mark.parametrize("packed", [True, False])
async def test_a_stream_of_unknown_form_is_cut_off(cluster: Any, packed: bool) -> None:
    path, headers = ("/v1/messages", {"Content-Encoding": "br"}) if packed else ("/v1/elsewhere", {})

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"} | headers)
        await response.prepare(request)
        await response.write(b"data: 1\n\nda")
        await asyncio.sleep(0.05)
        return await cluster.decodes[0].reset(request)

    cluster.decodes[0].act = act
    reader, writer = await asyncio.open_connection(*cluster.url.removeprefix("http://").split(":"))
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    content = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    assert not content.endswith(b"0\r\n\r\n")
    assert b"200 OK" in content
    assert b"error" not in content
    assert (b"da\r\n" in content) is packed  # what cannot be read passes as it comes


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/v1/elsewhere"])
async def test_a_client_without_chunked_encoding_sees_a_reset(cluster: Any, path: str) -> None:
    """HTTP/1.0, which nginx speaks to its upstreams by default: a connection that just ends is a complete answer."""

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        await asyncio.sleep(0.05)
        return await cluster.decodes[0].reset(request)

    cluster.decodes[0].act = act
    reader, writer = await asyncio.open_connection(*cluster.url.removeprefix("http://").split(":"))
    writer.write(f"POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()


@pytest.mark.parametrize("path", SAID)
async def test_the_proxys_own_errors_have_the_form_of_the_path(cluster: Any, ask: Ask, path: str) -> None:
    cluster.decodes[0].act = cluster.decodes[0].reset
    texts, error = await asyncio.wait_for(heard(ask(path)), 10)
    assert texts == ""
    assert isinstance(error, anthropic.APIStatusError | openai.APIStatusError)
    assert isinstance(error, own_error(path))
    body: Any = error.body
    if path == "/v1/messages":
        assert (body["type"], body["error"]["type"]) == ("error", "api_error")
    else:
        assert (body["type"], body["code"]) == ("server_error", error.status_code)


@pytest.mark.parametrize("path", SAID)
async def test_an_engines_own_error_event_is_passed_on(cluster: Any, ask: Ask, path: str) -> None:
    """In the middle of a stream, and at its beginning if it blames the client: as the engine put it."""
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "boom", "code": "400"}}

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"".join(SAID[path][: len(expected)]) + event(error, named=True))
        return response

    cluster.decodes[0].act = act
    for expected in ("", "ab"):
        texts, raised = await asyncio.wait_for(heard(ask(path)), 10)
        assert texts == expected
        assert isinstance(raised, own_error(path))
        assert "boom" in str(raised)
    await cluster.metric_is(0, "retries_total")


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ({"code": "503"}, 503, openai.InternalServerError),
        ({"code": "429"}, 429, openai.RateLimitError),
        ({"type": "overloaded_error"}, 529, openai.InternalServerError),
        ({"type": "rate_limit_error"}, 429, openai.RateLimitError),
        ({"type": "internal_error"}, 500, openai.InternalServerError),
    ],
)
async def test_an_error_that_begins_every_stream_keeps_its_status(
    cluster: Any, ask: Ask, code: dict[str, str], status: int, expected: type[openai.APIStatusError]
) -> None:
    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        said = {"type": "error", "error": code | {"message": "boom"}}
        await response.write(event(said, named=True))
        return response

    cluster.decodes[0].act = act
    for path in ("/v1/chat/completions", "/v1/messages"):
        texts, error = await asyncio.wait_for(heard(ask(path)), 10)
        assert texts == ""
        assert isinstance(error, own_error(path))
        assert isinstance(error, anthropic.APIStatusError | openai.APIStatusError)
        assert (error.status_code, "boom" in str(error)) == (status, True)
        if path != "/v1/messages":
            assert type(error) is expected
