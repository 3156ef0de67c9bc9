"""README.md and docs/vllm.md, whose commands start real vLLM engines: as tests/docs, one after the other.

What engines they only show, because it would be one more of the same or needs a GPU, vLLM's own parser takes.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from demo.cluster import ENGINE_ENV
from tests.docs.blocks import read
from tests.docs.test_docs import DOCUMENTS, ENGINES, SESSIONS, run_session

PARSE = """
import json, sys
from larder.vllm.settings import parse
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
for argv in json.loads(sys.argv[1]):
    args = parser.parse_args(argv)
    args.model = args.model_tag  # as the command serve does
    validate_parsed_serve_args(args)
    config = EngineArgs.from_cli_args(args).kv_transfer_config
    assert config.kv_connector == "LarderConnector" and config.kv_load_failure_policy == "recompute"
    print(args.port, args.tensor_parallel_size, parse(config.kv_connector_extra_config).copies)
"""


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", sorted(ENGINES))
def test_the_commands_of(name: str, tmp_path: Path) -> None:
    run_session(name.partition(":")[2], SESSIONS[name], tmp_path, 960)


@pytest.mark.timeout(300)
def test_vllm_takes_the_engines_that_are_only_shown(model: Path) -> None:
    left_out = [step.text for path in DOCUMENTS for step in read(path).left_out]
    argvs = [shlex.split(text.replace("$MODEL", str(model)))[2:] for text in left_out if text.startswith("vllm serve")]
    argv = [sys.executable, "-c", PARSE, json.dumps(argvs)]
    done = subprocess.run(argv, env=os.environ | ENGINE_ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-len(argvs) :] == ["8101 1 2", "8000 1 1", "8000 2 1"]
