"""The demo's verdict can fail: each thing it promises, broken once."""

from dataclasses import replace

import pytest

from demo.run import Row, Turn
from demo.traffic import Answer, Prompt

ANSWER = Answer(token_ids=(5, 6, 7), prompt_tokens=700, cached_tokens=640, first_token_s=0.1)
COLD = Turn(ANSWER, loaded_tokens=640, got_bytes=10, put_bytes=10)
WARM = replace(COLD, put_bytes=0)
RIGHT = Row(Prompt("text", chat=False, stream=False), ANSWER, COLD, WARM)


def test_what_is_right_has_no_faults() -> None:
    assert RIGHT.faults() == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (replace(RIGHT, cold=replace(COLD, answer=replace(ANSWER, token_ids=(5, 6, 8)))), "cold: tokens"),
        (replace(RIGHT, warm=replace(WARM, answer=replace(ANSWER, token_ids=()))), "again: tokens"),
        (replace(RIGHT, cold=replace(COLD, loaded_tokens=639)), "cold: loaded 639"),
        (replace(RIGHT, warm=replace(WARM, loaded_tokens=0)), "again: loaded 0"),
        (replace(RIGHT, cold=replace(COLD, put_bytes=0)), "put 0 bytes cold"),
        (replace(RIGHT, warm=replace(WARM, put_bytes=1)), "and 1 again"),
    ],
)
def test_each_fault_is_found(row: Row, fault: str) -> None:
    [found] = row.faults()
    assert fault in found
