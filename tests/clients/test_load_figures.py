"""The load test without a server: what it sends, when, and what it makes of the records."""

import json
import math
import random
import statistics as oracle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from quire.clients import OptionError
from quire.clients.loadtest import arrivals, statistics, workload
from quire.clients.loadtest.drive import Outcome
from quire.clients.loadtest.record import ClientLoad, Record
from quire.clients.loadtest.summary import keeps, parse_limits, summarize
from quire.clients.loadtest.workload import Lengths, Session, Span, Turn

IDLE = ClientLoad(cpu_seconds=0.1, wall_seconds=1.0, loop_lag=0.0, send_lag=0.0)


def test_the_same_seed_sends_the_same() -> None:
    lengths = Lengths(Span(10, 50), Span(1, 9))
    once, again, other = (list(workload.random_prompts(20, lengths, 0.25, s)) for s in (1, 1, 2))
    assert once == again != other
    prompt = [workload.token_ids(s, 1, 300) for s in once[3].turns[0].segments]
    assert prompt == [workload.token_ids(s, 1, 300) for s in again[3].turns[0].segments]
    assert prompt != [workload.token_ids(s, 2, 300) for s in again[3].turns[0].segments]
    assert all(0 <= i < 300 for segment in prompt for i in segment)


def test_the_prefix_share_is_shared() -> None:
    sessions = list(workload.random_prompts(5, Lengths(Span(40, 40), Span(4, 4)), 0.25, 0))
    ids = [[workload.token_ids(s, 0, 10_000) for s in x.turns[0].segments] for x in sessions]
    assert {len(prefix) for prefix, _ in ids} == {10}
    assert len({tuple(prefix) for prefix, _ in ids}) == 1
    assert len({tuple(rest) for _, rest in ids}) == 5
    whole = list(workload.random_prompts(2, Lengths(Span(8, 8), Span(1, 1)), 1.0, 0))
    assert whole[0].turns[0].segments == whole[1].turns[0].segments


def test_groups_share_a_prefix_within_and_not_between() -> None:
    sessions = list(
        workload.shared_prefix_groups(3, 4, Span(20, 30), Span(5, 5), Span(2, 2), seed=0)
    )
    by_group: dict[str, int] = {}
    for session in sessions:
        prefix, question = session.turns[0].segments
        by_group[prefix[0]] = by_group.get(prefix[0], 0) + 1
        assert question[1] == 5
    assert sorted(by_group.values()) == [4, 4, 4]
    order = [s.turns[0].segments[0][0] for s in sessions]
    assert order != sorted(order)


def test_what_does_not_fit_the_model_is_refused_before_it_is_sent() -> None:
    sessions = list(workload.conversations(1, 3, Lengths(Span(10, 10), Span(5, 5)), 0))
    workload.check_fits(sessions, 45)
    with pytest.raises(OptionError, match="45 tokens"):
        workload.check_fits(sessions, 44)


@pytest.mark.parametrize("text", ["", "0", "5:4", "a", "1:b", "-3", ":4"])
def test_lengths_are_checked(text: str) -> None:
    with pytest.raises(OptionError, match="prompt-tokens"):
        Span.parse("prompt-tokens", text)


