"""Every command in README.md and docs/ is run as it is written, by real processes, and prints what is shown.

What needs engines is run in tests/e2e/test_docs_engines.py.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from demo.cluster import ENGINE_ENV
from tests.apart import WITH_PIDS, run_apart
from tests.docs.blocks import expected, read, slug, squeeze
from tests.docs.session import ROOT, sessions_of

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deploy").glob("*.md"))]
SESSIONS = {f"{path.name}:{name}": path for path in DOCUMENTS for name in sessions_of([path])}
ENGINES = {name for name in SESSIONS if name.startswith(("README.md:", "vllm.md:"))}
NOT_RUN = {  # why a block may be left out
    "docker": "needs a Docker daemon; make test-compose runs it",
    "kubectl": "needs a Kubernetes cluster; the manifests are checked against the API's schemas",
    "GPU": "needs a GPU, or a model that has to be downloaded; vLLM itself parses its flags",
    "engine": "another engine as those that are started; vLLM itself parses its flags",
    "network": "needs package registries; test_install.py runs it",
}


def run_session(name: str, path: Path, tmp_path: Path, deadline_s: float) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LARDER_", "VLLM_", "PYTEST_"))}
    env |= ENGINE_ENV | {
        "PATH": f"{ROOT / 'tests/docs/bin'}:{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
        "COLUMNS": "200",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    run_apart("tests.docs.session", tmp_path, deadline_s, str(path), name, namespaces=WITH_PIDS, env=env)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", sorted(SESSIONS.keys() - ENGINES))
def test_the_commands_of(name: str, tmp_path: Path) -> None:
    run_session(name.partition(":")[2], SESSIONS[name], tmp_path, 380)


def test_what_is_not_run_has_a_reason_that_is_known() -> None:
    used = {reason for path in DOCUMENTS for reason in read(path).reasons}
    assert used <= NOT_RUN.keys(), f"reasons are {', '.join(NOT_RUN)}"


def test_links_lead_somewhere() -> None:
    broken = []
    pages = {*DOCUMENTS, *ROOT.glob("*.md"), *ROOT.glob("proto/*.md"), *ROOT.glob("deploy/*/*.md")}
    for path in sorted(pages):
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            file, _, heading = target.partition("#")
            if target.startswith(("http://", "https://")):
                continue
            there = path.parent / file if file else path
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE) if there.suffix == ".md" else []
            if not there.exists() or (heading and heading not in map(slug, headings)):
                broken.append(f"{path.name}: {target}")
    assert not broken


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        (["a  b"], "a b\n", True),
        (["a …"], "a b c\n", True),
        (["a …"], "b\n", False),
        (["…", "c"], "a\nb\nc\n", True),
        (["a"], "a\nb\n", False),
        (["a", "…"], "a\nb\n", True),
        ([], "a\n", False),
    ],
)
def test_what_is_printed_is_compared(shown: list[str], printed: str, fits: bool) -> None:
    text = "".join(squeeze(line) + "\n" for line in printed.splitlines())
    assert bool(re.fullmatch(expected(shown), text)) is fits


@pytest.mark.timeout(400)
def test_a_document_that_is_wrong_is_found(tmp_path: Path) -> None:
    wrong = ("```console\n$ echo b\na\n```\n", "```console\n$ false\n```\n", "```bash\nno-such\n```\n")
    for number, text in enumerate(wrong):
        path, scratch = tmp_path / "wrong.md", tmp_path / str(number)
        path.write_text(text)
        scratch.mkdir()
        with pytest.raises(AssertionError, match=r"wrong\.md:2"):
            run_session("wrong", path, scratch, 60)
