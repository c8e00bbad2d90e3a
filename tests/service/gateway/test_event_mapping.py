"""Our events as the foreign contract's."""

import tracemalloc

import pytest

from quire.service.gateway.event_mapping import EventMapping
from quire.service.gateway.protos import Protos
from quire.v1 import inference_pb2 as pb

pytest.importorskip("smg_grpc_proto", reason="the extra `gateway` is not installed")
EVENTS = (
    pb.GenerateResponse(started=pb.Started(prompt_tokens=7, cached_tokens=4)),
    pb.GenerateResponse(delta=pb.Delta(token_ids=[1, 2])),
    pb.GenerateResponse(delta=pb.Delta(token_ids=[3])),
    pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP, stop_string="end")),
)


@pytest.mark.parametrize("stream", (True, False))
def test_an_end_holds_all_that_chunks_held(stream: bool) -> None:
    protos = Protos()
    telling = EventMapping(protos, protos.engine.GenerateRequest(stream=stream))
    said = [message for event in EVENTS for message in telling.take(event)]
    chunks, end = [message.chunk for message in said[:-1]], said[-1].complete
    assert [list(chunk.token_ids) for chunk in chunks] == ([[1, 2], [3]] if stream else [])
    assert [chunk.completion_tokens for chunk in chunks] == ([2, 3] if stream else [])
    assert list(end.output_ids) == [1, 2, 3]
    assert (end.prompt_tokens, end.cached_tokens, end.completion_tokens) == (7, 4, 3)
    assert (end.finish_reason, end.matched_stop_str) == ("stop", "end")
    assert not list(telling.aborted())


def test_more_indices_than_may_be_take_no_room() -> None:
    """It is made before the request is judged."""
    protos = Protos()
    request = protos.engine.GenerateRequest()
    request.sampling_params.n = 100_000
    tracemalloc.start()
    try:
        EventMapping(protos, request)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
