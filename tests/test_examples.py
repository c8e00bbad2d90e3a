"""The examples do what the README says they do, against a server that speaks the contract."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Parrot(pb_grpc.InferenceServiceServicer):
    """Says what it was told; its last delta has an id and no text, as EOS has."""

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        words = request.chat.messages[0].content
        if words == "refuse":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        yield pb.GenerateResponse(started=pb.Started(request_id="r", seed=1 << 63))
        for character in words:
            yield pb.GenerateResponse(delta=pb.Delta(text=character, token_ids=[1]))
        yield pb.GenerateResponse(delta=pb.Delta(token_ids=[2]))
        usage = pb.Usage(completion_tokens=len(words) + 1)
        yield pb.GenerateResponse(
            finished=pb.Finished(reason=pb.FINISH_REASON_STOP, stop_token_id=2, usage=usage)
        )


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_InferenceServiceServicer_to_server(Parrot(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def check(*program: str, address: str) -> None:
    done = run(*program, "Grüße 🎈!", address)
    assert done.stdout == "Grüße 🎈!\n[FINISH_REASON_STOP, 9 tokens]\n", done
    assert (done.returncode, done.stderr) == (0, "")
    refused = run(*program, "refuse", address)
    assert (refused.returncode, refused.stderr) == (1, "RESOURCE_EXHAUSTED: queue full\n")


def test_python_with_nothing_but_the_stubs(address: str) -> None:
    check(sys.executable, str(EXAMPLES / "python_stubs.py"), address=address)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
@pytest.mark.skipif(
    not (EXAMPLES / "node" / "node_modules").is_dir(), reason="run npm install in examples/node"
)
def test_node(address: str) -> None:
    check("node", str(EXAMPLES / "node" / "chat.js"), address=address)
