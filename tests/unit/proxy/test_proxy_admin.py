"""GET /status and /instances, POST /instances/add, drain and remove: the demo's JSON to the letter, if it has any."""

import asyncio
import logging
from typing import Any

import pytest
from aiohttp import web

from services.proxy.addresses import PRIVATE, AllowList
from services.proxy.core.engine import Address

KEY = {"X-API-Key": "sesame"}


@pytest.fixture
async def spare(start_cluster: Any) -> Any:
    """An engine that serves, and that the proxy does not know."""
    return (await start_cluster(0, 1)).decodes[0]


@pytest.fixture
async def guarded(start_cluster: Any) -> Any:
    return await start_cluster(1, 1, admin_api_key="sesame", model="tiny")


async def tell(cluster: Any, what: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    async with cluster.client.post(
        f"/instances/{what}", json=body, headers=KEY if headers is None else headers
    ) as response:
        return response.status, await response.json()


async def add(cluster: Any, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    return await tell(cluster, "add", body, headers)


async def listed(cluster: Any) -> dict[tuple[str, str], Any]:
    async with cluster.client.get("/instances", headers=KEY) as response:
        assert response.status == 200
        return {(each["type"], each["instance"]): each for each in (await response.json())["instances"]}


async def test_status(guarded: Any) -> None:
    async with guarded.client.get("/status") as response:
        assert response.status == 200
        assert await response.json() == {
            "prefill_node_count": 1,
            "decode_node_count": 1,
            "prefill_nodes": [guarded.prefills[0].address],
            "decode_nodes": [guarded.decodes[0].address],
        }


async def test_an_added_engine_gets_requests(guarded: Any, spare: Any) -> None:
    address = spare.address
    assert await add(guarded, {"type": "decode", "instance": address}) == (
        200,
        {"message": f"Added {address} to decode_instances."},
    )
    spare.name = "spare"
    assert {(await guarded.complete())[1]["by"] for _ in range(2)} == {"decode0", "spare"}
    assert await add(guarded, {"type": "decode", "instance": address}) == (400, {"detail": "Instance already exists."})
    assert (await add(guarded, {"type": "prefill", "instance": address}))[0] == 200
    assert guarded.metric("engines", role="prefill") == 2


async def test_an_engine_added_twice_at_once_is_there_once(guarded: Any, spare: Any) -> None:
    body = {"type": "decode", "instance": spare.address}
    answers = await asyncio.gather(*(add(guarded, body) for _ in range(5)))
    assert sorted(status for status, _ in answers) == [200, 400, 400, 400, 400]
    assert guarded.metric("engines", role="decode") == 2


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "Invalid instance type."),
        ([], "Invalid instance type."),
        ({"type": "both", "instance": "127.0.0.1:1"}, "Invalid instance type."),
        ({"type": ["prefill"], "instance": "127.0.0.1:1"}, "Invalid instance type."),
        ({"type": "prefill"}, "Invalid instance format."),
        ({"type": "prefill", "instance": 7}, "Invalid instance format."),
        ({"type": "prefill", "instance": "localhost"}, "Invalid instance format."),
        ({"type": "prefill", "instance": "localhost:http"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "localhost:-1"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "example.com:80"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "user@127.0.0.1:80"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "::1:80"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "[fe80::1%eth0]:80"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "127.0.0.1:0"}, "Invalid port number."),
        ({"type": "prefill", "instance": "127.0.0.1:65536"}, "Invalid port number."),
        ({"type": "prefill", "instance": "127.0.0.1:" + "9" * 5000}, "Invalid port number."),
    ],
)
async def test_a_bad_instance_is_refused(guarded: Any, body: Any, detail: str) -> None:
    for what in ("add", "drain", "remove"):
        assert await tell(guarded, what, body) == (400, {"detail": detail})


async def test_a_body_that_is_not_json_or_too_large_is_refused(guarded: Any) -> None:
    async with guarded.client.post("/instances/add", data=b"{", headers=KEY) as response:
        assert (response.status, await response.json()) == (400, {"detail": "Invalid JSON."})
    async with guarded.client.post("/instances/add", data=b" " * 100_000, headers=KEY) as response:
        assert (response.status, await response.json()) == (413, {"detail": "The body is over 65536 bytes."})


