"""An engine that speaks vLLM's HTTP and computes nothing, as a process of its own: `python -m tests.e2e.http_engine`.

It answers as slowly as it is told to, and counts what it saw (GET /counts), so that many can run on few cores, be
killed, and come back on the same port. Its tokens are made from the prompt alone: any engine gives the same answer.
"""

import argparse
import asyncio
import hashlib
import json
import uuid

import uvloop
from aiohttp import web
from larder.addresses import join

from services.common.service import announce


class HttpEngine:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.counts = {"prefills": 0, "decodes": 0, "cancelled": 0, "running": 0, "lookups": 0}
        self._responses: set[str] = set()

    async def get_health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def get_counts(self, _: web.Request) -> web.Response:
        return web.json_response(self.counts)

    async def get_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._options.model, "object": "model"}]})

    async def respond(self, request: web.Request) -> web.Response:
        before = (await request.json()).get("previous_response_id")
        if before is not None and before not in self._responses:
            return web.json_response({"error": {"message": f"Response with id '{before}' not found."}}, status=404)
        id = f"resp_{uuid.uuid4().hex}"
        self._responses.add(id)
        return web.json_response({"id": id, "object": "response", "status": "completed"})

    async def get_response(self, request: web.Request) -> web.Response:
        self.counts["lookups"] += 1
        return web.Response(status=200 if request.match_info["id"] in self._responses else 404)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        chat = request.path.endswith("/chat/completions")
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or 16
        self.counts["prefills" if limit == 1 else "decodes"] += 1
        if self._options.fails:
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        self.counts["running"] += 1
        try:
            if limit == 1:
                await asyncio.sleep(self._options.prefill_ms / 1000)
            tokens = answer_tokens(asked, limit)
            if asked.get("stream"):
                return await self._stream(request, asked, tokens, chat=chat)
            await asyncio.sleep(self._options.token_ms / 1000 * len(tokens))
            usage = {"prompt_tokens": 7, "completion_tokens": len(tokens), "total_tokens": 7 + len(tokens)}
            choice = {"index": 0, "finish_reason": "length"} | _said("".join(tokens), chat=chat, part=False)
            return web.json_response(self._head(asked, chat=chat, part=False) | {"choices": [choice], "usage": usage})
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
            raise
        finally:
            self.counts["running"] -= 1

    async def _stream(self, request: web.Request, asked: dict, tokens: list[str], *, chat: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        head = self._head(asked, chat=chat, part=True)
        for number, token in enumerate(tokens):
            await asyncio.sleep(self._options.token_ms / 1000)
            last = number == len(tokens) - 1
            choice = {"index": 0, "finish_reason": "length" if last else None} | _said(token, chat=chat, part=True)
            if not response.prepared:
                await response.prepare(request)
            await response.write(f"data: {json.dumps(head | {'choices': [choice]})}\n\n".encode())
        if (asked.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": len(tokens), "total_tokens": 7 + len(tokens)}
            await response.write(f"data: {json.dumps(head | {'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    def _head(self, asked: dict, *, chat: bool, part: bool) -> dict:
        kind = ("chat.completion.chunk" if part else "chat.completion") if chat else "text_completion"
        return {"id": "cmpl-1", "object": kind, "created": 1, "model": asked.get("model") or self._options.model}


def answer_tokens(asked: dict, limit: int) -> list[str]:
    """The tokens of the answer to a request, from its prompt alone."""
    prompt = json.dumps(asked.get("prompt") or asked.get("messages"), sort_keys=True)
    return [f" {hashlib.sha256(f'{prompt}{number}'.encode()).hexdigest()[:6]}" for number in range(limit)]


def _said(text: str, *, chat: bool, part: bool) -> dict:
    if not chat:
        return {"text": text, "logprobs": None}
    return {"delta" if part else "message": {"role": "assistant", "content": text}}


async def serve(options: argparse.Namespace) -> None:
    engine = HttpEngine(options)
    app = web.Application(client_max_size=64 << 20)
    app.add_routes([web.get("/health", engine.get_health), web.get("/counts", engine.get_counts)])
    app.add_routes([web.get("/v1/models", engine.get_models)])
    app.add_routes([web.post("/v1/responses", engine.respond), web.get("/v1/responses/{id}", engine.get_response)])
    app.add_routes([web.post(path, engine.generate) for path in ("/v1/completions", "/v1/chat/completions")])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port, reuse_address=True).start()
    announce(f"engine ready: {join(options.host, runner.addresses[0][1])}")
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prefill-ms", type=float, default=20)
    parser.add_argument("--token-ms", type=float, default=2)
    parser.add_argument("--fails", action="store_true", help="answer every prompt with a 500")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
