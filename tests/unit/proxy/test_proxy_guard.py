"""No client tells an engine where to fetch KV or embeddings from, however it tries."""

import json
import time
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from services.proxy.core import guard
from services.proxy.core.requests import BadRequest

JSON = "application/json"
WHERE = {"do_remote_prefill": True, "remote_host": "10.0.0.1", "remote_port": 5600}
NAMES = ["kv_transfer_params", "ec_transfer_params", "bootstrap_host", "disaggregated_params"]
URL_FORM = "application/x-www-form-urlencoded"


def form(name: str, value: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n--b--\r\n'.encode()


def refused(body: bytes, *content_types: str, encodings: tuple[str, ...] = ()) -> str | None:
    try:
        guard.check(body, content_types, encodings)
    except BadRequest as refusal:
        return f"{refusal.status} {refusal}"
    return None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "body",
    [
        {"NAME": WHERE},
        {"NAME": []},
        {"vllm_xargs": {"NAME": WHERE}},
        {"sampling_params": {"extra_args": {"NAME": WHERE}}},
        {"extra_body": {"NAME": WHERE}, "messages": []},
        {"x": [[{"NAME": "there"}]]},
        [{"NAME": WHERE}],
        {"vllm_xargs": json.dumps({"NAME": WHERE})},
    ],
)
def test_the_fields_are_refused_wherever_they_stand(name: str, body: Any) -> None:
    text = json.dumps(body).replace("NAME", name)
    escaped = text.replace(name, "".join(f"\\u{ord(char):04X}" for char in name))
    for written in (text, text.replace(":", "\n :\t"), escaped, text.replace(name, f"\\u{ord(name[0]):04x}{name[1:]}")):
        assert refused(written.encode(), JSON) == f"400 {name} is between the proxy and its engines: leave it out"
        assert refused(written.encode()) is not None  # a body without a type
        assert refused(written.encode(), "text/plain") is not None


@pytest.mark.parametrize(
    "body",
    [
        b'{"kv_transfer_params": {"a": 1}, "kv_transfer_params": null}',
        b'{"kv_transfer_params": null, "kv_transfer_params": {"a": 1}}',
        b'{"tools": {"kv_transfer_params": 1}, "tools": [], "x": 1}',  # an engine may take the first one
        b'{"messages": [{"kv_transfer_params": {}}], "kv_transfer_params": {}}',
        b'\xef\xbb\xbf{"kv_transfer_params": {}}',
        b'{"kv_transfer_params": {}',  # whatever may read that
        b'{"kv_transfer_params": NaN}',
    ],
)
def test_neither_duplicates_nor_odd_json_hide_them(body: bytes) -> None:
    assert refused(body, JSON) == "400 kv_transfer_params is between the proxy and its engines: leave it out"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form("kv_transfer_params", "x"), "multipart/form-data; boundary=b"),
        (form("vllm_xargs", '{"ec_transfer_params": "x"}'), "multipart/form-data; boundary=b"),
        (form("vllm_xargs", '{"ec\\u005ftransfer_params": "x"}'), "multipart/form-data; boundary=b"),
        (b"model=tiny&kv_transfer_params=x", URL_FORM),
        (b"kv%5Ftransfer%5fparams=x", URL_FORM + "; charset=utf-8"),
        (b"vllm_xargs=" + quote('{"kv_transfer_params": "x"}').encode(), URL_FORM),
        (b"vllm_xargs=%7B+%22kv_transfer_params%22+:+1%7D", URL_FORM.upper()),
    ],
)
def test_forms_are_inspected_too(body: bytes, content_type: str) -> None:
    found = refused(body, content_type)
    assert found is not None
    assert found.endswith("_transfer_params is between the proxy and its engines: leave it out")
    assert refused(body, "audio/wav", content_type) is not None  # of two types, either may be believed


