"""`quire batch` from end to end: against a server under the tests' control, and with its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from support import programs
from support.patience import PATIENCE

from quire.clients import AsyncClient, RetryPolicy
from quire.clients.batch.requests import CHATS, COMPLETIONS, RESPONSES, RequestFile
from quire.clients.batch.results import ResultFile
from quire.clients.batch.run import Plan, Run, refused_body
from quire.clients.errors import Details, Unauthenticated, Unavailable, Violation, call_error
from quire.clients.openai.field_names import Names
from quire.v1 import inference_pb2 as pb

QUICK = RetryPolicy(attempts=1)


def line(custom_id: str, prompt: Any, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    forms = {COMPLETIONS: ("prompt", prompt), RESPONSES: ("input", prompt)}
    fields = dict([forms.get(url, ("messages", [_user(prompt)]))])
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {**fields, **body}}


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


class Files:
    """A batch's two files."""

    def __init__(self, place: Path) -> None:
        self.requests, self.results = place / "requests.jsonl", place / "results.jsonl"

    def ask(self, *lines: dict[str, Any]) -> None:
        self.requests.write_text("".join(json.dumps(one) + "\n" for one in lines))

    def told(self) -> dict[str, Any]:
        """Results by custom_id; each is there once."""
        lines = [json.loads(raw) for raw in self.results.read_text().splitlines()]
        counts = Counter(one["custom_id"] for one in lines)
        assert not counts or max(counts.values()) == 1
        assert len({one["id"] for one in lines}) == len(lines)
        return {one["custom_id"]: one for one in lines}

    def words(self, server: Any | None, *more: str) -> list[str]:
        at = () if server is None else ("-a", server.address)
        files = ("-i", str(self.requests), "-o", str(self.results))
        return [sys.executable, "-m", "quire.clients.cli", "batch", *files, *at, *more]

    def batch(self, server: Any | None, *more: str) -> subprocess.CompletedProcess[str]:
        return programs.run(self.words(server, *more), timeout=PATIENCE, env=environment())

    def run(self, address: str, plan: Plan) -> None:
        """In this process."""
        requests = RequestFile(self.requests)
        results = ResultFile(self.results, requests)

        async def run() -> None:
            async with AsyncClient(address, retry=QUICK) as client:
                async with asyncio.timeout(PATIENCE):
                    await Run(client, requests, results, plan).run()

        try:
            asyncio.run(run())
        finally:
            results.close()


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def text_of(result: dict[str, Any]) -> str:
    (choice,) = result["response"]["body"]["choices"]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def test_a_refusal_names_the_field_as_the_body_has_it() -> None:
    error = call_error(grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_p: 20: no", None)
    error.details = Details((Violation("sampling.top_p", "20: no"),), "INVALID_FIELD")
    status, body = refused_body(error, Names())
    assert (status, body["error"]["param"], body["error"]["code"]) == (
        400,
        "top_p",
        "invalid_field",
    )
    assert body["error"]["message"] == "top_p: 20: no"
    status, body = refused_body(call_error(grpc.StatusCode.INTERNAL, "a fault", None), Names())
    assert (status, body["error"]["type"], body["error"]["param"]) == (500, "server_error", None)


def test_every_line_gets_its_own_answer_or_its_own_error(server: Any, files: Files) -> None:
    files.ask(
        line("completion", "say hello there"),
        line("chat", "say hi", CHATS, seed=-1, logprobs=True),
        line("response", "say good day", RESPONSES, instructions="Be brief."),
        line("refused here", "say x", frobnicate=1),
        line("refused there", "fail INVALID_ARGUMENT 7 is above 1"),
        line("no such model", "fail NOT_FOUND another is served"),
        line("a fault", "fail INTERNAL something broke"),
        {**line("elsewhere", "say x"), "url": "/v1/embeddings"},
        line("too large", "say " + "x" * (5 << 20)),
    )
    done = files.batch(server)
    assert done.returncode == 0 and done.stdout == "", done
    assert "9 results, 6 of them errors" in done.stderr
    told = files.told()
    assert text_of(told["completion"]) == "hello there" and text_of(told["chat"]) == "hi"
    assert told["chat"]["response"]["body"]["model"] == "fake"
    assert told["chat"]["response"]["body"]["choices"][0]["logprobs"]["content"]
    response = told["response"]["response"]
    assert response["body"]["id"] == f"resp_{response['request_id']}"
    assert response["body"]["output"][0]["content"][0]["text"] == "good day"
    statuses = {name: one["response"]["status_code"] for name, one in told.items()}
    assert statuses == {
        "completion": 200, "chat": 200, "response": 200, "refused here": 400, "refused there": 400,
        "no such model": 404, "a fault": 500, "elsewhere": 400,
        "too large": 413,
    }  # fmt: skip
    error = told["refused there"]["response"]["body"]["error"]
    assert (error["param"], error["message"]) == ("top_p", "top_p: 7 is above 1")
    sent = {request.request_id for request in server.seen.requests}
    assert told["completion"]["response"]["request_id"] in sent


def test_several_prompts_of_a_line_are_one_answer(server: Any, files: Files) -> None:
    bad = "fail INVALID_ARGUMENT text: is empty"
    files.ask(line("good", ["say a", "say b"], n=1), line("bad", ["say a", bad], n=1))
    done = files.batch(server)
    assert done.returncode == 0, done
    told = files.told()
    body = told["good"]["response"]["body"]
    assert [(one["index"], one["text"]) for one in body["choices"]] == [(0, "a"), (1, "b")]
    assert body["usage"]["prompt_tokens"] == 10
    assert body["id"] == f"cmpl-{told['good']['response']['request_id']}"
    assert told["bad"]["response"]["status_code"] == 400


def test_killed_in_the_middle_it_goes_on_with_what_is_missing(server: Any, files: Files) -> None:
    """Two lines wait until as many have been asked again as before: by the second run."""
    files.ask(*(line(f"{i}", f"say {i}") for i in range(20)), *(line(n, "gather 4") for n in "ab"))
    process = programs.start(files.words(server, "-c", "3"), env=environment())
    try:
        with server.seen.gathered:
            assert server.seen.gathered.wait_for(lambda: server.seen.calls["gather"] == 2, PATIENCE)
    finally:
        process.kill()
        process.wait(PATIENCE)
    before = files.results.read_bytes()
    answered = before.count(b"\n")
    assert 18 <= answered <= 20  # the third worker may be on its way with the last
    files.results.write_bytes(before + b'{"id": "batch_req_12')
    done = files.batch(server, "-c", "3")
    assert done.returncode == 0, done
    assert "its last line was cut short" in done.stderr
    assert f"{answered} of 22 requests have their result" in done.stderr
    assert files.results.read_bytes().startswith(before)
    told = files.told()
    assert len(told) == 22 and text_of(told["a"]) == "ok" and text_of(told["7"]) == "7"
    again = files.batch(server)
    assert again.returncode == 0 and server.seen.calls["gather"] == 4


class Counting:
    """A client whose server answers each request with nothing; counts those that are open."""

    def __init__(self) -> None:
        self.open = self.most = 0

    async def model_info(self) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse()

    def send(self, _request: pb.GenerateRequest) -> "Counting":
        return self

    async def messages(self) -> AsyncIterator[pb.GenerateResponse]:
        self.open += 1
        self.most = max(self.most, self.open)
        for _ in range(5):
            await asyncio.sleep(0)
        self.open -= 1
        yield pb.GenerateResponse()


@pytest.mark.parametrize("most", [1, 3, 16])
def test_as_many_are_asked_at_a_time_as_may_be(files: Files, most: int) -> None:
    files.ask(*(line(str(i), "x") for i in range(40)))
    requests = RequestFile(files.requests)
    results, client = ResultFile(files.results, requests), Counting()
    counting: Any = client
    asyncio.run(Run(counting, requests, results, Plan(concurrency=most)).run())
    results.close()
    assert len(files.told()) == 40 and client.most == most


def test_what_passes_is_asked_again(server: Any, files: Files) -> None:
    files.ask(line("full", "busy-times 2 1"), line("away", "fail-times 2"))
    files.run(server.address, Plan(concurrency=1, again_seconds=0.0))
    assert {text_of(one) for one in files.told().values()} == {"ok"}
    assert (server.seen.calls["busy-times"], server.seen.calls["fail-times"]) == (3, 3)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("fail UNAVAILABLE gone", Unavailable),
        ("late UNAVAILABLE", Unavailable),
        ("fail UNAUTHENTICATED who", Unauthenticated),
    ],
)
def test_what_is_no_fault_of_a_line_gives_it_no_result(
    server: Any, files: Files, script: str, error: type[Exception]
) -> None:
    files.ask(line("a", "say a"), line("b", script), line("c", "say c"))
    with pytest.raises(error):
        files.run(server.address, Plan(concurrency=1, away_seconds=0.0, again_seconds=0.0))
    assert files.told().keys() == {"a"}


