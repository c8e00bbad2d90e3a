"""The examples that call tools and extract JSON, against one server over the embedded model."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import programs
from support.free_ports import free_port
from support.patience import PATIENCE
from support.server_process import environment, process

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUESTION = "Find the price of violin, then add 55."


@dataclass(frozen=True)
class Place:
    """Where one server is: over gRPC and over HTTP."""

    address: str
    url: str


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    port = free_port()
    with process("--model", "pocket", "--num-blocks", "256", QUIRE_HTTP_PORT=str(port)) as server:
        address = server.address()
        server.wait_for(f"OpenAI API on http://127.0.0.1:{port}/v1")
        yield Place(address, f"http://127.0.0.1:{port}/v1")


def run(example: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / example), *words]
    return programs.run(command, timeout=PATIENCE, env=environment())


def told(example: str, *words: str) -> list[str]:
    done = run(example, *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


CALLED = [
    'lookup {"key": "violin"} -> 620',
    'calculator {"expression": "620 + 55"} -> 675',
    "The price of violin is 620. 620 + 55 = 675.",
]


def test_an_agent_over_grpc(place: Place) -> None:
    assert told("agent_grpc.py", QUESTION, place.address) == CALLED


def test_an_agent_over_http(place: Place) -> None:
    assert told("agent_http.py", QUESTION, place.url) == CALLED


def test_json_out_of_a_sentence(place: Place) -> None:
    text = "Otto is 57 years old. Otto lives in Bergen."
    lines = told("extract_json.py", text, place.url)
    assert lines == ['{"name": "Otto", "age": 57, "city": "Bergen"}']


def test_nobody_there_is_one_line() -> None:
    done = run("agent_http.py", QUESTION, f"http://127.0.0.1:{free_port()}/v1")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
