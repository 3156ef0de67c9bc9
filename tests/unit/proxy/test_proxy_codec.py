"""JSON as the proxy reads and writes it: as fast as possible, and no stricter than the engines."""

import json
import time
from typing import Any

import pytest

from services.proxy.core import legs, requests
from services.proxy.core.codec import decode, encode
from services.proxy.core.requests import BadRequest

PARAMS = {"do_remote_prefill": True, "remote_block_ids": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 123456789012345678901234567890}',
        '{"a": [1.0, -0.0, 1e22, 0.1, 18446744073709551615]}',
        '{"a": "\\ud800"}',
        '{"a": 1e400, "b": -Infinity}',
        '{"a": 1, "a": 2}',
        '\ufeff{"a": "é\\u00e9/\\/"}',
    ],
)
def test_whatever_engines_can_read_is_read(text: str) -> None:
    assert decode(text.encode()) == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}x', b"\xff", b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16")])
def test_anything_but_json_in_utf_8_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(content)


def test_endless_nesting_does_not_crash_the_process() -> None:
    with pytest.raises(RecursionError):
        decode(b"[" * 100_000)


@pytest.mark.parametrize("colon", [":", " \n :"])
def test_fields_are_counted_before_they_are_read(colon: str) -> None:
    def body(count: int) -> bytes:
        return ("{" + ",".join(f'"field-{n}\\\\"{colon}1' for n in range(count)) + "}").encode()

    started = time.monotonic()
    with pytest.raises(BadRequest, match="the request body has over 262144 fields"):
        requests.parse_request("application/json", body(1_000_000))
    assert time.monotonic() - started < 3  # most of it spent here, on the body
    assert requests.fields_of(body(262_145)) == {}
    assert len(requests.parse_request("application/json", body(262_144))) == 262_144
    text = '{"prompt": "%s"}' % ("12:34:56 " * 1_000_000)
    assert list(requests.parse_request("application/json", text.encode())) == ["prompt"]


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "é", {"b": ""}]}, {"a": 2**70}, {"a": "\ud800"}])
def test_whatever_was_read_can_be_written(value: Any) -> None:
    assert json.loads(encode(value)) == value


@pytest.mark.parametrize("body", [b'{"model": "tiny", "n": 1e400}', b' {"a": {"b": {}}}\r\n', b'{ "a":"}"\n}'])
def test_the_clients_bytes_are_kept_when_the_decode_engine_is_told_where_the_kv_lies(body: bytes) -> None:
    told = legs.with_params(body, json.loads(body), PARAMS)
    assert told.startswith(body[: body.rindex(b"}")])
    assert json.loads(told) == json.loads(body) | {legs.PARAMS: PARAMS}


@pytest.mark.parametrize("body", [b"{}", b"{ }", b'{"kv_transfer_params": null, "a": 1}'])
def test_the_params_appear_only_once(body: bytes) -> None:
    told = legs.with_params(body, json.loads(body), PARAMS)
    assert json.loads(told) == json.loads(body) | {legs.PARAMS: PARAMS}
    assert told.count(b"kv_transfer_params") == 1
