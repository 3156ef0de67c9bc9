"""A plain prefill-decode proxy like the one in vLLM's repository, for bench.proxy to compare with.

Rewritten after the logic of disagg_proxy_demo.py, on the same libraries (FastAPI, uvicorn, uvloop): the body read as
JSON, a new client session for every leg, a prefill leg with one token, read to its end, then the decode leg,
passed on as it comes, always with status 200. Engines in round robin. Kinder than the original in one respect: it
writes no access log.
"""

import itertools
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

TIMEOUT = aiohttp.ClientTimeout(total=6 * 60 * 60)
CHUNK_BYTES = 1024


async def forward(url: str, data: dict[str, Any]) -> AsyncIterator[bytes]:
    async with (
        aiohttp.ClientSession(timeout=TIMEOUT) as session,
        session.post(url, json=data, headers={"Authorization": "Bearer None"}) as response,
    ):
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            yield chunk


def make_app(prefill: list[str], decode: list[str]) -> FastAPI:
    app = FastAPI()
    prefills, decodes = itertools.cycle(prefill), itertools.cycle(decode)

    async def serve(raw: Request) -> StreamingResponse:
        request = await raw.json()
        leg = request | {"max_tokens": 1, "stream": False}
        if "max_completion_tokens" in request:
            leg["max_completion_tokens"] = 1
        async for _ in forward(f"http://{next(prefills)}{raw.url.path}", leg):
            pass
        return StreamingResponse(forward(f"http://{next(decodes)}{raw.url.path}", request))

    app.post("/v1/completions", response_model=None)(serve)
    app.post("/v1/chat/completions", response_model=None)(serve)
    app.get("/health")(lambda: {})
    return app


if __name__ == "__main__":
    port, prefill, decode = sys.argv[1:]
    app = make_app([prefill], [decode])
    uvicorn.run(app, host="127.0.0.1", port=int(port), loop="uvloop", log_level="warning", access_log=False)