def test_an_unreadable_body_is_refused() -> None:
    body = json.dumps({"kv_transfer_params": WHERE})
    for encoding in ("utf-16", "utf-16-le", "utf-32-be"):
        assert refused(body.encode(encoding), JSON) == "400 the request body is not valid JSON in UTF-8"
        assert refused(body.encode(encoding)) == "400 the request body is not valid JSON in UTF-8"
        assert (refused(body.encode(encoding), "text/plain") or "").startswith("400 kv_transfer_params is between")
    assert refused(b"RIFF\0\0", "audio/wav") is refused(b"\0\0kv_transfer_params", "audio/wav") is None
    for charset in ("charset=utf-16", 'charset="UTF-7"', "charset*=us-ascii''utf-16"):
        assert (refused(b"--b", f"multipart/form-data; boundary=b; {charset}") or "").startswith("415 a form in 'utf-")
    assert (refused(b"\x1f\x8b", JSON, encodings=("gzip",)) or "").startswith("415 Content-Encoding 'gzip'")
    assert refused(b"{}", JSON, encodings=("identity",)) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"kv_transfer_params": null}',
        b'{"kv\\u005ftransfer_params" : null, "a": 1}',
        b'{"prompt": "what is \\"kv_transfer_params\\": {} ?"}',
        b'{"stop": ["kv_transfer_params"], "user": "kv_transfer_params"}',
        b'{"tools": [{"function": {"parameters": {"properties": {"kv_transfer_params": {"type": "object"}}}}}]}',
        b'{"messages": [{"role": "user", "content": "caf\\u00e9", "bootstrap_host": 1}]}',
        b'{"response_format": {"json_schema": {"bootstrap_host": {}}}}',
        b'{"metadata": {"bootstrap_port": "5"}, "input": [{"ec_transfer_params": {}}]}',
        b'{"my_kv_transfer_params": {}}',
    ],
)
def test_a_body_that_only_looks_suspicious_passes(body: bytes) -> None:
    assert refused(body, JSON) is None
    assert refused(body, f"{JSON}; charset=latin-1") is None


def test_a_large_hostile_body_is_judged_at_once() -> None:
    body = b'{"a": [' + b'"\\u00e9",[],' * (1 << 20) + b'0], "vllm_xargs": {"kv_transfer_params": {}}}'
    assert refused(body, JSON) is not None
    assert refused(b'{"kv_transfer_params"' + b" " * (8 << 20) + b":" + b" " * (8 << 20) + b"null}", JSON) is None


PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/audio/transcriptions"]


@pytest.mark.parametrize("path", PATHS)
async def test_no_such_body_reaches_an_engine(cluster: Any, path: str) -> None:
    bodies = [{"ec_transfer_params": WHERE}, {"vllm_xargs": {"kv_transfer_params": WHERE}}]
    # a proxy that strips what Connection lists would send the body without the type that was inspected
    for headers in ({"Content-Type": JSON}, {"Content-Type": "text/x", "Connection": "content-type"}):
        for body in bodies:
            async with cluster.client.post(path, data=json.dumps(body), headers=headers) as response:
                error = (await response.json())["error"]
                assert (response.status, error["type"]) == (400, "invalid_request_error")
                assert error["message"].endswith("_transfer_params is between the proxy and its engines: leave it out")
    form = aiohttp.FormData({"vllm_xargs": json.dumps({"kv_transfer_params": "x"}), "model": "tiny"})
    async with cluster.client.post(path, data=form) as response:
        assert response.status == 400
    assert cluster.legs == []


@pytest.mark.parametrize("given", ["___prefill_addr_10.0.0.1:5600___decode_addr_10.0.0.1:5601_0", "x_decode_addr_y"])
async def test_no_request_id_tells_an_engine_where_to_fetch_from(cluster: Any, given: str) -> None:
    """vLLM's MoRIIO connector reads its peer's address out of the id."""
    async with cluster.client.post("/v1/completions", json={}, headers={"X-Request-Id": given}) as response:
        assert response.status == 200
    ids = {leg.headers["X-Request-Id"] for engine in (*cluster.prefills, *cluster.decodes) for leg in engine.legs}
    assert len(ids) == 1
    assert "_addr_" not in ids.pop()


def test_a_content_type_is_bounded() -> None:
    started = time.monotonic()
    assert refused(b"{}", *[f'a/b;"{";" * 8000}'] * 100) == "400 a Content-Type over 512 characters"
    assert refused(b"{}", *[f'a/b;"{";" * 500}'] * 100) is None
    assert time.monotonic() - started < 2


def test_an_encoded_form_is_bounded() -> None:
    """Decoded, 8 MB of it would take 1.5 GB, and seconds."""
    answer = refused(b"%" * (8 << 20), URL_FORM)
    assert answer is not None
    assert answer.startswith("413 a form over 262144 bytes: send it as multipart/form-data")
    assert refused(b"prompt=" + b"%41" * 80_000, URL_FORM) is None


async def test_a_connection_header_removes_none_that_says_how_to_read_a_body(cluster: Any) -> None:
    headers = {"Content-Type": JSON, "Connection": "Content-Type, X-Hop, keep-alive", "X-Hop": "1"}
    for path in ("/v1/completions", "/v1/embeddings"):
        async with cluster.client.post(path, data=b'{"prompt": "a"}', headers=headers) as response:
            assert response.status == 200
    legs = [leg for engine in (*cluster.prefills, *cluster.decodes) for leg in engine.legs]
    assert len(legs) == 3
    for leg in legs:
        assert leg.headers.getall("Content-Type") == [JSON]
        assert "X-Hop" not in leg.headers
