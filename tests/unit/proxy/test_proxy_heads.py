"""What is passed on of the heads of requests and answers, and how it is written."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from services.proxy.core.engine import Address
from services.proxy.engine_http.heads import for_client, header_lines, request_head

ENGINES = ["10.1.2.3:8000", "https://10.1.2.3:8000", "[fd00::1]:8000", "10.1.2.3:8000/base/x"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["Location", "content-location"])
def test_locations_are_rewritten_as_the_proxys(engine: str, name: str) -> None:
    authority, base = ("[fd00::1]:8000" if "fd00" in engine else "10.1.2.3:8000"), engine.partition("00/")[2]
    base = f"/{base}" if base else ""
    for scheme in ("http:", "https:", "HTTP:", ""):
        for there in (authority, "elsewhere.internal", "user:pw@10.9.9.9:1"):
            for path in ("/v1/completions", "/v1/a?next=%2Fb#c", "/"):
                headers = CIMultiDict({name: f"{scheme}//{there}{base}{path}", "X-Kept": "1"})
                assert list(for_client(headers, Address(engine)).items()) == [(name, path), ("X-Kept", "1")]
        assert for_client(CIMultiDict({name: f"{scheme}//{authority}"}), Address(engine))[name] == "/"
    for path in ("/v1/x", "x?y"):
        given = f"{base}{path}" if path.startswith("/") else path
        assert for_client(CIMultiDict({name: given}), Address(engine))[name] == path


def test_no_other_header_names_the_engine() -> None:
    headers = CIMultiDict(
        [
            ("Refresh", "5; url=http://10.1.2.3:8000/base/v1/x"),
            ("Link", '<http://10.1.2.3:8000/base/v1/y?a=1>; rel="next"'),
            ("Link", '<https://docs.example/z>; rel="help"'),
            ("X-Served-By", "10.1.2.3:8000"),
            ("Alt-Svc", 'h2=":8443"'),
            ("X-Engine", "one"),
        ]
    )
    assert list(for_client(headers, Address("10.1.2.3:8000/base")).items()) == [
        ("Refresh", "5; url=/v1/x"),
        ("Link", '</v1/y?a=1>; rel="next"'),
        ("Link", '<https://docs.example/z>; rel="help"'),
        ("X-Engine", "one"),
    ]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"])
async def test_a_slash_at_the_end_changes_nothing(cluster: Any, path: str) -> None:
    """FastAPI engines would redirect to themselves."""
    is_split = path.endswith("completions")
    for slashes in ("/", "//"):
        url = URL(f"{cluster.url}{path}{slashes}?a=%2Fb/", encoded=True)
        async with cluster.client.post(url, json={"prompt": "hello"}, allow_redirects=False) as response:
            assert (response.status, (await response.json())["by"]) == (200, "decode0")
    seen = [("prefill0", f"{path}?a=%2Fb/")] * 2 * is_split + [("decode0", f"{path}?a=%2Fb/")] * 2
    assert cluster.legs == seen
    await cluster.metric_is(2, "requests_total", code="200", outcome="ok")
    async with cluster.client.get("/v1/models/") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
    async with cluster.client.get("/") as response:
        assert response.status == 404


async def test_a_redirect_leads_to_the_proxy_and_is_not_followed_by_it(cluster: Any) -> None:
    engine = cluster.decodes[0]

    async def redirect(request: web.Request) -> web.StreamResponse:
        assert request.host == engine.address
        where = f"http://{request.host}/v1/elsewhere"
        headers = {"Location": where, "Content-Location": where, "X-Link": where}
        return web.Response(status=307, headers=headers, text="elsewhere")

    engine.act = redirect
    for path in ("/v1/completions", "/v1/embeddings"):
        async with cluster.client.post(path, json={}, allow_redirects=False) as response:
            assert (response.status, await response.text()) == (307, "elsewhere")
            assert response.headers["Location"] == response.headers["Content-Location"] == "/v1/elsewhere"
            assert response.headers["X-Link"] == "/v1/elsewhere"
            assert "127.0.0.1" not in str(response.headers)
    assert [leg.path for leg in engine.legs] == ["/v1/completions", "/v1/embeddings"]


@pytest.mark.parametrize("how", ["reset", "garbage", "end"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/files", "/v1/models"])
async def test_the_proxys_own_errors_name_no_engine(cluster: Any, path: str, how: str) -> None:
    (engine,) = cluster.decodes
    if how == "end":
        await engine.end()
    else:
        engine.act = getattr(engine, how)
    method = "GET" if path == "/v1/models" else "POST"
    async with cluster.client.request(method, path, json={}) as response:
        assert response.status in (502, 503)
        assert "127.0.0.1" not in await response.text()
        assert engine.address.rpartition(":")[2] not in await response.text()


async def test_bytes_that_are_not_utf_8_pass_both_ways(start_cluster: Any) -> None:
    """HTTP's headers were once Latin-1; what engines and clients agree on is up to them."""
    cluster = await start_cluster(scheduling="session", session_header="X-Name")
    engine = cluster.decodes[0]
    engine.act = engine.latin_1_header
    host, port = cluster.url.removeprefix("http://").split(":")
    for path in (b"/v1/completions", b"/v1/embeddings"):
        reader, writer = await asyncio.open_connection(host, int(port))
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n" % path
        writer.write(head + b"X-Name: caf\xe9 \xff\r\nX-Utf-8: caf\xc3\xa9\r\n\r\n{}")
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"{}"
        writer.close()
        await writer.wait_closed()
        lines = answer.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 200 Tr\xe8s bien"
        assert b"X-Odd: caf\xe9" in lines
        assert [line.lower() for line in lines].count(b"content-length: 2") == 1
    for leg in [leg for each in (*cluster.prefills, *cluster.decodes) for leg in each.legs]:
        assert leg.headers["X-Name"].encode(errors="surrogateescape") == b"caf\xe9 \xff"
        assert leg.headers["X-Utf-8"] == "café"
    assert len(cluster.legs) == 3


def test_a_request_has_a_host_and_a_length_and_nothing_else() -> None:
    assert request_head("GET", "/a?b=c", "[::1]:80", b"", 0) == b"GET /a?b=c HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"
    lines = request_head("POST", "/", "h:1", header_lines({"X-A": "é", "x-b": ""}), 0).split(b"\r\n")
    assert lines[1:] == [b"Host: h:1", "X-A: é".encode(), b"x-b: ", b"Content-Length: 0", b"", b""]
    assert b"Content-Length: 3\r\n" in request_head("GET", "/", "h:1", b"", 3)


@pytest.mark.parametrize("bad", ["a\r\nX-B: c", "a\nb", "a\rb", "\r\n", "a\0b"])
def test_nothing_smuggles_a_line_into_a_request(bad: str) -> None:
    for headers in ({"X-A": bad}, {bad: "a"}):
        with pytest.raises(ValueError, match="line break"):
            header_lines(headers)
    for method, target, host in (("GET", "/" + bad, "h:1"), ("GET", "/", "h:1" + bad), (bad, "/", "h:1")):
        with pytest.raises(ValueError, match="line break"):
            request_head(method, target, host, b"", 0)
    with pytest.raises(ValueError, match="space"):
        request_head("GET", "/a HTTP/1.0", "h:1", b"", 0)


def test_bytes_that_are_not_utf_8_leave_as_they_came() -> None:
    assert header_lines({"X-A": "caf\udce9", "X-B": "é"}) == b"X-A: caf\xe9\r\nX-B: \xc3\xa9\r\n"
