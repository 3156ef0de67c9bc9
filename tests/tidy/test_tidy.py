"""The house rules that a machine can check: linters, types, import rules, generated stubs, lengths, words.

Only files that git tracks count. Generated stubs are exempt from everything but being in sync. Each check names every
place that breaks it.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.prefix) / "bin"
STUBS = "clients/python/larder/v1"
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
# Written in two halves, so that this page does not break its own rule.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.}])/(work|root|home/\w+)" + "/",
    "a registry's or hub's host": r"\b(pypi|pythonhosted|download\.pytorch|docker|ghcr|quay|gcr|huggingface|aliyun)"
    r"\.(org|io|co|com|cn)\b",
    "unfinished work": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
}


def tracked(*patterns: str) -> list[str]:
    """Paths of tracked files that are in the working tree, generated stubs left out."""
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and "_pb2" not in name and (ROOT / name).is_file()]


PYTHON_FILES = tracked("*.py")


def run(*argv: str | Path) -> None:
    result = subprocess.run([str(arg) for arg in argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{argv[0]}:\n{result.stdout}{result.stderr}"


def test_ruff() -> None:
    run(BIN / "ruff", "check", "--quiet", *PYTHON_FILES)


@pytest.mark.timeout(300)
def test_types() -> None:
    run(BIN / "mypy")


def test_import_rules() -> None:
    run(BIN / "lint-imports")


def test_stubs_are_what_the_protocol_generates(tmp_path: Path) -> None:
    compiler = ROOT / ".venv-proto/bin/python"
    assert compiler.exists(), "the stubs' compiler is missing: run make setup"
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "pyi")]
    run(compiler, "-m", "grpc_tools.protoc", "-Iproto", *outs, *tracked("proto/*.proto"))
    fresh = {path.name: path.read_text() for path in (tmp_path / "larder/v1").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / STUBS).glob("*_pb2*")}
    assert sorted(fresh) == sorted(committed)
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert not stale, f"{stale} differ from proto/: run make proto"


def test_files_are_short() -> None:
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in PYTHON_FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX}


def test_functions_are_short() -> None:
    long = [
        f"{name}:{node.lineno} {node.name}: {lines} lines"
        for name in PYTHON_FILES
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long


def test_modules_say_what_they_are() -> None:
    silent = []
    for name in PYTHON_FILES:
        source = (ROOT / name).read_text()
        if source.strip() and not ast.get_docstring(ast.parse(source)):  # an empty __init__.py says nothing and may
            silent.append(name)
    assert not silent


def test_every_proof_in_guarantees_exists() -> None:
    """`tier/…/file: test_name`, or `…: test_name` for the file named before."""
    missing = []
    file = ROOT
    for path, name in re.findall(r"`([^`:]+)(?:: (test_\w+)…?)?`", (ROOT / "GUARANTEES.md").read_text()):
        if path != "…" and not re.match(r"(unit|model|sim|contract|e2e)/", path):
            continue
        file = file if path == "…" else ROOT / "tests" / f"{path}.py"
        if name or not file.with_suffix("").is_dir():
            missing += [] if file.exists() and f"def {name}" in file.read_text() else [f"{path}: {name}"]
    assert not missing


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_words(rule: str) -> None:
    pattern = re.compile(FORBIDDEN[rule])
    found = []
    for name in tracked():
        text = (ROOT / name).read_bytes().decode(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, f"{rule}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("a path of one machine", 'open("/wo' + 'rk/main/x")'),
        ("a registry's or hub's host", "--index-url https://py" + "pi.org/simple"),
        ("unfinished work", "# TO" + "DO: later"),
    ],
)
def test_words_can_fail(rule: str, line: str) -> None:
    assert re.search(FORBIDDEN[rule], line)
