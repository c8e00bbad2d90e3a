"""What is written ahead of a step: at once as one by one, and at one address a size."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.small_engine import Setup, build_core, load_model, model_config, run

from quire.engine.loop.core import EngineCore
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner.graphs import Done, Key
from quire.engine.runner.slots import NUMBERS, SlotState
from quire.engine.runner.staging import Record, Ring, Staging, Steps
from quire.engine.runner.state_writes import WriteKey
from quire.engine.scheduling.plan import Admission, SamplingNumbers

SETUP = Setup(max_num_seqs=7, max_num_batched_tokens=96, block_size=4, caching=True)
GREEDY = SamplingParams(max_tokens=6)
MODEL = load_model(model_config(), seed=2)

Places = tuple[int, dict[str, tuple[int, int]]]


def places_of(write: Any) -> Places:
    """Where the upload has what is written, before all else stands behind it."""
    staging = write.__self__._staging
    names = {*staging._places, *(name for _, one in staging._records for name in one.places)}
    places = {name: staging._place(name) for name in names}
    return staging._fixed, {name: at for name, at in places.items() if at[0] < staging._fixed}


class Kept:
    """Writes kept as closures, which must find all where it was; of all else nothing is."""

    def __init__(self) -> None:
        self.steps: dict[Key, Callable[[], Done]] = {}
        self._places: dict[Key, Places] = {}
        self.replays: list[WriteKey] = []

    def __contains__(self, key: Key) -> bool:
        return not isinstance(key, WriteKey) or key in self.steps

    def replay(self, key: Key) -> Done | None:
        if key not in self.steps:
            return None
        assert isinstance(key, WriteKey)
        assert places_of(self.steps[key]) == self._places[key]
        self.replays.append(key)
        return self.steps[key]()

    def capture(self, key: Key, step: Callable[[], Done], *, ran: bool = True) -> None:
        del ran
        if isinstance(key, WriteKey):
            self.steps[key] = step
            self._places[key] = places_of(step)


def warm_core(kept: Kept | None, setup: Setup = SETUP) -> EngineCore:
    core = build_core(*MODEL, setup)
    runner: Any = core.runner
    if kept is not None:
        runner._writer._graphs = kept
        runner._writer.capture()
        kept.replays.clear()
    return core


NAMES = {"repetition_penalty": "repetition", "presence_penalty": "presence"}
NAMES |= {"frequency_penalty": "frequency"}


@pytest.mark.parametrize("alone", [False, True])
def test_each_number_of_a_slot_stands_under_its_name(alone: bool) -> None:
    """Numbers go up in one table: a name, a row and a value that are out of step are a parameter
    in another's place."""
    state, staging = SlotState(3, 1, 8, torch.device("cpu")), Staging(torch.device("cpu"))
    numbers = SamplingNumbers(0.75, 0.5, 9, 0.125, 1.25, 0.25, 0.375, seed=5, min_position=6)
    one = Admission(1, 0, 2, 4, 3, numbers, (), ())
    staging.begin()
    if alone:
        state.stage_one(staging, one, (), 16)
    else:
        state.stage(staging, (one,), ())
    staging.upload()
    state.write(staging, (one,))
    told = {"last_token": 4, "num_computed": 3, "min_position": 6, "seeds": 5}
    for field in ("temperature", "top_p", "top_k", "min_p", *NAMES):
        told[NAMES.get(field, field)] = getattr(numbers, field)
    assert len(told) == NUMBERS + 1, "a number of the slot is not asked for here"
    assert {name: getattr(state, name)[2].item() for name in told} == told


def test_a_record_is_its_arrays_one_by_one() -> None:
    """At the same addresses, whatever was put before it."""
    whole, single = (Staging(torch.device("cpu")) for _ in range(2))
    record = Record(("a", "3i", (3,)), ("b", "1q", (1,)), ("c", "0q", (0,)), ("d", "2i1f", (3, 1)))
    for staging in (whole, single):
        staging.begin()
        staging.put_ints("first", [7])
    whole.put_record(record, (1, -2, 3, 1 << 40, 4, 5, 0.5))
    single.put_ints("a", [1, -2, 3])
    single.put_ints("b", [1 << 40], "q")
    single.put_ints("c", [], "q")
    single.put("d", np.array([[4], [5], [np.float32(0.5).view(np.int32)]], np.int32))
    for staging in (whole, single):
        staging.put_ints("last", [8])
        assert staging.upload()
    names = ("first", "a", "b", "c", "d", "last")
    assert [whole._place(name) for name in names] == [single._place(name) for name in names]
    assert all(torch.equal(whole.get(name), single.get(name)) for name in names)
    assert whole.find("e") is None
    with pytest.raises(KeyError):
        whole.get("e")
    whole.begin()
    assert whole.find("a") is None
    assert not whole.upload()


