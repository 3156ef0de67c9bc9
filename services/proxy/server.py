"""One process of the proxy: its parts put together, the sockets it listens on, its end. What it answers is in `app`."""

import asyncio
import contextlib
import gc
import resource
import socket
from collections.abc import Callable
from typing import Final

from aiohttp import web
from larder.addresses import join
from prometheus_client import CollectorRegistry

from services.proxy.app import Proxy
from services.proxy.client_limits import bounded_runner
from services.proxy.config import ProxySettings
from services.proxy.engine_http.upstream import Upstream
from services.proxy.siblings import Siblings, WorkerSlot

_LAST_BYTES_S: Final = 1.0
_BACKLOG: Final = 1024


def tune() -> None:
    """For a process that does nothing but serve."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    gc.freeze()
    gc.set_threshold(50_000)  # requests leave hardly any cycles behind: looking every few hundred is enough


async def serve(
    settings: ProxySettings, stop: asyncio.Event, ready: Callable[[str], None], slot: WorkerSlot | None = None
) -> None:
    """Until stop is set and the requests under way are answered. Ready is told the line that announces it; slot: it is
    one of several workers."""
    key = settings.openai_api_key
    async with contextlib.AsyncExitStack() as ending:
        upstream = Upstream(
            connect_timeout_s=settings.connect_timeout,
            api_key=None if key is None else key.get_secret_value(),
            ca_file=settings.engine_ca_file,
        )
        ending.push_async_callback(upstream.close)
        registry = CollectorRegistry()
        siblings = None if slot is None else Siblings(slot, registry)
        proxy = Proxy(settings, upstream, registry, accepting=lambda: not stop.is_set(), siblings=siblings)
        if siblings is not None:
            ending.push_async_callback(siblings.close)
            await siblings.serve(
                reload=proxy.members.reload, instances=proxy.admin.instances, home=proxy.responses.known
            )
            proxy.members.reload()  # what was changed while nobody could be told
        runner = make_runner(proxy)
        ending.push_async_callback(runner.cleanup)
        port = await listen(runner, settings.host, settings.port, shared=siblings is not None)
        ready(ready_line(settings.host, port))
        await stop.wait()


def ready_line(host: str, port: int) -> str:
    return f"proxy ready: http://{join(host, port)}"


def make_runner(proxy: Proxy) -> web.AppRunner:
    return bounded_runner(
        proxy.make_app(),
        access_log=None,
        handler_cancellation=True,  # a client that leaves cancels its handler
        auto_decompress=False,
        shutdown_timeout=_LAST_BYTES_S,  # after the proxy's own drain
    )


async def listen(runner: web.AppRunner, host: str, port: int, *, shared: bool = False) -> int:
    """Returns the port it listens on; raises OSError if it cannot, before the app is started.

    Shared: with other processes of this proxy, among which the system spreads the connections.
    """
    sockets = await bind(host, port, shared=shared)
    try:
        await runner.setup()
        for each in sockets:
            await _serve(runner, each)
    finally:
        if not runner.sites:
            for each in sockets:
                each.close()
    taken: int = runner.addresses[0][1]
    return taken


async def _serve(runner: web.AppRunner, each: socket.socket) -> None:
    host, port = each.getsockname()[:2]
    try:
        await web.SockSite(runner, each, backlog=_BACKLOG).start()
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


async def bind(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """One socket for each address of the host, all on one port; raises OSError if it is taken."""
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, protocol, _, address in dict.fromkeys(found):
                each = undo.enter_context(socket.socket(family, kind, protocol))
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if shared:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                each.bind((address[0], port, *address[2:]))
                each.setblocking(False)
                sockets.append(each)
                port = each.getsockname()[1]
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        undo.pop_all()
    return sockets


def _cannot_listen(host: str, port: int, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    return OSError(f"cannot listen on {join(host, port)}: {reason}; choose another --port (0 takes a free one)")
