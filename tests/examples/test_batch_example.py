"""The example of batch work without a server: on the embedded model, in this process."""

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console
from support import programs
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, RequestError
from quire.v1 import inference_pb2 as pb

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONFIG = EngineConfig(
    model="pocket", device="cpu", num_blocks=200, block_size=16, max_num_seqs=64,
    max_num_batched_tokens=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def batch() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("batch")
    finally:
        sys.path.remove(str(EXAMPLES))


def test_the_second_half_of_a_batch_finds_the_system_message(batch: ModuleType) -> None:
    async def test() -> None:
        options = batch.BatchOptions(prompts=6, max_tokens=4)
        async with batch.local(CONFIG) as engine:
            with batch.Progress(console=Console(quiet=True)) as bar:
                bar.add_task("answers", total=6)
                first, second = [
                    await batch.answer(engine, questions, options, bar)
                    for questions in batch.batches(options.prompts)
                ]
                assert bar.finished
            assert len(first.completions) == len(second.completions) == 3
            assert 0 < first.tokens <= 12
            assert second.prefix_hit >= 3 * 128
            assert second.prefix_hit < second.prefix_queried

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_request_is_validated_as_over_the_wire(batch: ModuleType) -> None:
    async def test() -> None:
        async with batch.local(CONFIG) as engine:
            sampling = pb.SamplingParams(max_tokens=0)
            request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[300]), sampling=sampling)
            with pytest.raises(RequestError, match="max_tokens"):
                await engine.complete(request)

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_what_cannot_be_asked_names_value_and_limit(batch: ModuleType) -> None:
    for wrong, words in (
        ({"prompts": 61}, "prompts = 61"),
        ({"prompts": 0}, "prompts = 0"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"temperature": -1.0}, "temperature = -1"),
    ):
        with pytest.raises(ConfigError, match=words):
            batch.BatchOptions(**wrong)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return programs.run([sys.executable, str(EXAMPLES / "batch.py"), *words], timeout=PATIENCE)


def test_it_runs_as_a_script() -> None:
    small = ("--device", "cpu", "--num-blocks", "100", "--prompts", "2", "--max-tokens", "4")
    done = run(*small)
    assert done.returncode == 0, done
    assert "tokens/s" in done.stdout and "found in the prefix cache" in done.stdout


def test_a_mistake_is_one_line() -> None:
    done = run("--prompts", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "batch: prompts = 3: must be even, and 2 to 60\n"