def prompt(first: int, tokens: int) -> tuple[int, ...]:
    return tuple((first + i * 7) % 383 + 1 for i in range(tokens))


def state_of(core: EngineCore) -> list[Any]:
    """What is written, of all slots but the null one."""
    state: Any = core.runner._state  # type: ignore[attr-defined]
    writer: Any = core.runner._writer  # type: ignore[attr-defined]
    rows = writer.row_slots[: len(writer._rows)].tolist()
    written = (state._numbers.T, state.seeds, state.block_tables)
    return [rows, *(tensor[: state.null_slot].tolist() for tensor in written)]


def test_writes_at_once_are_those_one_by_one() -> None:
    """Alone, of more blocks than the smallest size has, and with a copied block; many at once."""
    kept = Kept()
    cores = warm_core(None), warm_core(kept)
    drawn = replace(GREEDY, temperature=0.9, top_k=7, seed=-5)
    for prompts in ([10], [3, 9, 30, 5], [90], [10], [3] * 7):
        specs = [GenerationRequest(i, prompt(n, n), drawn) for i, n in enumerate(prompts)]
        outcomes = [run(core, specs) for core in cores]
        assert outcomes[0] == outcomes[1]
        assert state_of(cores[0]) == state_of(cores[1])
    assert {key[:2] for key in kept.replays} == {(16, 0), (16, 1), (64, 0)}


def test_padding_leaves_the_null_slot_as_it_is() -> None:
    core = warm_core(None)
    state: Any = core.runner._state  # type: ignore[attr-defined]
    before = state._numbers[:, state.null_slot].tolist()
    core.runner._writer._graphs = kept = Kept()  # type: ignore[attr-defined]
    core.runner._writer.capture()  # type: ignore[attr-defined]
    assert len(kept.steps) == 12, "six sizes, two buffers"
    assert state._numbers[:, state.null_slot].tolist() == before
    assert not state.seeds.any() and not state.block_tables.any()


@pytest.mark.parametrize(
    "params",
    (
        replace(GREEDY, repetition_penalty=1.4),
        replace(GREEDY, min_tokens=3, stop_token_ids=(7, 8)),
    ),
)
def test_whoever_needs_more_written_is_written_one_by_one(params: SamplingParams) -> None:
    """And so is who has their slot after them, if that is to be undone."""
    kept = Kept()
    cores = (
        warm_core(None, replace(SETUP, max_num_seqs=1)),
        warm_core(kept, replace(SETUP, max_num_seqs=1)),
    )
    for asked in (params, GREEDY):
        specs = [GenerationRequest(0, prompt(1, 9), asked)]
        assert run(cores[0], specs) == run(cores[1], specs)
        assert state_of(cores[0]) == state_of(cores[1])
    assert len(kept.replays) == (not params.min_tokens)


def test_what_is_put_ahead_moves_nothing_and_has_one_address_a_size() -> None:
    staging: Any = Staging(torch.device("cpu"), capacity=64, ahead=48)
    staging._pinned = True  # a buffer at one address, as a device has
    places: dict[int, set[int]] = {}
    for ahead in (0, 3, 12, 0, 3, 9):
        for behind in (5, 40):  # more than there is room for, too
            staging.begin()
            if ahead:
                staging.put("ahead", np.arange(ahead, dtype=np.int32))
                staging.fix()
            staging.put("rest", np.arange(behind, dtype=np.int64))
            staging.upload()
            assert staging.get("rest").tolist() == list(range(behind))
            assert staging._target[48:88].view(torch.int64).tolist() == [0, 1, 2, 3, 4]
            if ahead:
                assert staging.get("ahead").tolist() == list(range(ahead))
                head = staging.get("ahead").data_ptr() - staging._target.data_ptr()
                places.setdefault(ahead, set()).add(head)
    assert places == {3: {32}, 12: {0}, 9: {8}}


def test_a_buffer_is_asked_for_unless_the_results_of_a_later_step_have_come() -> None:
    """Whether its copy has ended: a step that was launched since may be at work, or have no results
    yet."""
    steps = Steps()
    ring: Any = Ring(torch.device("cpu"), 2, 8, steps)
    asked: list[int] = []
    ring._events = [SimpleNamespace(synchronize=partial(asked.append, i)) for i in range(2)]
    for come, expected in ((0, []), (0, []), (0, [1]), (1, [0]), (3, []), (3, [0]), (6, [])):
        steps.come = come
        ring.next(bytes(8))
        steps.asked += 1
        assert asked == expected
        asked.clear()
