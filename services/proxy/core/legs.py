"""What the prefill engine is asked, made from what the client asked. The decode engine gets the client's own bytes.

The prefill leg is there for the KV it leaves in the store. So it keeps everything that shapes the prompt (messages,
tools, template arguments, LoRA's model name, cache salt), generates one token, and asks for nothing that costs more.
"""

import json
from typing import Any, Final

_DROPPED: Final = (
    "stream_options",  # refused without stream
    "min_tokens",  # would contradict max_tokens=1
    "best_of",
    "use_beam_search",
    # They make an engine compute the whole prompt's logits, and vLLM pass over its prefix cache:
    "echo",
    "logprobs",
    "prompt_logprobs",
    "top_logprobs",
    "logprob_token_ids",
)


class BadRequest(Exception):
    """The client's request cannot be understood; str() says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def parse_request(content_type: str, body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body; raises BadRequest where there is none."""
    if content_type != "application/json":
        raise BadRequest(415, "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:  # not JSON, not text, a number of 5,000 digits, 100,000 brackets
        raise BadRequest(400, f"the request body is not valid JSON: {error}") from error
    if not isinstance(request, dict):
        raise BadRequest(400, f"the request body must be a JSON object, not {_json_type(request)}")
    return request


def prefill_request(request: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """The prefill leg's request for a completion, or for a chat completion."""
    leg = {name: value for name, value in request.items() if name not in _DROPPED}
    leg |= {"max_tokens": 1, "stream": False}
    if chat or "max_completion_tokens" in leg:
        leg["max_completion_tokens"] = 1
    if "n" in leg:
        leg["n"] = 1
    return leg


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "an array"}
    return names.get(type(value), "a number")
