"""Equal to itself: however a request is served, it gets the tokens that it gets alone.

Small random models run in fp32 through the real core, runner and kernel twins; see
support/equivalence.py for the reference, and for where a difference is allowed. Such places must
stay below one in a thousand tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import pytest
from support.equivalence import (
    BOOKS,
    LENGTHS,
    LENGTHS_OF_CHUNKS,
    MODELS,
    SAMPLINGS,
    check_all,
    compare,
    core_of,
    every_model,
    every_sampling,
    long,
    model_of,
    reference,
    requests,
    serve,
    spread,
)
from support.small_engine import FAMILIES, PaddedRunner, Setup, build_core, run

from quire.engine.request import GenerationRequest
from quire.engine.runner.runner import Runner
from quire.engine.runner.uncaptured import of_prompts


@pytest.fixture(scope="module", autouse=True)
def books() -> Iterator[None]:
    """Excuses are rare, or they are no excuses."""
    yield
    print(
        f"\n{BOOKS.compared} tokens compared, {BOOKS.excused} excused, "
        f"smallest margin {BOOKS.smallest:.2e} {BOOKS.notes}"
    )
    assert BOOKS.excused * 1000 <= BOOKS.compared


@every_model
@every_sampling
def test_the_reference_varies(name: str, kind: str) -> None:
    """Models that repeat one token would be equal to anything."""
    outputs = reference(name, kind).values()
    assert len({token for tokens, _ in outputs for token in tokens}) >= 32
    assert len({tuple(tokens) for tokens, _ in outputs}) >= len(LENGTHS)


BATCHED = Setup(max_num_seqs=8)
WAYS = {
    "batched": BATCHED,
    "overlapped": replace(BATCHED, overlap=True),
    "two_phase": replace(BATCHED, two_phase=True),
    "two_phase, overlapped": replace(BATCHED, two_phase=True, overlap=True),
    "shared prefixes": replace(BATCHED, caching=True, overlap=True),
    "one block a request": replace(BATCHED, block_size=128, num_blocks=9),
    "a token a block": replace(BATCHED, block_size=1, num_blocks=512, caching=True),
    "queued": replace(BATCHED, max_num_seqs=3, caching=True, overlap=True),
    "padded": replace(BATCHED, padded=True),
    "padded, chunked": replace(BATCHED, max_num_batched_tokens=9, padded=True, overlap=True),
    "padded, preempted": replace(BATCHED, num_blocks=22, padded=True, caching=True, overlap=True),
}


@spread("name, kind, way", MODELS, SAMPLINGS, WAYS)
def test_batched_in_every_way_is_alone(name: str, kind: str, way: str) -> None:
    check_all(name, kind, serve(name, requests(SAMPLINGS[kind]), WAYS[way]), way)


def test_padded_steps_are_replayed_with_fewer_rows_than_they_hold() -> None:
    """Otherwise the padded ways above would show nothing."""
    name, kind = "grouped, tied", "seeded"
    core = core_of(name, WAYS["padded, chunked"])
    runner = core.runner
    assert isinstance(runner, PaddedRunner)
    for _ in range(2):
        check_all(name, kind, run(core, requests(SAMPLINGS[kind])), "padded")
    assert runner.counters.graph_steps >= 20
    assert runner.padded_rows >= 10
    assert {of_prompts(key) for key in runner.kept} == {False, True}


def test_padding_writes_nowhere_that_a_request_has_left() -> None:
    """A slot's table is stale beyond its last request's end: the blocks there are others' now.

    The first slot holds a long prompt for one step, then a short request; when that has ended too,
    three rows run as four, and they have grown into what the long prompt left.
    """
    name, kind = "grouped, tied", "greedy"
    tokens_of = {5: 1, 1: 17, 2: 17, 3: 17, 0: 6}  # by request, in the order of admission
    known = {spec.key: spec for spec in requests(SAMPLINGS[kind])}
    specs = [
        replace(known[key], sampling=replace(known[key].sampling, max_tokens=count))
        for key, count in tokens_of.items()
    ]
    core = core_of(name, Setup(max_num_seqs=4, padded=True))
    runner = core.runner
    assert isinstance(runner, PaddedRunner)
    outcomes = run(core, specs)
    assert runner.padded_rows >= 10
    for key, count in tokens_of.items():
        expected, margins = reference(name, kind)[key]
        what = f"padded beside a gap, {key}"
        compare(outcomes[key, 0].token_ids, expected[:count], margins[:count], what)


@spread("name, kind, overlap", MODELS, SAMPLINGS, (False, True))
def test_cached_is_uncached(name: str, kind: str, overlap: bool) -> None:
    core = core_of(name, replace(BATCHED, caching=True, overlap=overlap))
    specs = requests(SAMPLINGS[kind])
    check_all(name, kind, run(core, specs), "cold")
    hot = run(core, specs)
    check_all(name, kind, hot, "hot")
    for spec in specs:
        assert hot[spec.key, 0].cached_tokens == len(spec.prompt_token_ids) - 1


@spread("name, size", MODELS, (3, 8, long(1), long(2), long(5)))
def test_cold_is_a_whole_hit_is_a_copied_one(name: str, size: int) -> None:
    """What is known of a prompt ends at each of its tokens: alone, or going on otherwise."""
    kind, count = "seeded", 5
    spec = requests(replace(SAMPLINGS[kind], max_tokens=count))[3]
    prompt, key = spec.prompt_token_ids, spec.key
    expected, margins = (values[:count] for values in reference(name, kind)[key])
    core = core_of(name, replace(BATCHED, block_size=size, caching=True))
    brief = replace(SAMPLINGS[kind], max_tokens=1)
    for known in range(1, len(prompt)):
        for otherwise in ((), (prompt[known] + 1, 2, 3)):
            core.scheduler.pool.forget_all()
            first = GenerationRequest(90, (*prompt[:known], *otherwise), brief)
            assert run(core, [first])[90, 0].cached_tokens == 0
            hot = run(core, [spec])[key, 0]
            what = f"{name}, {kind}, blocks of {size}, {known} known"
            assert hot.cached_tokens == known, what
            compare(hot.token_ids, expected, margins, what)


@pytest.mark.parametrize("known", range(5, 8))
def test_a_copy_holds_the_bits_of_its_source(known: int) -> None:
    core = build_core(*model_of("grouped, tied"), replace(BATCHED, caching=True, overlap=True))
    spec = requests(SAMPLINGS["greedy"])[4]
    run(core, [GenerationRequest(90, spec.prompt_token_ids[:known], SAMPLINGS["greedy"])])
    core.scheduler.submit(spec)
    core.step()
    (flight,) = core.scheduler.completion.in_flight
    ((source, target),) = flight.plan.copies
    assert flight.plan.rows[0].start == known
    runner = core.runner
    assert isinstance(runner, Runner)
    for side in (runner._kv.k, runner._kv.v):
        copied = side[:, target, :, : known % 4]
        assert copied.isfinite().all() and copied.equal(side[:, source, :, : known % 4])


@spread("name, kind, chunk", MODELS, ("greedy", "filtered"), LENGTHS_OF_CHUNKS)
def test_chunked_is_whole(name: str, kind: str, chunk: int) -> None:
    """Alone in chunks of every size; and packed with others' tokens into steps of that size."""
    for setup in (
        Setup(max_num_batched_tokens=chunk),
        Setup(max_num_batched_tokens=chunk, max_num_seqs=min(chunk, 8), overlap=True, caching=True),
    ):
        check_all(name, kind, serve(name, requests(SAMPLINGS[kind]), setup), f"chunks of {chunk}")


