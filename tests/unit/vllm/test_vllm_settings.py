"""kv_connector_extra_config: what is taken, and what is said of what is not."""

import inspect
from dataclasses import fields

import larder
import pytest
from larder.errors import InvalidArgument
from larder.vllm.settings import ConnectorSettings, parse

MASTER = {"master": "127.0.0.1:50001"}


def test_the_master_alone_is_enough() -> None:
    settings = parse(MASTER)
    assert (settings.master, settings.verify, settings.copies) == ("127.0.0.1:50001", True, 1)


@pytest.mark.parametrize(("block_tokens", "blocks"), [(16, 16), (128, 2), (256, 1), (400, 1)])
def test_a_chunk_is_about_256_tokens_and_at_least_a_block(block_tokens: int, blocks: int) -> None:
    assert parse(MASTER).blocks_per_chunk(block_tokens) == blocks


def test_chunk_blocks_is_taken_as_given() -> None:
    assert parse({**MASTER, "chunk_blocks": 3}).blocks_per_chunk(16) == 3


def test_the_master_is_asked_for() -> None:
    with pytest.raises(InvalidArgument, match=r'needs the master.s address, for example \{"master"'):
        parse({})


def test_an_unknown_option_is_refused_with_the_near_match() -> None:
    with pytest.raises(InvalidArgument, match="no option 'chunk_block'; did you mean 'chunk_blocks'"):
        parse({**MASTER, "chunk_block": 2})


def test_an_option_like_no_other_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidArgument, match="no option 'zzz'; known options: master, chunk_blocks"):
        parse({**MASTER, "zzz": 2})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("master", "127.0.0.1", "master is '127.0.0.1': expected HOST:PORT"),
        ("master", "127.0.0.1:0", "master is '127.0.0.1:0'"),
        ("master", "127.0.0.1:50001,10.0.0.1", "master is '10.0.0.1'"),
        ("master", "http://127.0.0.1:x", "master is 'http://127.0.0.1:x'"),
        ("verify", "no", "verify is 'no': expected true or false"),
        ("zone", 7, "zone is 7: expected a label"),
        ("engine_ports", 18000, "engine_ports is 18000: not a range of ports: write MIN-MAX"),
        ("transports", "shm", "transports is 'shm': expected one or more of shm, engine"),
        ("transports", ["tcp"], "transports is .'tcp'.: expected one or more of shm, engine"),
        ("timeout_s", 0, "timeout_s is 0: expected seconds"),
        ("timeout_s", "5s", "timeout_s is '5s'"),
    ],
)
def test_an_option_of_the_store_is_refused_as_the_store_does(name: str, value: object, said: str) -> None:
    with pytest.raises(InvalidArgument, match=f"kv_connector_extra_config: {said}"):
        parse({**MASTER, name: value})


def test_every_option_of_the_store_is_one_here() -> None:
    settings = parse({**MASTER, "transports": ["shm"], "zone": "a", "verify": False, "timeout_s": 0.25})
    assert (settings.transports, settings.zone, settings.verify) == (["shm"], "a", False)
    assert set(inspect.signature(larder.connect).parameters) <= {each.name for each in fields(ConnectorSettings)}


@pytest.mark.parametrize("master", ["[::1]:50001", "localhost:50001", "10.0.0.1:50001, 10.0.0.2:50001"])
def test_what_the_store_takes_for_an_address_is_one(master: str) -> None:
    assert parse({"master": master}).master == master


def test_the_stores_time_stands_for_those_that_are_not_given() -> None:
    settings = parse({**MASTER, "timeout_s": 0.25, "load_timeout_ms": 700})
    assert (settings.lookup_timeout_ms, settings.load_timeout_ms, settings.save_timeout_ms) == (250, 700, 250)
    settings = parse(MASTER)
    assert (settings.lookup_timeout_ms, settings.load_timeout_ms, settings.save_timeout_ms) == (1_000, 2_000, 5_000)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("master", "", "an address"),
        ("master", 50001, "an address"),
        ("namespace", 7, "text"),
        ("copies", 0, "from 1 to 16"),
        ("copies", True, "from 1 to 16"),
        ("copies", 17, "from 1 to 16"),
        ("chunk_blocks", 0, "from 1"),
        ("lookup_timeout_ms", -1, "from 1 to 600000"),
        ("load_timeout_ms", 1.5, "from 1 to 600000"),
        ("save_timeout_ms", "5s", "from 1 to 600000"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_is_wanted(name: str, value: object, wanted: str) -> None:
    with pytest.raises(InvalidArgument, match=f"'{name}' must be .*{wanted}"):
        parse({**MASTER, name: value})
