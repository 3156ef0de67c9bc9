"""An engine that is served by uvicorn, as vLLM is, and ends as it does: `python -m tests.e2e.uvicorn_engine`.

On SIGTERM it stops listening, closes idle connections, and answers what is under way.
"""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from services.common.service import announce


def make_app(answer_s: float) -> Callable[..., Awaitable[None]]:
    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict]], send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        if scope["method"] == "POST":
            await asyncio.sleep(answer_s)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps({"choices": [{"text": "whole"}]}).encode()})

    return app


class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        announce(f"engine ready: 127.0.0.1:{self.config.port}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer-s", type=float, default=0.1)
    options = parser.parse_args()
    Server(uvicorn.Config(make_app(options.answer_s), port=options.port, lifespan="off", log_level="warning")).run()


if __name__ == "__main__":
    main()
