"""Request traces, one request per line, read as streams: what each line says about its prompt's blocks.

Two kinds: traces with `hash_ids`, a number for each block of the prompt, like those that Mooncake and Qwen published;
and requests as OpenAI's API takes them, bare or in the `body` of a batch file (which vLLM's run-batch reads). The
latter's prompts are cut into blocks here: of tokens if they are given as tokens, else of text.
"""

import gzip
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, TextIO

import xxhash
from larder.errors import LarderError

from services.master.replay.policies import Blocks

BLOCK_TOKENS: Final = 256
"""Of prompts that are cut into blocks here: the connector's own chunk."""
TOKEN_CHARACTERS: Final = 4
LINE_CHARACTERS_MAX: Final = 64 * 2**20
BAD_SHOWN_MAX: Final = 10
ACCEPTED: Final = '{"hash_ids": [0, 1, ...], ...}, or {"prompt": ...} or {"messages": [...]}'
_TOKEN_BYTES: Final = 4


class TraceError(LarderError):
    """Not a trace, or nothing in it."""

    remedy = f"give a file with one request per line, as JSON: {ACCEPTED}"


@dataclass(frozen=True, slots=True)
class BadLine:
    number: int
    why: str


@dataclass(slots=True)
class Trace:
    """A file, and what one pass over it found. Iterating passes over it again and leaves bad lines out."""

    path: Path
    requests: int = 0
    longest: int = 0
    uses: "array[int]" = field(default_factory=lambda: array("Q"))  # blocks of all requests, end to end
    lengths: "array[int]" = field(default_factory=lambda: array("L"))
    distinct: int = 0
    block_tokens: int = 0  # 0: not known
    bad_lines: int = 0
    bad: list[BadLine] = field(default_factory=list)  # the first of them

    def __iter__(self) -> Iterator[Blocks]:
        start = 0
        for length in self.lengths:
            yield self.uses[start : start + length].tolist()
            start += length


def load(path: Path, progress: Callable[[Iterator[str]], Iterable[str]] = iter) -> Trace:
    """Reads a trace once; it keeps 8 bytes per block. Raises TraceError and OSError."""
    trace = Trace(path)
    seen: set[int] = set()
    with _open(path) as lines:
        for number, line in enumerate(progress(_bounded(lines)), 1):
            if not line.strip():
                continue
            try:
                blocks, tokens = _request(line)
            except ValueError as error:
                trace.bad_lines += 1
                trace.bad += [BadLine(number, str(error))] if len(trace.bad) < BAD_SHOWN_MAX else []
                continue
            _add(trace, blocks, tokens)
            seen.update(blocks)
    if not trace.uses:
        first = f"; line {trace.bad[0].number}: {trace.bad[0].why}" if trace.bad else ""
        raise TraceError(f"{path}: no request in it{first}")
    trace.distinct = len(seen)
    return trace


def _add(trace: Trace, blocks: Blocks, tokens: int) -> None:
    trace.requests += 1
    trace.longest = max(trace.longest, len(blocks))
    trace.uses.extend(blocks)
    trace.lengths.append(len(blocks))
    if blocks:
        trace.block_tokens = max(trace.block_tokens, -(-tokens // len(blocks)))


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open(encoding="utf-8", errors="replace")


def _bounded(lines: TextIO) -> Iterator[str]:
    """Lines; one that never ends does not use up the memory."""
    while line := lines.readline(LINE_CHARACTERS_MAX):
        yield line


def _request(line: str) -> tuple[Blocks, int]:
    """Its blocks and how many tokens its prompt has, 0 if it does not say. Raises ValueError."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(said, dict):
        raise ValueError(f"not a request: {ACCEPTED}")
    if "hash_ids" in said:
        return _hashed(said)
    body = said.get("body", said)
    if not isinstance(body, dict):
        raise ValueError("its body is no object")
    for name, cut in (("prompt_token_ids", _tokens), ("prompt", _prompt), ("messages", _messages)):
        if name in body:
            return cut(body[name])
    raise ValueError(f"not a request: {ACCEPTED}")


def _hashed(said: dict[str, Any]) -> tuple[Blocks, int]:
    blocks, tokens = said["hash_ids"], said.get("input_length", 0)
    if not isinstance(blocks, list) or not all(type(block) is int and 0 <= block < 1 << 64 for block in blocks):
        raise ValueError("hash_ids is no list of whole numbers from 0 on")
    if type(tokens) is not int or tokens < 0:
        raise ValueError("input_length is no number of tokens")
    return list(dict.fromkeys(blocks)), tokens


def _tokens(ids: Any) -> tuple[Blocks, int]:
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 1 << 32 for token in ids):
        raise ValueError("its prompt is no list of token ids")
    data = b"".join(token.to_bytes(_TOKEN_BYTES) for token in ids)
    return _cut(data, BLOCK_TOKENS * _TOKEN_BYTES), len(ids) // BLOCK_TOKENS * BLOCK_TOKENS


def _prompt(prompt: Any) -> tuple[Blocks, int]:
    if isinstance(prompt, list):
        return _tokens(prompt)
    if not isinstance(prompt, str):
        raise ValueError("its prompt is neither text nor token ids")
    blocks = _cut(prompt.encode(errors="replace"), BLOCK_TOKENS * TOKEN_CHARACTERS)
    return blocks, len(blocks) * BLOCK_TOKENS


def _messages(messages: Any) -> tuple[Blocks, int]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages is no list of messages")
    return _prompt("".join(chain.from_iterable(_parts(message) for message in messages)))


def _parts(message: dict[str, Any]) -> Sequence[str]:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return (f"\0{message.get('role', '')}\0", text)


def _cut(data: bytes, size: int) -> Blocks:
    """Whole blocks only, as the connector stores them; each is named by all that is before its end."""
    chained = xxhash.xxh3_64()
    blocks = []
    for start in range(0, len(data) - size + 1, size):
        chained.update(data[start : start + size])
        blocks.append(chained.intdigest())
    return blocks