@pytest.mark.parametrize("what", ["add", "drain", "remove"])
async def test_the_key_is_required(
    guarded: Any, start_cluster: Any, spare: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"type": "decode", "instance": spare.address if what == "add" else guarded.decodes[0].address}
    before, asked = await listed(guarded), len(spare.listings)
    with caplog.at_level(logging.DEBUG):
        for wrong in ("Sesame", "ключ", "x" * 1000):
            refused = await tell(guarded, what, body, {"X-API-Key": wrong})
            assert refused == (403, {"detail": "Forbidden: Invalid API Key."})
        status, answer = await tell(guarded, what, body, {})
        assert (status, answer["detail"][0]["loc"]) == (422, ["header", "x-api-key"])
        off = await start_cluster()
        assert await tell(off, what, body) == (500, {"detail": "Server configuration error."})
    assert (spare.legs, len(spare.listings)) == ([], asked)  # without the key nobody makes the proxy send anything
    assert await listed(guarded) == before
    assert "esame" not in caplog.text


async def test_the_list_requires_the_key(guarded: Any, start_cluster: Any) -> None:
    for cluster, headers, status in (
        (guarded, {}, 422),
        (guarded, {"X-API-Key": "x"}, 403),
        (await start_cluster(), KEY, 500),
    ):
        async with cluster.client.get("/instances", headers=headers) as response:
            assert response.status == status
            assert "instances" not in await response.json()


async def test_the_list_tells_the_state_of_each_engine(guarded: Any) -> None:
    engine = guarded.decodes[0]
    engine.next_event = asyncio.Semaphore(0)
    await guarded.complete()
    streaming = asyncio.create_task(guarded.client.post("/v1/completions", json={"stream": True, "prompt": "x" * 40}))
    async with asyncio.timeout(5):
        while len(engine.legs) < 2:  # noqa: ASYNC110 - a moment
            await asyncio.sleep(0.01)
    idle = {"health": "up", "breaker": "closed", "draining": False, "legs": 0, "prompt_tokens": 0}
    idle["models"] = ["tiny"]
    assert await listed(guarded) == {
        ("prefill", guarded.prefills[0].address): idle
        | {"type": "prefill", "instance": guarded.prefills[0].address, "handover": "store", "legs": 1},  # KV in use
        ("decode", engine.address): idle
        | {"type": "decode", "instance": engine.address, "handover": None, "legs": 1, "prompt_tokens": 10},
    }
    streaming.cancel()


async def test_a_draining_engine_finishes_its_requests_and_gets_no_new_ones(
    guarded: Any, spare: Any, events: list[bytes]
) -> None:
    old = guarded.decodes[0]
    old.next_event = asyncio.Semaphore(1)
    spare.name = "spare"
    async with guarded.client.post("/v1/completions", json={"stream": True}) as response:
        await response.content.readany()
        assert (await add(guarded, {"type": "decode", "instance": spare.address}))[0] == 200
        body = {"type": "decode", "instance": old.address}
        said = {"message": f"Draining {old.address} of decode_instances."}
        assert await tell(guarded, "drain", body) == (200, said)
        assert await tell(guarded, "drain", body) == (200, said)
        assert {(await guarded.complete())[1]["by"] for _ in range(4)} == {"spare"}
        drained = (await listed(guarded))["decode", old.address]
        assert (drained["legs"], drained["draining"]) == (1, True)
        for _ in events:
            old.next_event.release()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    drained = (await listed(guarded))["decode", old.address]
    assert (drained["legs"], drained["draining"]) == (0, True)


async def test_adding_a_draining_engine_takes_it_back(guarded: Any) -> None:
    body = {"type": "decode", "instance": guarded.decodes[0].address}
    assert (await tell(guarded, "drain", body))[0] == 200
    assert (await guarded.complete())[0] == 503
    assert (await add(guarded, body))[0] == 200
    assert (await guarded.complete())[0] == 200


