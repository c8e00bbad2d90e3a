"""The load test as a whole, against a server."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support import programs
from support.patience import PATIENCE

from quire.clients import cli
from quire.clients.loadtest import drive, text, workload
from quire.clients.loadtest.drive import Load, Target
from quire.clients.loadtest.summary import summarize
from quire.clients.loadtest.workload import Lengths, Session, Span, Turn


def texts(*words: str) -> list[Session]:
    return [Session(i, (Turn(4, text=text),)) for i, text in enumerate(words)]


def test_an_open_loop_does_not_wait_for_answers(server: Any) -> None:
    """Nobody is answered before all are there: a loop that waits would never get one."""
    sessions = texts(*["gather 6"] * 6)
    load = Load(sessions, [0.01 * i for i in range(6)], None)
    outcome = drive.run(Target([server.address]), load)
    assert [r.status for r in outcome.records] == ["OK"] * 6
    assert [r.intended for r in outcome.records] == list(load.starts or [])
    assert all(r.sent >= r.intended for r in outcome.records)


def test_a_cap_counts_into_the_latency(server: Any) -> None:
    sessions = texts("say a", "say b", "say c")
    outcome = drive.run(Target([server.address]), Load(sessions, [0.0, 0.0, 0.0], 1))
    first, second, third = outcome.records
    assert first.ended <= second.sent and second.ended <= third.sent
    assert third.intended == 0.0 and third.ttft >= third.sent


def test_turns_of_a_session_continue_its_history(server: Any) -> None:
    sessions = list(workload.conversations(2, 3, Lengths(Span(3, 3), Span(4, 4)), 0))
    outcome = drive.run(Target([server.address], vocab_size=50), Load(sessions, None, 1))
    assert [(r.session, r.turn) for r in outcome.records] == [
        (s, t) for s in (0, 1) for t in range(3)
    ]
    first, second, third, *_ = [list(r.token_ids.ids) for r in server.seen.requests]
    assert second[: len(first)] == first and third[: len(second)] == second
    answer = [ord(str(first[0])[0]), 32, 32]  # as the server makes them of its words
    assert second[len(first) : -3] == answer
    assert outcome.records[0].output_tokens == 3


@pytest.mark.parametrize("routing", (None, "prefix", "round_robin"))
def test_of_several_servers_the_client_library_chooses(
    server: Any, second_server: Any, routing: str | None
) -> None:
    sessions = list(workload.conversations(3, 4, Lengths(Span(20, 20), Span(4, 4)), 0))
    both = [server.address, second_server.address]
    target = Target(both, vocab_size=50, routing=routing)
    outcome = drive.run(target, Load(sessions, None, 1))
    assert [r.status for r in outcome.records] == ["OK"] * 12
    asked = [list(one.seen.requests) for one in (server, second_server)]
    if routing == "round_robin":
        assert [len(requests) for requests in asked] == [6, 6]
    else:
        of_each = [{tuple(r.token_ids.ids[:20]) for r in requests} for requests in asked]
        assert not of_each[0] & of_each[1], "a conversation went to both"


def test_several_processes_share_the_work(server: Any) -> None:
    sessions = list(workload.random_prompts(21, Lengths(Span(4, 4), Span(2, 2)), 0.5, 7))
    seen: list[int] = []
    load = Load(sessions, None, 5, warmup=2, processes=2, seed=7, options={"cache_salt": "s"})
    outcome = drive.run(Target([server.address], vocab_size=99), load, seen.append)
    assert len(outcome.clients) == 2
    assert sorted(r.session for r in outcome.records) == list(range(21))
    assert sum(r.warmup for r in outcome.records) == 2
    assert {r.cache_salt for r in server.seen.requests} == {"s"}
    prefixes = {tuple(r.token_ids.ids[:2]) for r in server.seen.requests}
    assert len(prefixes) == 1  # equal over the processes
    assert seen and max(seen) <= 21


def test_failures_are_counted_by_status_and_end_a_session(server: Any) -> None:
    sessions = texts("say a", "fail RESOURCE_EXHAUSTED full", "late INTERNAL")
    sessions.append(Session(3, (Turn(1, text="fail ABORTED x"), Turn(1, text="say never"))))
    outcome = drive.run(Target([server.address]), Load(sessions, None, 2))
    figures = summarize(outcome, {}, False)
    assert figures["completed"] == 1
    assert figures["errors_by_status"] == {"RESOURCE_EXHAUSTED": 1, "INTERNAL": 1, "ABORTED": 1}
    assert len(server.seen.requests) == 4


def quire(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quire.clients.cli", "loadtest", *words]
    return programs.run(command, timeout=PATIENCE)


def test_json_has_the_names_that_others_have(server: Any) -> None:
    done = quire(
        "--requests", "12", "--prompt-tokens", "4:8", "--warmup", "2", "--json", "--detailed",
        "-a", server.address,
    )  # fmt: skip
    figures = json.loads(done.stdout)
    names = {
        "date", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate",
        "burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens",
        "total_output_tokens", "request_throughput", "request_goodput", "output_throughput",
        "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests",
        "input_lens", "output_lens", "ttfts", "itls", "errors",
    }  # fmt: skip
    names |= {f"{s}_{m}_ms" for s in ("mean", "median", "std", "p50", "p90", "p99")
              for m in ("ttft", "tpot", "itl", "e2el")}  # fmt: skip
    assert names <= set(figures)
    assert figures["completed"] == 10 and figures["request_rate"] == "inf"
    assert {r.sampling.ignore_eos for r in server.seen.requests} == {True}
    assert len({r.cache_salt for r in server.seen.requests} - {""}) == 1


def test_a_sweep_with_a_report(server: Any, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = quire(
        "--requests", "8", "--rate", "200", "--rate", "400", "--arrivals", "gamma",
        "--burstiness", "0.5", "--goodput", "ttft:60000", "--report", str(report),
        "--prompt-tokens", "4", "-a", server.address,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "200 sessions/s" in done.stdout and "400 sessions/s" in done.stdout
    page = report.read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("data:image", "").split("base64,")[0]
    assert "Latency over load" in page and "requests/s within limits" in page


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--rate", "0"], "rate"),
        (["--concurrency", "0"], "concurrency"),
        (["--rate", "1", "--concurrency", "1", "--concurrency", "2"], "cap"),
        (["--workload", "odd"], "workload"),
        (["--workload", "trace"], "trace"),
        (["--workload", "shared-prefix", "--requests", "4"], "requests"),
        (["--arrivals", "trace"], "arrivals"),
        (["--arrivals", "gamma"], "arrivals"),
        (["--rate", "1", "--arrivals", "odd"], "arrivals"),
        *(
            (["--rate", "1", f"--{name}", value], name)
            for name in ("burstiness", "speed", "rate")
            for value in ("-1", "1e308", "1e-308", "inf")
        ),
        (["--turns", "4"], "turns: has no effect without --workload chat"),
        (["--workload", "chat", "--prefix-share", "0.5"], "prefix-share: has no effect"),
        (
            ["--workload", "trace", "--trace", "x", "--output-tokens", "64"],
            "output-tokens: has no effect",
        ),
        (["--rate", "1", "--burstiness", "1"], "burstiness: has no effect without --arrivals"),
        (["--detailed"], "detailed: has no effect without --json"),
        (["--turns", "0"], "turns"),
        (["--groups", "-1"], "groups"),
        (["--prompts-per-group", "0"], "prompts-per-group"),
        (["--workload", "chat", "--prefix-share", "-1"], "prefix-share"),
        (["--processes", "0"], "processes"),
        (["--processes", "257"], "processes"),
        (["--prefix-share", "1.5"], "prefix-share"),
        (["--requests", "3", "--warmup", "3"], "warmup"),
        (["--prompt-tokens", "5000"], "max_model_len"),
        (["--report", "/no/such/dir/x.html"], "report"),
        (["--report", "/"], "report"),
        (["--temperature", "nan"], "temperature"),
        (["--prompt-tokens", "9" * 5000], "prompt-tokens"),
        (["--requests", str(10**9)], "requests"),
        (["--workload", "chat", "--turns", str(10**9)], "turns"),
        (["--workload", "shared-prefix", "--groups", str(10**9)], "groups"),
    ],
)
def test_bad_options_are_one_line(
    server: Any, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["loadtest", *words, "-a", server.address])
    _, errors = capsys.readouterr()
    assert ended.value.code == 2, errors
    assert errors.count("\n") == 1 and named in errors
    assert not server.seen.requests


@pytest.mark.parametrize(("width", "count"), [(20, 1), (80, 8)])
def test_a_table_is_cut_nowhere(width: int, count: int) -> None:
    summary: dict[str, Any] = {key: 1234 for _, key, _ in text._ROWS}
    for _, key in text._LATENCIES:
        summary |= {f"p{q}_{key}_ms": 1234.5 for q in text._PERCENTILES}
    summary["errors_by_status"] = {"RESOURCE_EXHAUSTED": 3}
    console = Console(width=width, file=io.StringIO())
    titles = [f"concurrency {2**i}" for i in range(count)]
    for table in text.tables([(title, summary) for title in titles], console):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    if count > 1:
        assert shown.count("1,234.5") == 12 * count


def test_nothing_completed_is_an_error(server: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(json.dumps({"text": "fail INTERNAL broken", "max_tokens": 1}))
    done = quire("--workload", "trace", "--trace", str(trace), "--json", "-a", server.address)
    assert done.returncode == 1
    assert "INTERNAL: broken" in done.stderr
    assert json.loads(done.stdout)["errors_by_status"] == {"INTERNAL": 1}


def hanging(server: Any, tmp_path: Path) -> "subprocess.Popen[bytes]":
    """Two processes whose calls do not end, in a session of their own; one call has begun."""
    trace = tmp_path / "t.jsonl"
    trace.write_text((json.dumps({"text": "hang", "max_tokens": 1}) + "\n") * 4)
    words = ["--workload", "trace", "--trace", str(trace), "--processes", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "quire.clients.cli", "loadtest", *words, "-a", server.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.seen.started.wait(PATIENCE)
    return process


def test_ctrl_c_ends_every_process(server: Any, tmp_path: Path) -> None:
    """130, not a word on standard error, and the calls are cancelled on the server."""
    process = hanging(server, tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, errors) == (130, b"", b"")
    assert server.seen.cancelled.wait(PATIENCE)


def test_workers_end_with_a_parent_that_is_killed(server: Any, tmp_path: Path) -> None:
    process = hanging(server, tmp_path)
    try:
        process.kill()
        assert process.communicate(timeout=PATIENCE)  # at its end when the last worker has left it
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