def test_a_deadline_is_an_error_of_its_line(server: Any, files: Files) -> None:
    files.ask(line("a", "hang"), line("b", "say b"))
    for seconds in ("0.5", "5", "50"):  # the longer where the other line was late too
        files.results.unlink(missing_ok=True)
        done = files.batch(server, "--timeout", seconds)
        assert done.returncode == 0, done
        if (told := files.told())["b"]["response"] is not None:
            break
    assert told["a"]["response"] is None and told["a"]["error"]["code"] == "deadline_exceeded"
    assert text_of(told["b"]) == "b"


def test_ctrl_c_says_what_is_left(server: Any, files: Files) -> None:
    files.ask(line("a", "hang"))
    process = programs.start(
        files.words(server), stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert server.seen.started.wait(PATIENCE)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors == "1 of 1 requests are left: run the command again to go on\n"
    assert server.seen.cancelled.wait(PATIENCE)


def test_mistakes_are_one_line_before_anything_is_asked(server: Any, files: Files) -> None:
    files.ask(line("a", "say a"), line("a", "say b"))
    same = ("-i", str(files.requests), "-o", str(files.requests))
    for more, words in (
        ((), "line 2: custom_id 'a': given twice"),
        (("-i", str(files.requests.with_name("none"))), "No such file"),
        (same, "--output: is the same file as --input"),
        (("--model", "pocket"), "no --address"),
        (("--", "--device", "cpu"), "no --address"),
    ):
        done = files.batch(server, *more)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done
    assert not server.seen.requests and not files.results.exists()


SMALL = ("--", "--device", "cpu", "--num-blocks", "64")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child there alone")
def test_its_own_server_ends_with_it_however_it_ends(files: Files) -> None:
    """One line is long, so that it is killed with its server at work."""
    long = {"max_tokens": 900, "stop": ["no text has this in it"]}
    files.ask(line("short", "Once", max_tokens=2), line("long", "Once upon", CHATS, **long))
    process = subprocess.Popen(files.words(None, "-c", "1", *SMALL), env=environment())
    try:
        child = _served_by(process.pid, files.results)
    finally:
        process.kill()
        process.wait(PATIENCE)
    gone, alive = psutil.wait_procs(child, timeout=PATIENCE)
    assert gone and not alive
    assert "short" in files.told()
    done = files.batch(None, *SMALL)
    assert done.returncode == 0, done
    assert {one["response"]["status_code"] for one in files.told().values()} == {200}


def _served_by(pid: int, results: Path) -> list[psutil.Process]:
    """The server and what it has started, once a line is answered."""
    parent, limit = psutil.Process(pid), time.monotonic() + PATIENCE
    while not (results.exists() and results.read_bytes()):
        assert parent.status() != psutil.STATUS_ZOMBIE and time.monotonic() < limit
        time.sleep(0.02)
    return parent.children(recursive=True)


def test_its_own_server_says_why_it_does_not_start(files: Files) -> None:
    files.ask(line("a", "x"))
    done = files.batch(None, "--", "--max-num-seqs", "0")
    assert done.returncode == 2 and "max_num_seqs = 0" in done.stderr
    assert "1 of 1" not in done.stderr and done.stderr.splitlines()[-1].startswith("quire: ")