def test_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines: list[dict[str, Any]] = [
        {"text": "hi\u2028there", "max_tokens": 4, "time": 0.5},
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "time": 1},
        {"token_count": 9, "prefix": "p", "prefix_tokens": 4, "max_tokens": 6, "time": 2.5},
    ]
    rows = (json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("\r\n".join(rows) + "\n\n", newline="")
    sessions = list(workload.trace(path, None))
    assert sessions[0].turns[0].text == "hi\u2028there"
    assert sessions[1].turns[0].messages[0]["content"] == "x"
    assert sessions[2].turns[0].segments == (("named/p", 4), ("trace/2", 5))
    assert arrivals.traced_starts(sessions, 2.0) == [0.0, 0.25, 1.0]
    assert len(list(workload.trace(path, 2))) == 2
    for session in sessions:
        plain = json.loads(json.dumps(workload.to_plain(session)))
        assert workload.from_plain(plain) == session


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"text": "a", "max_tokens": 1, "foo": 2}', "'foo'"),
        ('{"text": "a"}', "max_tokens"),
        ('{"text": "a", "max_tokens": 0}', "max_tokens"),
        ('{"text": "a", "max_tokens": true}', "max_tokens"),
        ('{"text": "a", "token_count": 3, "max_tokens": 1}', "exactly one"),
        ('{"token_count": 3, "prefix": "a", "max_tokens": 1}', "prefix_tokens"),
        ('{"token_count": 3, "prefix": "a", "prefix_tokens": 4, "max_tokens": 1}', "within"),
        ('{"text": "a", "max_tokens": 1, "time": -1}', "time"),
        ('{"text": "a", "max_tokens": 1, "time": Infinity}', "time"),
        ('{"text": "a", "max_tokens": 1, "time": true}', "time"),
        ('{"text": "a", "max_tokens": 1' + "0" * 5000 + "}", "not JSON"),
        ('{"messages": ' + "[" * 100_000, "not JSON"),
        ('{"text": "a", "text": "b", "max_tokens": 1}', "not JSON"),
        ('{"text": 5, "max_tokens": 1}', "text: text, not int"),
        ('{"text": null, "max_tokens": 1}', "text: text, not None"),
        ('{"text": "\\ud800", "max_tokens": 1}', "surrogate"),
        ('{"messages": 5, "max_tokens": 1}', "messages: a list of messages, not int"),
        ('{"messages": [5], "max_tokens": 1}', "messages[0]: an object, not int"),
        ('{"messages": [{"content": 5}], "max_tokens": 1}', "messages[0]"),
    ],
)
def test_a_bad_trace_names_its_line(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"text": "a", "max_tokens": 1}\n' + line + "\n")
    with pytest.raises(OptionError, match=r"trace\.jsonl:2.*") as caught:
        list(workload.trace(path, None))
    assert named in str(caught.value)


# ── when


@pytest.mark.parametrize(
    ("kind", "burstiness", "variation"),
    [("constant", 1.0, 0.0), ("poisson", 9.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5)],
)
def test_arrivals_have_the_rate_and_the_variation_they_promise(
    kind: str, burstiness: float, variation: float
) -> None:
    starts = arrivals.intended_starts(kind, 50.0, burstiness, 20_000, seed=3)
    gaps = [b - a for a, b in pairwise(starts)]
    assert starts[0] == 0.0 and min(gaps) >= 0.0
    mean = oracle.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert oracle.pstdev(gaps) / mean == pytest.approx(variation, rel=0.06, abs=1e-6)
    assert starts == arrivals.intended_starts(kind, 50.0, burstiness, 20_000, seed=3)


def test_arrivals_refuse_what_they_cannot_do() -> None:
    for kind, rate, burstiness in [
        ("odd", 1, 1),
        ("trace", 1, 1),
        ("poisson", 0, 1),
        ("gamma", 1, 0),
    ]:
        with pytest.raises(OptionError):
            arrivals.intended_starts(kind, rate, burstiness, 3, 0)
    with pytest.raises(OptionError, match="time"):
        arrivals.traced_starts([Session(0, (Turn(1, text="a"),))], 1.0)


# ── what is made of it


def test_statistics_are_numpys() -> None:
    import numpy as np

    rng = random.Random(5)
    for count in (1, 2, 3, 10, 101):
        values = sorted(rng.uniform(-5, 5) for _ in range(count))
        for q in (0, 1, 50, 90, 99, 100):
            assert statistics.percentile(values, q) == pytest.approx(np.percentile(values, q))
        assert statistics.deviation(values) == pytest.approx(np.std(values))
    assert math.isnan(statistics.percentile([], 50)) and math.isnan(statistics.mean([]))