async def test_a_removed_engine_is_gone_and_can_be_added_again(guarded: Any) -> None:
    old = guarded.decodes[0]
    body = {"type": "decode", "instance": old.address}
    assert await tell(guarded, "remove", body) == (200, {"message": f"Removed {old.address} from decode_instances."})
    assert ("decode", old.address) not in await listed(guarded)
    assert guarded.metric("engines", role="decode") == 0
    assert (await guarded.complete())[0] == 503
    unknown = (404, {"detail": f"{old.address} is not among the decode instances."})
    assert await tell(guarded, "remove", body) == unknown
    assert await tell(guarded, "drain", body) == unknown
    assert (await add(guarded, body))[0] == 200
    assert (await guarded.complete())[0] == 200


async def test_an_engine_given_by_name_can_be_drained_and_removed(start_cluster: Any) -> None:
    cluster = await start_cluster(admin_api_key="sesame", decode=("engine-a.example:8200",))
    body = {"type": "decode", "instance": "engine-a.example:8200"}
    assert (await tell(cluster, "drain", body))[0] == 200
    assert (await tell(cluster, "remove", body))[0] == 200
    other = {"type": "decode", "instance": "engine-b.example:8200"}
    assert await tell(cluster, "remove", other) == (400, {"detail": "Invalid instance address."})


async def test_only_engines_in_allowed_networks_are_called(start_cluster: Any, spare: Any) -> None:
    cluster = await start_cluster(admin_api_key="sesame", instance_allow=("10.0.0.0/8", "::1/128"))
    refused = (403, {"detail": "Instance address is not allowed: see --instance-allow."})
    for address in (spare.address, spare.address.replace("127.0.0.1", "localhost"), "[::ffff:127.0.0.1]:80"):
        assert await add(cluster, {"type": "decode", "instance": address}) == refused
    assert spare.legs == []
    given = {"type": "decode", "instance": cluster.decodes[0].address}
    assert (await tell(cluster, "remove", given))[0] == 200
    assert (await add(cluster, given))[0] == 200  # the command line's are always allowed


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.1.2.3:1", True),
        ("192.168.0.1:1", True),
        ("[fd00::1]:1", True),
        ("[::ffff:10.0.0.1]:1", True),
        ("169.254.169.254:1", False),  # where clouds keep their machines' credentials
        ("[::ffff:169.254.169.254]:1", False),
        ("[fe80::1]:1", False),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("8.8.8.8:1", False),
        ("[2001:db8::1]:1", False),
        ("224.0.0.1:1", False),
        ("example.com:1", False),
        ("user@127.0.0.1:1", False),
    ],
)
async def test_the_networks_allowed_by_default(address: str, allowed: bool) -> None:
    assert await AllowList(PRIVATE).allows(Address(address)) is allowed


async def test_the_engines_key_is_the_proxys_or_else_the_operators(start_cluster: Any, spare: Any) -> None:
    body = {"type": "decode", "instance": spare.address}
    for own, expected in ((None, "Bearer operator"), ("engines", "Bearer engines")):
        cluster = await start_cluster(admin_api_key="sesame", openai_api_key=own)
        assert (await add(cluster, body, KEY | {"Authorization": "Bearer operator"}))[0] == 200
        assert expected in [asked.get("Authorization") for asked in spare.listings]
        assert not any("X-API-Key" in asked for asked in spare.listings)


async def test_an_unreachable_engine_is_refused(guarded: Any, closed_port: str) -> None:
    body = {"type": "decode", "instance": closed_port}
    assert await add(guarded, body) == (400, {"detail": "Instance validation failed."})


async def test_an_engine_of_another_model_is_refused(guarded: Any, spare: Any) -> None:
    spare.models = ["other"]
    body = {"type": "decode", "instance": spare.address}
    assert await add(guarded, body) == (400, {"detail": "Instance validation failed."})
    spare.models = ["other", "tiny"]  # LoRA adapters are in the same list
    assert (await add(guarded, body))[0] == 200


async def test_without_a_model_any_engine_is_accepted(start_cluster: Any) -> None:
    cluster = await start_cluster(admin_api_key="sesame")
    cluster.decodes[0].models = ["other"]
    body = {"type": "prefill", "instance": cluster.decodes[0].address}
    assert (await add(cluster, body))[0] == 200
    cluster.prefills[0].models = []
    body = {"type": "decode", "instance": cluster.prefills[0].address}
    assert await add(cluster, body) == (400, {"detail": "Instance validation failed."})


