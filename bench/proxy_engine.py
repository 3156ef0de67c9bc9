"""The engines behind the proxies of bench.proxy: one process, two ports, that answer at once what vLLM would answer.

As light as possible, so that it is not what is measured: enough of HTTP/1.1 for the proxies compared, and
prefabricated answers. A body with `"stream":true` gets EVENTS server-sent events, in one write, or one
every PACE_S where its user is `paced`; any other body one JSON object. GET /counts says how many requests each port
had, to prove that a proxy asked both engines.
"""

import asyncio
import json
import re
from functools import partial
from typing import Any, Final

import uvloop

HOST: Final = "127.0.0.1"
EVENTS: Final = 16
PACE_S: Final = 0.002
MARK: Final = b"whole-answer"
"""In every answer to a POST; in a stream in its last event but [DONE]."""
PACED: Final = "paced"

_STREAM: Final = re.compile(rb'"stream": ?true')
_HANDED: Final = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": list(range(16)),
    "remote_engine_id": "prefill-0",
    "remote_host": HOST,
    "remote_port": 5600,
}


def _head(kind: str, length: int | None, status: str = "200 OK") -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    date = "date: Sat, 01 Nov 2025 12:00:00 GMT"
    lines = (f"HTTP/1.1 {status}", date, "server: uvicorn", f"content-type: {kind}", framing, "", "")
    return "\r\n".join(lines).encode()


def _json(content: Any, status: str = "200 OK") -> bytes:
    body = json.dumps(content).encode()
    return _head("application/json", len(body), status) + body


def _completion(**more: Any) -> dict[str, Any]:
    common = {"id": "chatcmpl-0123456789abcdef0123456789abcdef", "created": 1_760_000_000, "model": "tiny"}
    return common | {"system_fingerprint": None} | more


def _whole(**more: Any) -> bytes:
    message = {"role": "assistant", "content": " word" * EVENTS + MARK.decode(), "refusal": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "text": message["content"], "logprobs": None, "finish_reason": "length"}
    usage = {"prompt_tokens": 2000, "total_tokens": 2000 + EVENTS, "completion_tokens": EVENTS}
    return _json(_completion(object="chat.completion", choices=[choice], usage=usage, **more))


def _event(word: str) -> bytes:
    choice = {"index": 0, "delta": {"content": word}, "text": word, "logprobs": None, "finish_reason": None}
    event = _completion(object="chat.completion.chunk", choices=[choice])
    return _chunk(b"data: " + json.dumps(event).encode() + b"\n\n")


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


_WHOLE: Final = _whole(kv_transfer_params=None)
_WHOLE_HANDED: Final = _whole(kv_transfer_params=_HANDED)
_EVENTS: Final = [
    _head("text/event-stream; charset=utf-8", None) + _event(" word"),
    *(_event(" word") for _ in range(EVENTS - 2)),
    _event(MARK.decode()) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
]
_STREAMED: Final = b"".join(_EVENTS)
_OK: Final = _json({})
_MODELS: Final = _json({"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 32768}]})
_INFO: Final = _json({"model_path": "tiny", "served_model_name": "tiny", "is_generation": True, "version": "0"})
_GETS: Final = {
    b"/health": _OK,
    b"/health_generate": _OK,
    b"/v1/models": _MODELS,
    b"/version": _json({"version": "0"}),
} | dict.fromkeys((b"/get_model_info", b"/model_info", b"/get_server_info", b"/server_info"), _INFO)
_NOT_FOUND: Final = _json({"detail": "Not Found"}, "404 Not Found")
_CHUNKED: Final = _json({"detail": "this engine reads no chunked bodies"}, "501 Not Implemented")

Counts = dict[str, int]


class Connection(asyncio.Protocol):
    def __init__(self, role: str, counts: Counts) -> None:
        self._role = role
        self._counts = counts
        self._held = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        held = self._held + data if self._held else data
        while (end := held.find(b"\r\n\r\n")) > 0:
            head = held[: end + 2].lower()
            at = head.find(b"\r\ncontent-length:")
            length = int(head[at + 17 : head.index(b"\r", at + 17)]) if at > 0 else 0
            if len(held) < end + 4 + length:
                break
            body, held = held[end + 4 : end + 4 + length], held[end + 4 + length :]
            self._answer(head, body)
        self._held = held

    def _answer(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        if b"\r\ntransfer-encoding:" in head:
            self._transport.write(_CHUNKED)
            self._transport.close()
        elif method == b"post":
            self._counts[self._role] += 1
            self._post(body)
        elif path == b"/counts":
            self._transport.write(_json(self._counts))
        else:
            self._transport.write(_GETS.get(path.partition(b"?")[0], _NOT_FOUND))

    def _post(self, body: bytes) -> None:
        if not _STREAM.search(body, max(0, len(body) - 512)) and not _STREAM.search(body, 0, 512):
            self._transport.write(_WHOLE_HANDED if b'"do_remote_decode"' in body else _WHOLE)
        elif PACED.encode() in body:
            self._pace(0)
        else:
            self._transport.write(_STREAMED)

    def _pace(self, number: int) -> None:
        self._transport.write(_EVENTS[number])
        if number + 1 < EVENTS:
            asyncio.get_running_loop().call_later(PACE_S, self._pace, number + 1)


async def main() -> None:
    loop = asyncio.get_running_loop()
    counts = {"prefill": 0, "decode": 0}
    servers = [await loop.create_server(partial(Connection, role, counts), HOST, 0) for role in counts]
    prefill, decode = (server.sockets[0].getsockname()[1] for server in servers)
    print(f"engines ready: prefill {prefill} decode {decode}", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    uvloop.run(main())
