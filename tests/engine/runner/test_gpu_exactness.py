"""On the GPU: however a request is served, it gets the same tokens, and bit for bit where said.

The pairs and their comparison are those of benchmarks/exactness.py, on a random model with the
layers of the 0.6B shape. Where TESTS_EXACTNESS names a file, the table is written there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.benchmark_code import common, exactness, watched

Bench, Comparison, Pair = exactness.Bench, exactness.Comparison, exactness.Pair
PAIRS, SAMPLINGS = exactness.PAIRS, exactness.SAMPLINGS
requests = watched.requests

pytestmark = pytest.mark.gpu

DTYPES = ("bfloat16", "float32")
FP32_PAIRS = ("graph = eager", "overlapped = plain, graph", "batched = alone", "chunked = whole")
RESULTS: list[Comparison] = []


@pytest.fixture(scope="module", params=DTYPES)
def bench(request: pytest.FixtureRequest) -> Bench:
    """The engines of one data type, built as they are asked for."""
    return Bench(request.param)


@pytest.fixture(scope="module", autouse=True)
def books() -> Iterator[None]:
    """What all comparisons add up to: excuses are rare, or they are no excuses."""
    yield
    compared, excused = (sum(getattr(r, n) for r in RESULTS) for n in ("compared", "excused"))
    print(f"\n{compared} tokens compared, {excused} places excused")
    path = os.environ.get("TESTS_EXACTNESS")
    if path:
        common.write_results(Path(path), exactness.rows_of(RESULTS))
    assert excused * 10 <= compared


@pytest.mark.parametrize("kind", SAMPLINGS)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_one_way_is_the_other(bench: Bench, pair: Pair, kind: str) -> None:
    if bench.dtype == "float32" and pair.name not in FP32_PAIRS:
        pytest.skip("in bfloat16 alone")
    result = bench.compare(pair, kind)
    RESULTS.append(result)
    assert result.faults == []
    assert result.compared >= 4 * pair.count, "the comparison ended too soon to mean anything"


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_the_ways_are_what_they_say(bench: Bench, kind: str) -> None:
    """A pair of which one side never did what it stands for would prove nothing."""
    if bench.dtype == "float32":
        pytest.skip("in bfloat16 alone")
    eager = bench.served(exactness.EAGER, kind, 8)
    assert eager.graph_steps == 0
    for way, count in ((exactness.GRAPH, 8), (exactness.AHEAD, 8), (exactness.PADDED, 11)):
        served = bench.served(way, kind, count)
        assert served.graph_steps >= 23
        assert served.eager_steps <= 1
    mixed = bench.served(exactness.MIXED, kind, 11)
    assert mixed.mixed_steps >= 5
    assert mixed.eager_steps == 0, "every step of the last pass is a replay"
    assert bench.served(exactness.CACHED, kind, 8).cached_tokens >= 8 * 16
    assert bench.served(exactness.SQUEEZED, kind, 8).preemptions >= 1
    outputs = eager.tokens.values()
    assert len({token for tokens in outputs for token in tokens}) >= 64


@pytest.mark.parametrize("way", (exactness.AHEAD, exactness.MIXED), ids=lambda way: way.name)
def test_watching_changes_no_token(way: exactness.Way) -> None:
    """The log stands between the head and the sampler: without it, everything is as with it."""
    bench = Bench("bfloat16")
    unwatched = watched.WatchedEngine(way, "bfloat16", watch=False)
    for kind in SAMPLINGS:
        expected = bench.served(way, kind, 8).tokens
        assert unwatched.serve(requests(8, SAMPLINGS[kind])).tokens == expected


def test_a_fault_is_seen(bench: Bench) -> None:
    """Other logits, or other tokens from equal ones, are told apart from a coin's edge."""
    if bench.dtype == "float32":
        pytest.skip("in bfloat16 alone")
    pair = next(p for p in PAIRS if p.same_steps)
    one = bench.served(exactness.EAGER, "greedy", 8)
    specs = requests(8, SAMPLINGS["greedy"])
    wrong = exactness.Served(
        tokens={
            key: [*tokens[:5], tokens[5] ^ 1, *tokens[6:]] for key, tokens in one.tokens.items()
        },
        logits=one.logits,
    )
    assert len(exactness.compare(pair, "bfloat16", "greedy", one, wrong, specs).faults) == 8
    shifted = exactness.Served(
        tokens=one.tokens, logits={key: values + 1e-6 for key, values in one.logits.items()}
    )
    assert exactness.compare(pair, "bfloat16", "greedy", one, shifted, specs).faults
