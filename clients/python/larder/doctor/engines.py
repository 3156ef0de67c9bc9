"""Engines: whether those that should share KV do, by what they say in their logs; and the proxy's view of them."""

import asyncio
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from larder.doctor.finding import Finding, Part
from larder.vllm.introduction import Introduction, heard

PART: Final = Part("engines")
HTTP_S: Final = 2.0
ANSWER_BYTES_MAX: Final = 16 * 2**20
SHOWN_MAX: Final = 60
HOW: Final = {
    "hashes": "give both the same --prefix-caching-hash-algo and, with xxhash, the same PYTHONHASHSEED",
    "model": "give both the same model, revision and weights: the digests of their files differ",
    "config": "give both the same model and --hf-overrides",
    "dtype": "give both the same --dtype",
    "cache_dtype": "give both the same --kv-cache-dtype",
    "quantization": "give both the same --quantization",
    "vllm": "give both the same version of vLLM",
    "tp": "give both the same --tensor-parallel-size",
    "pp": "give both the same --pipeline-parallel-size",
    "dcp": "give both the same --decode-context-parallel-size",
    "backends": "give both the same attention backend",
    "isa": "their processors differ: KV in their layouts cannot be exchanged",
    "max_model_len": "give both the same --max-model-len",
    "windows": "give both, or neither, --disable-sliding-window",
    "draft": "give both the same --speculative-config",
    "environment": "give both the same VLLM_ variables",
    "namespace": 'give both the same "namespace" in kv_connector_extra_config',
    "chunk_tokens": 'give both the same "chunk_blocks" and --block-size',
}
"""What differs in a name, and what makes it equal; `Introduction.facts` has them all."""


def check_logs(logs: Sequence[Path]) -> list[Finding]:
    """Logs of engines that should share. Raises OSError."""
    found: list[Finding] = []
    known: dict[str, Introduction] = {}
    for log in logs:
        with log.open(encoding="utf-8", errors="replace") as lines:
            said = heard(lines)
        if said is None:
            advice = "is LarderConnector in its --kv-transfer-config, and did it start? its log says why not"
            found.append(PART.bad(str(log), "no word of Larder's connector in it", advice=advice))
        elif said.alone:
            found.append(PART.bad(str(log), said.alone, advice="restart it with weights that can be read as files"))
        else:
            known[str(log)] = said
    return [*found, *_compare(known)]


def _compare(known: Mapping[str, Introduction]) -> Iterator[Finding]:
    if not known:
        return
    (first, one), *others = known.items()
    for name, other in others:
        if other.name == one.name:
            continue
        differing = list(_differences(one.facts, other.facts))
        if not differing:
            yield PART.bad(f"{first} and {name}", "they share nothing, though they say the same facts")
        for fact, this, that in differing:
            said = f"they share nothing: {fact} is {_show(this)} and {_show(that)}"
            advice = HOW.get(fact.partition(".")[0], "give both the same settings")
            yield PART.bad(f"{first} and {name}", said, advice=advice)
    if len({each.name for each in known.values()}) == 1:
        yield PART.ok(", ".join(known), f"share KV as {one.name}" if len(known) > 1 else f"shares KV as {one.name}")


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for fact in sorted(one.keys() | other.keys()):
        this, that = one.get(fact), other.get(fact)
        if isinstance(this, Mapping) and isinstance(that, Mapping):
            yield from ((f"{fact}.{inner}", *values) for inner, *values in _differences(this, that))
        elif this != that:
            yield fact, this, that


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."


# ---- the proxy -----------------------------------------------------------------------------------

_UP: Final = re.compile(r"^larder_proxy_(?:engine|instance)_up\{(.*)\} ([0-9.e+]+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


async def check_proxy(address: str) -> list[Finding]:
    """By what it serves to everybody: /status and /metrics."""
    what = f"proxy {address}"
    try:
        status = json.loads(await asyncio.to_thread(_get, f"http://{address}/status"))
        engines = {role: list(status[f"{role}_nodes"]) for role in ("prefill", "decode")}
        metrics = await asyncio.to_thread(_get, f"http://{address}/metrics")
    except (urllib.error.HTTPError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return [PART.bad(what, "answers, and is no Larder proxy", advice="correct the address")]
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        said = f"does not answer: {getattr(reason, 'strerror', None) or reason}"
        return [PART.bad(what, said, remedy=_start(address), advice="with its engines; or correct the address")]
    found = []
    if not engines["decode"]:
        advice = "name some by --decode, or add them: POST /instances/add"
        found.append(PART.bad(what, "has no decode engine: every request is a 503", advice=advice))
    for role, engine in _down(metrics):
        said = f"the {role} engine {engine} does not answer the proxy"
        found.append(PART.bad(what, said, advice="does it run, and is its port open to the proxy's host?"))
    counts = ", ".join(f"{len(addresses)} {role}" for role, addresses in engines.items())
    return found or [PART.ok(what, f"answers; engines: {counts}")]


def _start(address: str) -> str:
    return f"larder proxy --port {address.rpartition(':')[2]} --prefill HOST:PORT --decode HOST:PORT"


def _down(metrics: str) -> Iterator[tuple[str, str]]:
    for labels, value in _UP.findall(metrics):
        known = dict(_LABEL.findall(labels))
        if float(value) == 0:
            yield known.get("role", ""), known.get("engine") or known.get("instance", "")


def _get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=HTTP_S) as answer:
        data: bytes = answer.read(ANSWER_BYTES_MAX)
    return data.decode(errors="replace")