def made(session: int, intended: float, sent: float, times: list[float], **more: Any) -> Record:
    """A completed record of one token a message."""
    fields = {"ended": times[-1] if times else sent, "prompt_tokens": 10, "cached_tokens": 4}
    counts = [1] * len(times)
    return Record(
        session, 0, False, intended, sent, times=times, counts=counts, output_tokens=len(times),
        **{**fields, **more},
    )  # fmt: skip


def test_latency_counts_from_the_intended_start() -> None:
    late = made(0, intended=1.0, sent=3.0, times=[3.5, 4.0, 5.0])
    figures = summarize(Outcome([late], [IDLE]), {}, detailed=False)
    assert figures["p50_ttft_ms"] == pytest.approx(2500)
    assert figures["p99_e2el_ms"] == pytest.approx(4000)
    assert figures["mean_itl_ms"] == pytest.approx(750)
    assert figures["mean_tpot_ms"] == pytest.approx(750)
    assert figures["duration"] == pytest.approx(4.0)


def test_figures_of_a_run() -> None:
    outcome = Outcome(
        [
            made(0, 0.0, 0.0, [9.0]),
            made(1, 1.0, 1.0, [1.1, 1.2, 1.3]),
            made(2, 2.0, 2.0, [2.5, 3.0]),
            made(3, 2.0, 2.0, [], status="RESOURCE_EXHAUSTED", message="full"),
            made(4, 2.0, 2.0, []),
        ],
        [IDLE],
    )
    outcome.records[0].warmup = True
    figures = summarize(outcome, parse_limits(["ttft:200", "itl:150"]), detailed=True)
    assert (figures["completed"], figures["failed"]) == (2, 2)
    assert figures["errors_by_status"] == {"RESOURCE_EXHAUSTED": 1, "no tokens": 1}
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (20, 5)
    assert figures["duration"] == pytest.approx(2.0)
    assert figures["output_throughput"] == pytest.approx(2.5)
    assert figures["request_throughput"] == pytest.approx(1.0)
    assert figures["request_goodput"] == pytest.approx(0.5)
    assert figures["prefix_hit_rate"] == pytest.approx(0.4)
    assert figures["max_concurrent_requests"] == 1
    assert figures["max_output_tokens_per_s"] == 3
    assert figures["errors"] == ["", "", "RESOURCE_EXHAUSTED: full", ""]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_token_counts_once_in_a_message_of_several() -> None:
    record = Record(0, 0, False, 0.0, times=[1.0, 2.0], counts=[3, 4], ended=2.0, output_tokens=7)
    assert record.tpot == pytest.approx(0.25)
    assert record.gaps == [1.0]


def test_nothing_completed_is_null_and_not_nan() -> None:
    figures = summarize(Outcome([made(0, 0, 0, [], status="UNAVAILABLE")], [IDLE]), {}, False)
    assert figures["p99_ttft_ms"] is None
    json.dumps(figures, allow_nan=False)


def test_limits() -> None:
    record = made(0, 0.0, 0.0, [0.1, 0.2, 0.9])
    assert keeps(record, parse_limits(["ttft:100.1", "e2el:901", "tpot:401"]))
    assert not keeps(record, parse_limits(["ttft:99"]))
    assert not keeps(record, parse_limits(["itl:500"]))
    for word in ("ttft", "ttft:x", "foo:1", "itl:0", "itl:-4", "itl:nan"):
        with pytest.raises(OptionError, match="goodput"):
            parse_limits([word])


@pytest.mark.parametrize(
    ("load", "sign"),
    [
        (ClientLoad(0.95, 1.0, 0.0, 0.0), "of a core"),
        (ClientLoad(0.1, 1.0, 0.2, 0.3), "event loop"),
        (ClientLoad(0.1, 1.0, 0.0, 0.3), "cap"),
    ],
)
def test_it_says_when_the_client_is_the_limit(load: ClientLoad, sign: str) -> None:
    record = made(0, 0.0, 0.0, [0.1])
    assert not summarize(Outcome([record], [IDLE]), {}, False)["client_is_the_limit"]
    figures = summarize(Outcome([record], [IDLE, load]), {}, False)
    assert figures["client_is_the_limit"] and sign in figures["client_limits"][0]
