"""Which of vLLM's paths besides /v1 clients may reach through the proxy, and which requests may run twice. Paths that
change an engine, or tell of one alone, are not among them: they are the operators' affair (broadcast).
"""

from typing import Final

PASSED: Final = {
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/tokenizer_info": "GET",
    "/pooling": "POST",
    "/classify": "POST",
    "/score": "POST",
    "/rerank": "POST",
    "/embed": "POST",
    "/v2/embed": "POST",
    "/v2/rerank": "POST",
    "/generative_scoring": "POST",
    "/invocations": "POST",  # SageMaker's names
    "/ping": "*",
    "/inference/v1/generate": "POST",
    "/cohere/v2/chat": "POST",
    "/cohere/v2/chat/render": "POST",
}
"""Path -> method; * is any."""

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REPEATABLE: Final = frozenset(PASSED) | {
    *("/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/score", "/v1/rerank", "/v1/systemone"),
    *("/v1/chat/completions/batch", "/v1/audio/transcriptions", "/v1/audio/translations"),
    *("/v1/messages/count_tokens", "/v1/messages/render", "/v1/responses/render"),
    *("/v1/completions/render", "/v1/chat/completions/render"),
    *("/v1/completions/derender", "/v1/chat/completions/derender"),
}


def may_run_twice(method: str, path: str) -> bool:
    return method in _SAFE_METHODS or path in _REPEATABLE


def is_under_way(route: str) -> bool:
    """Whether the proxy waits for requests of this route before it ends: for clients', not for operators'."""
    return route.startswith("/v1/") or route in PASSED