@spread("name, kind, overlap, caching", MODELS, SAMPLINGS, (False, True), (False, True))
def test_preempted_is_not(name: str, kind: str, overlap: bool, caching: bool) -> None:
    setup = replace(BATCHED, num_blocks=22, caching=caching, overlap=overlap)
    outcomes = serve(name, requests(SAMPLINGS[kind]), setup)
    assert sum(outcome.preemptions for outcome in outcomes.values()) >= 3
    check_all(name, kind, outcomes, "preempted")


@spread("name, kind, places", MODELS, SAMPLINGS, ((1, 2, 3, 4, 10, 15), long(range(1, 16))))
def test_resumed_is_unbroken(name: str, kind: str, places: Sequence[int]) -> None:
    """After so many tokens, on an engine that has seen nothing of the stream before."""
    expected = reference(name, kind)
    for held in places:
        specs = [
            replace(spec, resume_token_ids=tuple(expected[spec.key][0][:held]))
            for spec in requests(SAMPLINGS[kind])
            if held < len(expected[spec.key][0])
        ]
        assert len(specs) >= 2
        outcomes = serve(name, specs, replace(BATCHED, overlap=True, caching=held % 2 == 0))
        for spec in specs:
            tokens, margins = expected[spec.key]
            compare(
                outcomes[spec.key, 0].token_ids,
                tokens[held:],
                margins[held:],
                f"{name}, {kind}, resumed after {held}, request {spec.key}",
            )


