"""Engines behind https and under a path: real certificates, real handshakes, and what must not be trusted."""

import asyncio
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.proxy.fake_engine import Engine

KEY = {"X-API-Key": "sesame"}


def make_authority(directory: Path, name: str) -> Callable[..., ssl.SSLContext]:
    """Writes NAME.pem; returns what makes a server's context with a certificate of that authority."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def sign(builder: x509.CertificateBuilder, public: Any, *, is_authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = builder.issuer_name(subject).public_key(public).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        basic = x509.BasicConstraints(ca=is_authority, path_length=None)
        return builder.add_extension(basic, critical=True).sign(key, hashes.SHA256())

    own = sign(x509.CertificateBuilder().subject_name(subject), key.public_key(), is_authority=True)
    pem = serialization.Encoding.PEM
    (directory / f"{name}.pem").write_bytes(own.public_bytes(pem))

    def context(*names: str) -> ssl.SSLContext:
        server = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(each)) if each[0].isdigit() else x509.DNSName(each) for each in names
        ]
        builder = x509.CertificateBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
        file = directory / f"{name}-server.pem"
        plain = serialization.NoEncryption()
        private = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        file.write_bytes(private + sign(builder, server.public_key(), is_authority=False).public_bytes(pem))
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(file)
        return made

    return context


@dataclass
class Front:
    """An engine behind https, under /base, that knows its own URL."""

    engine: Engine
    port: int = 0
    names: list[str | None] = field(default_factory=list)  # that clients asked for (SNI)

    async def start(self, stack: AsyncExitStack, context: ssl.SSLContext) -> "Front":
        context.sni_callback = lambda _, name, __: self.names.append(name)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/base/{tail:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        self.port = runner.addresses[0][1]
        return self

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.rel_url.raw_path_qs.removeprefix("/base")
        return await self.engine._handle(request.clone(rel_url=path))


@dataclass
class Site:
    prefill: Front
    decode: Front
    ca: Path
    directory: Path

    def settings(self, host: str = "localhost") -> dict[str, Any]:
        prefill, decode = (f"https://{host}:{front.port}/base/" for front in (self.prefill, self.decode))
        return {"prefill": (prefill,), "decode": (decode,), "engine_ca_file": self.ca}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    context = make_authority(tmp_path, "ours")
    async with AsyncExitStack() as stack:
        fronts = [
            await Front(Engine(name)).start(stack, context("localhost", "127.0.0.1"))
            for name in ("prefill0", "decode0")
        ]
        yield Site(*fronts, tmp_path / "ours.pem", tmp_path)


async def test_requests_go_to_the_path_and_are_encrypted(start_cluster: Any, site: Site, events: list[bytes]) -> None:
    cluster = await start_cluster(0, 0, **site.settings(), handover="pull")
    site.prefill.engine.params = {"remote_host": "127.0.0.1", "remote_port": 5}
    status, answer = await cluster.complete(prompt="x" * 900_000)
    assert (status, answer["by"]) == (200, "decode0")
    async with cluster.client.post("/v1/completions?a=1", json={"stream": True}) as response:
        assert await response.read() == b"".join(events)
    async with cluster.client.get("/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
    async with cluster.client.get("/ready") as response:
        assert response.status == 200
    for front in (site.prefill, site.decode):
        assert front.engine.probes >= 1
        assert set(front.names) == {"localhost"}
        assert [leg.path for leg in front.engine.legs][:2] == ["/v1/completions", "/v1/completions?a=1"]
        assert front.engine.legs[0].headers["Host"] == f"localhost:{front.port}"
        assert len(front.engine.legs[0].json["prompt"]) == 900_000
    assert site.decode.engine.legs[0].json["kv_transfer_params"] == {"remote_host": "127.0.0.1", "remote_port": 5}


async def test_its_locations_are_rewritten_as_the_proxys(start_cluster: Any, site: Site) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"https://{request.host}/base/v1/elsewhere?a=1"})

    cluster = await start_cluster(0, 0, **site.settings())
    site.decode.engine.act = redirect
    async with cluster.client.post("/v1/embeddings", json={}, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (307, "/v1/elsewhere?a=1")


@pytest.mark.parametrize("wrong", ["authority", "name", "system"])
async def test_an_engine_that_cannot_prove_its_name_is_sent_nothing(
    start_cluster: Any, site: Site, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = site.settings("127.0.0.2" if wrong == "name" else "localhost")
    if wrong == "authority":
        make_authority(site.directory, "theirs")
        settings["engine_ca_file"] = site.directory / "theirs.pem"
    elif wrong == "system":
        del settings["engine_ca_file"]
    async with AsyncExitStack() as stack:
        if wrong == "name":  # another host, with a certificate for this one only
            context = make_authority(site.directory, "both")("localhost")
            settings["engine_ca_file"] = site.directory / "both.pem"
            port = (await Front(site.decode.engine).start(stack, context)).port
            settings |= {"decode": (f"https://127.0.0.1:{port}/base",), "prefill": ()}
        cluster = await start_cluster(0, 0, **settings)
        assert (await cluster.complete())[0] == 503
        assert site.decode.engine.legs == site.prefill.engine.legs == []
        assert (site.decode.engine.probes, site.prefill.engine.probes) == (0, 0)
        (engine,) = cluster.proxy.fleet.engines("decode")
        assert engine.health.value == "gone"


async def test_https_engines_are_added_kept_and_removed(start_cluster: Any, site: Site) -> None:
    state = site.directory / "state.json"
    settings = {"engine_ca_file": site.ca, "admin_api_key": "sesame", "state_file": state}
    cluster = await start_cluster(0, 0, **settings)
    name = f"https://127.0.0.1:{site.decode.port}/base"

    async def tell(to: Any, verb: str, instance: str) -> tuple[int, Any]:
        body = {"type": "decode", "instance": instance}
        async with to.client.post(f"/instances/{verb}", json=body, headers=KEY) as response:
            return response.status, await response.json()

    for bad, detail in (
        (name.replace("127.0.0.1", "localhost.example"), "Invalid instance address."),
        (name.replace("/base", "/../x"), "Invalid instance address."),
        ("https://127.0.0.1:70000", "Invalid port number."),
        (name.replace("/base", "/other"), "Instance validation failed."),
        (name.replace("https", "http"), "Instance validation failed."),
    ):
        assert await tell(cluster, "add", bad) == (400, {"detail": detail})
    outside = await tell(cluster, "add", name.replace("127.0.0.1", "8.8.8.8"))
    assert outside == (403, {"detail": "Instance address is not allowed: see --instance-allow."})
    assert await tell(cluster, "add", f"{name}/") == (200, {"message": f"Added {name} to decode_instances."})
    assert list(json.loads(state.read_text())["decode"]) == [name]
    assert (await cluster.complete())[1]["by"] == "decode0"
    again = await start_cluster(0, 0, **settings)
    assert (await again.complete())[1]["by"] == "decode0"
    async with again.client.get("/status") as response:
        assert (await response.json())["decode_nodes"] == [name]
    assert (await tell(again, "drain", name))[0] == 200
    assert (await tell(again, "remove", f"{name}/"))[0] == 200
    assert (await again.complete())[0] == 503


async def test_a_leaving_client_cancels_its_legs_there_too(start_cluster: Any, site: Site) -> None:
    cluster = await start_cluster(0, 0, **site.settings())
    engine = site.decode.engine
    engine.act = engine.hang
    request = asyncio.create_task(cluster.complete())
    await asyncio.wait_for(engine.called.wait(), 5)
    request.cancel()
    await asyncio.wait_for(engine.legs[0].ended.wait(), 5)
    assert engine.legs[0].cancelled


async def test_a_server_without_tls_holds_up_no_other(start_cluster: Any, site: Site) -> None:
    """Whether it says nothing or answers in plain HTTP."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with AsyncExitStack() as stack:
        starting = [asyncio.start_server(serve, "127.0.0.1", 0) for serve in (silent, plain)]
        servers = [await stack.enter_async_context(await server) for server in starting]
        engines = tuple(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers)
        cluster = await start_cluster(0, 0, decode=engines, engine_ca_file=site.ca, connect_timeout=0.3)
        async with asyncio.timeout(5):
            assert (await cluster.complete())[0] == 503
        await cluster.stop()


async def test_an_answer_of_unknown_length_is_not_taken_for_complete(start_cluster: Any, site: Site) -> None:
    """Whoever cuts the wire could make a part look like one; with plain HTTP the connection's end is the answer's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}")
        await writer.drain()
        writer.transport.abort()

    context = make_authority(site.directory, "mine")("127.0.0.1")
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        engine = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        cluster = await start_cluster(0, 0, decode=(engine,), engine_ca_file=site.directory / "mine.pem")
        with pytest.raises(aiohttp.ClientPayloadError):
            await (await cluster.client.get("/v1/x")).read()
        await cluster.stop()