@pytest.mark.parametrize(
    "how", ["answer_500", "answer_nothing", "redirect", "reset", "garbage", "huge", "trickle", "odd"]
)
async def test_a_server_that_does_not_answer_like_an_engine_is_refused(
    guarded: Any, spare: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.admin._VALIDATION_S", 0.5)

    async def huge(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": "tiny"}], "padding": "x" * 2**21})

    async def odd(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": ["tiny"]})

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    spare.list_models = {"huge": huge, "odd": odd, "trickle": trickle}.get(how) or getattr(spare, how)
    body = {"type": "decode", "instance": spare.address}
    assert await asyncio.wait_for(add(guarded, body), 5) == (400, {"detail": "Instance validation failed."})
    assert guarded.metric("engines", role="decode") == 1


async def test_the_engines_key_goes_to_engines_only(start_cluster: Any) -> None:
    """And not to the bootstrap server that MooncakeConnector has beside a prefill engine."""
    beside = (await start_cluster(0, 1)).decodes[0]
    port = int(beside.address.rpartition(":")[2])
    cluster = await start_cluster(openai_api_key="engines", mooncake_bootstrap_port=port)
    asked = [leg for leg in beside.legs if leg.path == "/query"]
    assert asked
    assert not any("Authorization" in leg.headers for leg in asked)
    assert (await cluster.complete())[0] == 200
    assert cluster.prefills[0].legs[-1].headers["Authorization"] == "Bearer engines"


async def test_the_operators_key_reaches_no_engine(guarded: Any) -> None:
    for path in ("/v1/completions", "/v1/embeddings"):
        async with guarded.client.post(path, json={"prompt": "x"}, headers=KEY) as response:
            assert response.status == 200
    legs = guarded.prefills[0].legs + guarded.decodes[0].legs
    assert len(legs) >= 3
    assert not any("X-API-Key" in leg.headers for leg in legs)


@pytest.mark.parametrize("handover", ["store", "pull"])
async def test_a_prefill_engine_counts_as_busy_until_its_kv_is_used(guarded: Any, handover: str) -> None:
    """Or an operator who drains it would remove it before the decode engine has fetched from it."""
    prefill, decode = guarded.prefills[0], guarded.decodes[0]

    async def answer(_: web.Request) -> web.StreamResponse:
        params = {"kv_transfer_params": {"remote_block_ids": [1]}} if handover == "pull" else {}
        return web.json_response({"choices": []} | params)

    prefill.act = answer
    decode.next_event = asyncio.Semaphore(0)
    streaming = asyncio.create_task(guarded.client.post("/v1/completions", json={"stream": True}))
    await asyncio.wait_for(decode.called.wait(), 5)
    assert (await listed(guarded))["prefill", prefill.address]["legs"] == 1
    decode.next_event.release()
    response = await streaming
    await response.content.readany()
    assert (await listed(guarded))["prefill", prefill.address]["legs"] == 0
    response.close()
    decode.act = decode.answer_500
    assert (await guarded.complete())[0] == 500
    assert (await listed(guarded))["prefill", prefill.address]["legs"] == 0


async def test_a_removed_engines_series_go_even_those_of_its_last_legs(guarded: Any, spare: Any) -> None:
    old = guarded.decodes[0]
    old.next_event = asyncio.Semaphore(1)
    await guarded.complete()
    async with guarded.client.post("/v1/completions", json={"stream": True}) as response:
        await response.content.readany()
        assert (await tell(guarded, "remove", {"type": "decode", "instance": old.address}))[0] == 200
        assert guarded.metric("decode_seconds_count", engine=old.address) == 0
        for _ in range(3):
            old.next_event.release()
        await response.read()
    assert (await add(guarded, {"type": "decode", "instance": spare.address}))[0] == 200
    assert guarded.metric("decode_seconds_count", engine=old.address) == 0
    assert guarded.metric("prefill_seconds_count", engine=guarded.prefills[0].address) == 2