@spread("name, kind, caching", MODELS, ("seeded", "penalised", long("filtered")), (False, True))
def test_siblings_by_fork_are_siblings_in_turn(name: str, kind: str, caching: bool) -> None:
    """Forked from the leader's blocks, or each on its own because only one may run at a time. A
    prompt may end anywhere in a block."""
    known = {len(spec.prompt_token_ids) % 4: spec for spec in requests(SAMPLINGS[kind])}
    assert len(known) == 4
    specs = [replace(spec, n=3) for spec in known.values()]
    model, ops = model_of(name)
    in_turn, margins = {}, {}
    for spec in specs:
        with ops.watched() as noted:
            outcomes = run(build_core(model, ops, Setup()), [spec])
        in_turn.update(outcomes)
        count = 0
        for index in range(3):
            length = len(outcomes[spec.key, index].token_ids)
            margins[spec.key, index] = noted[count : count + length]
            count += length
        BOOKS.smallest = min(BOOKS.smallest, *noted)
    core = build_core(model, ops, replace(BATCHED, max_num_seqs=24, caching=caching, overlap=True))
    for place, outcome in run(core, specs).items():
        compare(
            outcome.token_ids,
            in_turn[place].token_ids,
            margins[place],
            f"{name}, {kind}, sibling {place}",
        )
    if SAMPLINGS[kind].temperature:
        for spec in specs:
            assert len({tuple(in_turn[spec.key, i].token_ids) for i in range(3)}) == 3
            alone = reference(name, kind)[spec.key]
            compare(in_turn[spec.key, 0].token_ids, *alone, f"{name}, {kind}, the leader")


@spread("name, kind", MODELS, SAMPLINGS)
def test_everything_at_once(name: str, kind: str) -> None:
    """Tiny cache, tiny steps, shared prefixes, planned ahead, twice."""
    setup = Setup(
        max_num_seqs=5, max_num_batched_tokens=7, num_blocks=22, caching=True, overlap=True
    )
    core = core_of(name, setup)
    for _ in range(2):
        outcomes = run(core, requests(SAMPLINGS[kind]))
        check_all(name, kind, outcomes, "everything")
    assert core.scheduler.counters.preemptions > 0
    assert core.scheduler.counters.prefix_hit > 0


FAMILY_WAYS = {
    "padded, chunked": WAYS["padded, chunked"],
    "padded, preempted": WAYS["padded, preempted"],
    "chunks of a block": Setup(max_num_batched_tokens=4, max_num_seqs=2),
}


FAMILY_NAMES = [
    long(name) if name.startswith("fp8 cache, ") or name.endswith(", both") else name
    for name in FAMILIES
]


@spread("name, kind", FAMILY_NAMES, ("penalised", "filtered", long("seeded")))
def test_each_family_is_equal_to_itself(name: str, kind: str) -> None:
    """Batched, chunked, padded, preempted; cold and hot; forked, and resumed."""
    specs = requests(SAMPLINGS[kind])
    assert len({token for tokens, _ in reference(name, kind).values() for token in tokens}) >= 32
    for way, setup in FAMILY_WAYS.items():
        core = core_of(name, setup)
        for turn in ("cold", "hot") if setup.caching else ("alone",):
            check_all(name, kind, run(core, specs), f"{way}, {turn}")
    forked = run(
        core_of(name, replace(BATCHED, max_num_seqs=24, caching=True)),
        [replace(spec, n=3) for spec in specs],
    )
    check_all(name, kind, forked, "forked")
    known = reference(name, kind)
    resumed = [
        replace(spec, key=100 * held + spec.key, resume_token_ids=tuple(known[spec.key][0][:held]))
        for held, spec in product((1, 6, 13), specs)
        if held < len(known[spec.key][0])
    ]
    outcomes = serve(name, resumed, replace(BATCHED, max_num_seqs=24, overlap=True))
    for spec in resumed:
        held, (tokens, margins) = len(spec.resume_token_ids), known[spec.key % 100]
        what = f"{name}, {kind}, resumed after {held}, request {spec.key % 100}"
        compare(outcomes[spec.key, 0].token_ids, tokens[held:], margins[held:], what)
