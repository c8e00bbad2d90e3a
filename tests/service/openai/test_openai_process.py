"""The HTTP API of `quire serve`: its port, and the lines to paste."""

import json
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
from support.free_ports import free_port
from support.server_process import PATIENCE, environment, long_request, process

from quire.service.app.openai_frontend import lines_to_paste
from quire.service.settings import ServiceConfig
from quire.v1 import inference_pb2_grpc as pb_grpc

PAGE = (Path(__file__).parents[3] / "docs" / "openai.md").read_text(encoding="utf-8")


def test_the_lines_to_paste_work() -> None:
    port = free_port()
    with process(QUIRE_HTTP_PORT=str(port)) as server:
        server.address()
        server.wait_for(f"OpenAI API on http://127.0.0.1:{port}/v1")
        server.wait_for(f"export OPENAI_BASE_URL=http://127.0.0.1:{port}/v1 ")
        words = shlex.split(server.wait_for("curl $OPENAI_BASE_URL/chat/completions"))
        python = shlex.split(server.wait_for("python -c"))[1:]
        url = f"http://127.0.0.1:{port}/v1"
        given = environment(OPENAI_BASE_URL=url, OPENAI_API_KEY="none")
        [program] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
        shown = program.replace("http://127.0.0.1:8000/v1", url)
        option, pasted = python
        assert option == "-c"
        # One after the other, each with names of its own: to import the package takes seconds.
        both = "; print('-' * 9); ".join(f"exec({code!r}, {{}})" for code in (pasted, shown))
        done = subprocess.run(
            [sys.executable, "-c", both],
            env=given, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        said = done.stdout.split("---------")
        assert (done.returncode, [bool(one.strip()) for one in said]) == (0, [True] * 2), done
        body = words[words.index("-d") + 1]
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps({**json.loads(body), "max_tokens": 4}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE) as told:
            assert json.load(told)["choices"][0]["message"]["role"] == "assistant"


def test_a_port_that_is_taken_is_one_line_and_grpc_serves_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process(QUIRE_HTTP_PORT=str(port)) as server:
            address = server.address()
            line = server.wait_for("no OpenAI API")
            assert f"127.0.0.1:{port}" in line and "--http-port" in line
            with grpc.insecure_channel(address) as channel:
                call = pb_grpc.InferenceServiceStub(channel).Generate(
                    long_request(), timeout=PATIENCE
                )
                assert next(iter(call)).HasField("started")
                call.cancel()
            assert not [line for line in server.errors if "OPENAI_BASE_URL" in line]


def test_the_lines_tell_of_keys_and_tls() -> None:
    config = ServiceConfig(http_host="::1", api_keys="k", tls_cert="c", tls_key="k")
    lines = lines_to_paste(config, 8000, "it's")
    assert "https://[::1]:8000/v1" in lines and "Bearer $OPENAI_API_KEY" in lines
    words = shlex.split(lines.splitlines()[2])
    assert json.loads(words[-1])["model"] == "it's"
