"""600 messages that make little sense; `make soak` sends 100,000."""

import asyncio
import sys
from pathlib import Path

import grpc
from support import programs
from support.fuzzing import Fuzz, fuzzed
from support.harness import ask, generate, run, serving
from support.patience import PATIENCE
from support.storm import OURS, objects_of_calls

from quire.service.constraints.grammars import Grammars


def test_messages_that_make_no_sense_are_answered_as_such_and_leave_nothing() -> None:
    messages = fuzzed(600, 1)
    before = objects_of_calls(OURS)  # of other tests

    async def test() -> None:
        async with serving(
            engine={"num_blocks": 40}, max_waiting=10_000, matchers=Grammars(2)
        ) as running:
            fuzz = Fuzz(running)
            await fuzz.send_all(messages)
            assert not fuzz.wrong, "\n".join(fuzz.wrong[:5])
            for expected in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"):
                assert fuzz.codes[f"Generate {expected}"]
            for method in ("Stats", "Tokenize", "Detokenize", "GetModelInfo"):
                assert fuzz.codes[f"{method} OK"]
            for method in ("Tokenize", "Detokenize"):
                assert fuzz.codes[f"{method} INVALID_ARGUMENT"]
            await running.idle()
            assert running.server.ledger.open == 0
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK
            await running.idle()
            while objects_of_calls(OURS) - before:  # the last may just be ending
                await asyncio.sleep(0.05)

    run(test)


def test_the_tool_that_sends_more_of_them_ends_well() -> None:
    """It took what stands in a module for something that a call had left, whatever was sent."""
    tool = Path(__file__).resolve().parents[2] / "tools" / "fuzz.py"
    done = programs.run([sys.executable, tool, "--messages", "40", "--seed", "3"], timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
