"""What each engine is asked, made from what the client asked.

The prefill leg is sent for the KV it leaves behind. So it keeps everything that shapes the prompt (messages, tools,
template arguments, LoRA's model name, cache salt), generates one token, and asks for nothing that costs more. The
decode engine gets the client's own bytes, apart from the field that tells it where the KV lies.
"""

import ipaddress
from functools import lru_cache
from typing import Any, Final

import msgspec

from services.proxy.core.codec import decode, encode
from services.proxy.core.endpoint import endpoint_of
from services.proxy.core.engine import Address, Engine, Handover
from services.proxy.core.requests import Fields

PARAMS: Final = "kv_transfer_params"
_DROPPED: Final = (
    "stream_options",  # refused without stream
    "min_tokens",  # would contradict max_tokens=1
    # A prefill that ends other than by length hands over nothing, and whoever waits for its KV waits for minutes.
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "repetition_detection",
    "best_of",
    "use_beam_search",
    # These make an engine compute the whole prompt's logits, and vLLM bypass its prefix cache:
    "echo",
    "logprobs",
    "prompt_logprobs",
    "top_logprobs",
    "logprob_token_ids",
)
_ASK_TO_KEEP: Final = {  # for vLLM's NIXL connector; other connectors ignore it
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def prefill_request(request: Fields, *, chat: bool, handover: Handover | None, transfer_id: str = "") -> dict[str, Any]:
    """The prefill leg's request for a completion, or a chat completion. Handover None: it is yet to be found out."""
    leg: dict[str, Any] = {name: value for name, value in request.items() if name not in _DROPPED}
    leg |= {"max_tokens": 1, "stream": False, "ignore_eos": True}
    if chat or "max_completion_tokens" in leg:
        leg["max_completion_tokens"] = 1
    if "n" in leg:
        leg["n"] = 1
    if handover is Handover.PUSH:
        leg[PARAMS] = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
    elif handover is not Handover.STORE:
        leg[PARAMS] = _ASK_TO_KEEP
    return leg


def pulled_params(answer: bytes, prefill: Address) -> dict[str, Any] | None:
    """Where the KV lies, as a prefill engine's answer says; None if it does not, or is not a JSON object.

    An engine that knows only a loopback address of itself is given the address at which the proxy reaches it.
    """
    try:
        content = decode(answer)
    except (ValueError, RecursionError):
        return None
    params = content.get(PARAMS) if isinstance(content, dict) else None
    if not isinstance(params, dict) or not params:
        return None
    host = endpoint_of(prefill).host
    if "remote_host" in params and _is_loopback(str(params["remote_host"])) and not _is_loopback(host):
        params = params | {"remote_host": host}
    return params


def sends_nothing(answer: bytes) -> bool:
    """Whether a prefill engine that pushes keeps its KV to itself: its answer ended other than by length."""
    try:
        reasons = {choice.finish_reason for choice in _ended.decode(answer).choices}
    except (ValueError, RecursionError):
        return False
    return not reasons.isdisjoint({"stop", "abort", "error", "repetition"})


def with_params(body: bytes, request: Fields, params: dict[str, Any]) -> bytes:
    """The client's request with where the KV lies; `request` is `body`, parsed."""
    if not request or PARAMS in request:
        return encode({**request, PARAMS: params})
    return b'%b,"%b":%b}' % (body[: body.rindex(b"}")], PARAMS.encode(), encode(params))


def pushed_params(transfer_id: str, engine_id: str, bootstrap: str) -> dict[str, Any]:
    """For the decode leg of a pair, as vLLM's MooncakeConnector wants it. Bootstrap: http://HOST:PORT."""
    return {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "transfer_id": transfer_id,
        "remote_engine_id": engine_id,
        "remote_bootstrap_addr": bootstrap,
    }


def bootstrap_of(engine: Engine, port: int) -> str:
    """Where a prefill engine's bootstrap server listens: http://HOST:PORT."""
    return f"http://{endpoint_of(engine.address).beside(port)}"


def transfer_ids(answer: bytes) -> tuple[str, ...]:
    """The engine's ids by data-parallel rank, from a bootstrap server's /query; empty if it is not one."""
    try:
        ranks = decode(answer)
        if not isinstance(ranks, dict):
            return ()
        return tuple(str(ranks[rank]["engine_id"]) for rank in sorted(ranks, key=int))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Ended(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


_ended: Final = msgspec.json.Decoder(_Ended)


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
