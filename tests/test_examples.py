"""The examples and the README do what they say, against a server that speaks the contract."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from support import programs
from support.patience import PATIENCE

from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
BUF = Path(sys.executable).with_name("buf")


class Parrot(pb_grpc.InferenceServiceServicer):
    """Says what it was told; its last delta has an id and no text, as EOS has."""

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        chatting = request.WhichOneof("prompt") == "chat"
        words = request.chat.messages[0].content if chatting else request.text
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

    def Stats(self, request: pb.StatsRequest, context: object) -> pb.StatsResponse:  # noqa: ARG002
        return pb.StatsResponse(cache=pb.CacheStats(prefix_tokens_hit=42))


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_InferenceServiceServicer_to_server(Parrot(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


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
    not (EXAMPLES / "node" / "node_modules").is_dir(), reason="`make node` brings what it needs"
)
def test_node(address: str) -> None:
    check("node", str(EXAMPLES / "node" / "chat.js"), address=address)


def test_the_readmes_first_call(address: str) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    done = run(sys.executable, "-c", program.replace("127.0.0.1:50051", address))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Tell me a short story about a fox.\n42\n"


def test_the_pages_first_calls(address: str) -> None:
    program = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    done = run(sys.executable, "-c", program.replace("127.0.0.1:50051", address))
    assert (done.stdout, done.stderr, done.returncode) == ("Tell me a story.\n", "", 0)


@pytest.mark.skipif(not BUF.exists(), reason="no buf here")
def test_buf_curl_in_clear(address: str) -> None:
    (command,) = re.findall(r"```\n(buf curl [^`]*?--http2-prior-knowledge[^`]*?)```", PAGE)
    shown = command.replace("127.0.0.1:50051", address).replace("buf curl", f"{BUF} curl")
    assert address in shown
    done = run("bash", "-c", f"cd {ROOT}; {shown}")
    assert done.returncode == 0, done.stderr
    assert '"reason": "FINISH_REASON_STOP"' in done.stdout


def test_the_readmes_options_exist() -> None:
    """Every option that the README shows for a command is one that the command has."""
    shown = {"serve": set(re.findall(r"`(--[a-z-]+)`", README.split("## Client commands")[0]))}
    for line in README.replace("\\\n", " ").splitlines():
        found = re.match(r"quire (\S+)(.*)", line.split("#")[0])
        if found:
            shown.setdefault(found[1], set()).update(re.findall(r"--[a-z-]+", found[2]))
    assert {"serve", "chat", "generate", "stats", "top", "loadtest"} <= set(shown)
    for command, options in shown.items():
        help_text = programs.run(
            [sys.executable, "-m", "quire.clients.cli", command, "--help"],
            timeout=PATIENCE,
            env={**os.environ, "COLUMNS": "200"},
        ).stdout
        missing = {option for option in options if option not in help_text}
        assert not missing, f"quire {command}: {sorted(missing)}"
