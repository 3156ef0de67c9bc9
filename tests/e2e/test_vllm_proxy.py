"""The proxy in front of two prefill and two decode engines of real vLLM: clients off the shelf, and engines that die.

`pytest tests/e2e/test_vllm_proxy.py -s` shows the figures.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import openai
import pytest

from demo.cluster import MODEL_NAME, Cluster
from demo.traffic import ask, make_prompts
from tests.e2e.xpyd import percentile

pytestmark = pytest.mark.timeout(600)  # the first test may wait for the engines' starts


@pytest.fixture(scope="module")
def cluster(engines: Cluster, serve: Callable[[list[str], list[str]], None]) -> Cluster:
    serve(["prefill", "spare"], ["decode", "trusting"])
    return engines


def test_the_openai_client(cluster: Cluster, model: Path) -> None:
    prompt = make_prompts(model, tokens=[600], seed=5)[0].text
    base = f"http://{cluster.addresses['proxy']}/v1"
    with openai.OpenAI(base_url=base, api_key="none", timeout=60, max_retries=0) as client:
        assert [served.id for served in client.models.list()] == [MODEL_NAME]
        options = {"model": MODEL_NAME, "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
        whole = client.completions.create(prompt=prompt, **options)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12
        parts = client.completions.create(prompt=prompt, stream=True, **options)
        assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
        messages = [{"role": "user", "content": prompt}]
        chat = client.chat.completions.create(messages=messages, **options)
        stream = client.chat.completions.create(messages=messages, stream=True, **options)
        texts = [part.choices[0].delta.content or "" for part in stream if part.choices]
        assert "".join(texts) == chat.choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.completions.create(model="another", prompt="x")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=MODEL_NAME, prompt="x", max_tokens=-1)


def test_a_conversation_of_responses_stays_with_the_engine_that_keeps_it(cluster: Cluster) -> None:
    base = f"http://{cluster.addresses['proxy']}/v1"
    with openai.OpenAI(base_url=base, api_key="none", timeout=60, max_retries=0) as client:
        for streamed in (False, True, False):  # by two engines in turn
            last = client.responses.create(model=MODEL_NAME, input="hello", max_output_tokens=4)
            for _ in range(3):
                options = {"model": MODEL_NAME, "input": "and", "max_output_tokens": 4}
                if streamed:
                    events = client.responses.create(previous_response_id=last.id, stream=True, **options)
                    (last,) = [event.response for event in events if event.type == "response.completed"]
                else:
                    last = client.responses.create(previous_response_id=last.id, **options)
                assert client.responses.retrieve(last.id).id == last.id
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model=MODEL_NAME, input="x", previous_response_id="resp_nobodys")


def test_vllm_bench_serve(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    argv = [
        Path(sys.prefix) / "bin" / "vllm", "bench", "serve", "--backend", "openai", "--model", MODEL_NAME,
        "--tokenizer", model, "--base-url", f"http://{cluster.addresses['proxy']}", "--dataset-name", "random",
        "--random-input-len", "300", "--random-output-len", "16", "--num-prompts", "60", "--max-concurrency", "8",
        "--save-result", "--result-dir", tmp_path, "--result-filename", "result.json",
    ]  # fmt: skip
    ended = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    print(f"\nvllm bench serve: {result['completed']} completed, {result['failed']} failed")
    assert (result["completed"], result["failed"]) == (60, 0)


@pytest.mark.parametrize("victim", ["prefill", "decode"])
async def test_a_killed_engine_fails_no_request(cluster: Cluster, victim: str) -> None:
    asked = [{"model": MODEL_NAME, "prompt": f"question {victim} {n} " * 20, "max_tokens": 8} for n in range(200)]
    kill = cluster.processes[victim].kill
    done = await load(
        f"http://{cluster.addresses['proxy']}", [each | {"ignore_eos": True} for each in asked], {60: kill}
    )
    failed = [said for _, said in done if said]
    print(f"\n{victim} killed: {len(failed)} failed of {len(done)}, p99 {percentile([s for s, _ in done], 0.99):.2f} s")
    assert not failed, failed[:3]


def test_what_is_left_serves(cluster: Cluster, model: Path) -> None:
    """One prefill, one decode engine, after the tests before; and the answer is still whole."""
    answer = ask(cluster.addresses["proxy"], make_prompts(model, tokens=[700], seed=9)[0])
    assert len(answer.token_ids) > 0


async def load(url: str, asked: list[dict], at: dict[int, Callable[[], object]]) -> list[tuple[float, str]]:
    """Requests, 16 at a time: the seconds each took, and what was wrong with it."""
    numbers, done = iter(range(len(asked))), []
    loop = asyncio.get_running_loop()

    async def worker(client: aiohttp.ClientSession) -> None:
        for number in numbers:
            if number in at:
                await asyncio.to_thread(at[number])
            started, wrong = loop.time(), ""
            try:
                async with client.post("/v1/completions", json=asked[number]) as response:
                    content = await response.json()
                    if response.status != 200 or content["usage"]["completion_tokens"] != asked[number]["max_tokens"]:
                        wrong = f"{response.status}: {content}"
            except (aiohttp.ClientError, TimeoutError) as error:
                wrong = repr(error)
            done.append((loop.time() - started, wrong))

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client:
        await asyncio.gather(*(worker(client) for _ in range(16)))
    return done
