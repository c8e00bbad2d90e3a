"""A call's timings are those of its steps, however much was joined before it was read."""

from typing import Any

import pytest
from support.some_engine import INFO

from quire.engine.request import FinishReason, GenerationRequest, Output, SamplingParams
from quire.service.rpc.responses import CallOutput
from quire.service.rpc.validation import Accepted, TextOptions
from quire.service.telemetry.counters import Ledger
from quire.v1 import inference_pb2 as pb

ACCEPTED_AT = 100.0
STARTED_AT = 101.0
TOKENS_AT = (103.0, 103.5, 104.5)


def said() -> list[Output]:
    """What an engine says: started, then three tokens, the last of them the end."""
    started = Output(1, 0, started=True)
    started.stamp(STARTED_AT)
    outputs = [started]
    for token, now in enumerate(TOKENS_AT):
        output = Output(1, 0, token_ids=[token])
        output.stamp(now)
        outputs.append(output)
    outputs[-1].finish = FinishReason.LENGTH
    return outputs


def read(cuts: list[int]) -> tuple[pb.Finished, Ledger, list[float]]:
    """The call's end, read after so many outputs each time; what comes between is joined."""
    waits = list[float]()
    ledger, call = opened(waits)
    outputs, messages = said(), []
    for cut in cuts:
        first, *later = [outputs.pop(0) for _ in range(cut)]
        for output in later:
            first.join(output)
        messages += list(call.take([first]))
    assert not outputs and messages[0].HasField("started")
    assert [i for m in messages for i in m.delta.token_ids] == [0, 1, 2]
    assert messages[-1].HasField("finished")
    record = call.record()
    assert (record.queued, record.first_token) == (1.0, 3.0)
    return messages[-1].finished, ledger, waits


def opened(waits: list[float]) -> tuple[Ledger, CallOutput]:
    """A call that was accepted, and the books that it is entered in."""
    ledger = Ledger()
    generation = GenerationRequest(1, (5, 6), SamplingParams(max_tokens=3))
    accepted = Accepted("id", generation, TextOptions(ids_only=True))
    nothing: Any = None
    return ledger, CallOutput(accepted, nothing, INFO, ledger, ACCEPTED_AT, nothing, waits.append)


@pytest.mark.parametrize("cuts", [[1, 1, 1, 1], [1, 3], [2, 2], [2, 1, 1], [3, 1], [4]])
def test_however_much_is_joined_each_time_stays_what_it_was(cuts: list[int]) -> None:
    finished, ledger, waits = read(cuts)
    timings = finished.timings
    assert (timings.queued_seconds, timings.prefill_seconds, timings.decode_seconds) == (
        1.0,
        2.0,
        1.5,
    )
    assert waits == [1.0]
    assert (ledger.queue_time.count, ledger.queue_time.sum) == (1, 1.0)
    assert (ledger.time_to_first_token.count, ledger.time_to_first_token.sum) == (1, 3.0)
    between = ledger.inter_token_latency
    assert between.count == 2 and between.sum == pytest.approx(1.5)
    mean = ledger.time_per_output_token
    assert mean.count == 1 and mean.sum == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("tokens", "finish"),
    [(1, FinishReason.LENGTH), (3, FinishReason.CANCELLED), (3, FinishReason.ERROR), (3, None)],
)
def test_one_token_has_no_mean_and_neither_has_what_was_cut_short(
    tokens: int, finish: FinishReason | None
) -> None:
    outputs = said()[: 1 + tokens]
    outputs[-1].finish = finish
    ledger, call = opened([])
    for output in outputs:
        list(call.take([output]))
    call.abandon()
    assert ledger.finished.total() == 1 and ledger.time_per_output_token.count == 0
