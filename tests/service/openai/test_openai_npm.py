"""OpenAI's own npm package, as it is, against the HTTP API."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from support.harness import run, serving

NODE = Path(__file__).parents[3] / "examples" / "node"
CLIENT = Path(__file__).with_name("npm_client.cjs")


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
@pytest.mark.skipif(
    not (NODE / "node_modules" / "openai").is_dir(), reason="`make node` brings what it needs"
)
def test_the_npm_package_reads_answers_streams_and_refusals_and_cancels() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            process = await asyncio.create_subprocess_exec(
                *("node", CLIENT, f"{running.url}/v1", NODE), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
            assert process.returncode == 0
            told = json.loads(out)
            stats = await running.idle()
            assert stats.requests.finished_cancelled == 1
        said = "user\nHello"
        assert (told["models"], told["whole"], told["logprobs"]) == (["fake"], said, True)
        assert told["prompts"] == ["Hello", "Hello there"]
        for kind, text in (("chat", said), ("text", "Hello there")):
            assert (told[kind]["text"], told[kind]["finish"]) == (text, ["stop"])
            assert told[kind]["usage"]["completion_tokens"] > 0
        refusals = {
            "value": ("BadRequestError", 400, "temperature"),
            "schema": ("BadRequestError", 400, "response_format.json_schema.schema"),
            "missing": ("NotFoundError", 404, "model"),
            "stored": ("NotFoundError", 404, None),
        }
        for name, expected in refusals.items():
            assert tuple(told[name].values()) == expected
        assert told["cancelled"]
        assert told["response"] == {"text": said, "deltas": said, "status": "completed"}

    run(test)
