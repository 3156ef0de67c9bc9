"""Prompts of a given length, a way to send them to anything that speaks the OpenAI API, and a look at its metrics.

Requests are sent one at a time at temperature 0 and answered with token ids, so that two engines can be compared token
by token. Time to first token is what the caller sees: an answer that is not streamed arrives all at once.
"""

import http.client
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer

from demo.cluster import MODEL_NAME

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "key", "value", "cache", "store"]
ANSWER_TOKENS = 24
REQUEST_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Prompt:
    text: str
    chat: bool
    stream: bool

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, max_tokens: int, stream: bool) -> dict[str, Any]:
        content = {"messages": [{"role": "user", "content": self.text}]} if self.chat else {"prompt": self.text}
        options = {"stream_options": {"include_usage": True}} if stream else {}
        return {
            "model": MODEL_NAME,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": stream,
        } | (content | options)


@dataclass(frozen=True)
class Answer:
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int  # of the prompt, from the engine's own cache or from Larder
    first_token_s: float


class RequestError(RuntimeError):
    """The answer was not a 200, or reported an error midway."""


def make_prompts(model: Path, *, tokens: list[int], seed: int = 0) -> list[Prompt]:
    """Random prompts of these lengths, cycling through completion, chat, streamed completion, streamed chat."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    generator = random.Random(seed)
    prompts = []
    for index, length in enumerate(tokens):
        text = " ".join(generator.choices(WORDS, k=length))  # a word is at least a token
        end = tokenizer.encode(text).offsets[length - 1][1]
        prompts.append(Prompt(text[:end], chat=index % 2 == 1, stream=index % 4 >= 2))
    return prompts


def ask(address: str, prompt: Prompt, *, max_tokens: int = ANSWER_TOKENS, stream: bool | None = None) -> Answer:
    """Send it to HOST:PORT and read the whole answer; raises RequestError, or OSError if there is no answer."""
    streamed = prompt.stream if stream is None else stream
    connection = http.client.HTTPConnection(address, timeout=REQUEST_DEADLINE_S)
    try:
        started = time.monotonic()
        body = json.dumps(prompt.body(max_tokens, streamed))
        connection.request("POST", prompt.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RequestError(f"{address}{prompt.path} answered {response.status}: {response.read(2000)!r}")
        chunks = _events(response) if streamed else iter([json.loads(response.read())])
        return _collect(chunks, started)
    finally:
        connection.close()


def post(address: str, path: str) -> None:
    """POST without a body; raises RequestError unless answered 200."""
    connection = http.client.HTTPConnection(address, timeout=REQUEST_DEADLINE_S)
    try:
        connection.request("POST", path)
        response = connection.getresponse()
        if response.status != 200:
            raise RequestError(f"{address}{path} answered {response.status}: {response.read(2000)!r}")
    finally:
        connection.close()


def metric(address: str, name: str, **labels: str) -> float:
    """Sum of the samples of that name with these label values; 0 if there are none yet."""
    connection = http.client.HTTPConnection(address, timeout=REQUEST_DEADLINE_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        if data:
            yield json.loads(data)
    raise RequestError("the stream ended without [DONE]")


def _collect(chunks: Iterator[dict[str, Any]], started: float) -> Answer:
    token_ids: list[int] = []
    first_token_s = 0.0
    usage: dict[str, Any] = {}
    for chunk in chunks:
        if "error" in chunk:
            raise RequestError(f"the answer says: {chunk['error']}")
        for choice in chunk["choices"]:
            token_ids += choice.get("token_ids") or []
        if token_ids and not first_token_s:
            first_token_s = time.monotonic() - started
        usage = chunk.get("usage") or usage
    details = usage.get("prompt_tokens_details") or {}
    return Answer(tuple(token_ids), usage["prompt_tokens"], details.get("cached_tokens") or 0, first_token_s)
