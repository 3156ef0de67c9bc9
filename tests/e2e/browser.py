"""A real browser without a window, told what to do by the protocol of its developers' tools."""

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from demo.processes import Process

PROGRAM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_S: Final = 60.0
WAIT_S: Final = 30.0
_FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--force-color-profile=srgb", "--remote-debugging-port=0",
)  # fmt: skip


class Tab:
    """One page. `complaints`: errors and warnings of its console; `requests`: every URL it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(WAIT_S):
            answer = await future
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    async def evaluate(self, expression: str) -> Any:
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def listeners(self, event: str) -> int:
        """How many of the document's wait for such an event."""
        expression = f"(getEventListeners(document)[{json.dumps(event)}] ?? []).length"
        said = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, includeCommandLineAPI=True
        )
        return int(said["result"]["value"])

    async def wait_for(self, expression: str, wait_s: float = WAIT_S) -> Any:
        """What the expression is, once that is true."""
        until = asyncio.get_running_loop().time() + wait_s
        while not (value := await self.evaluate(expression)):
            text = "not yet"
            if asyncio.get_running_loop().time() >= until:
                text = await self.evaluate("document.body.innerText")
            assert asyncio.get_running_loop().time() < until, (expression, text)
            await asyncio.sleep(0.05)
        return value

    async def look(self, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """What it is looked at with."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=features)
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def screenshot(self) -> bytes:
        """All of the page, as PNG."""
        said = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(said["data"])

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            params = said.get("params", {})
            match said.get("method"):
                case None:
                    self._answers.pop(said["id"]).set_result(said)
                case "Network.requestWillBeSent":
                    self.requests.append(params["request"]["url"])
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(params["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    self.complaints.append(str(params["args"]))
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@asynccontextmanager
async def browser(work_dir: Path) -> AsyncIterator[Tab]:
    """An empty tab of a browser of its own, which ends with the block; `work_dir`, which is there, is its home."""
    assert PROGRAM is not None, "no Chromium here: make setup installs it"
    home = {"HOME": str(work_dir), "PATH": "/usr/bin:/bin", "TZ": "UTC", "LANG": "C.UTF-8"}
    argv = [PROGRAM, *_FLAGS, f"--user-data-dir={work_dir / 'profile'}", "about:blank"]
    process = Process("chromium", argv, log_dir=work_dir, env=home)
    try:
        port = process.wait_line(r"DevTools listening on ws://127\.0\.0\.1:(?P<port>\d+)/", START_S)["port"]
        async with aiohttp.ClientSession() as http:
            targets = await (await http.get(f"http://127.0.0.1:{port}/json/list")).json()
            url = next(each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page")
            async with http.ws_connect(url, max_msg_size=0) as socket:
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await tab.call(f"{domain}.enable")
                yield tab
                listening.cancel()
                with suppress(asyncio.CancelledError):
                    await listening
    finally:
        process.stop()
