"""Our events as the foreign contract's chunks and ends.

Invariant: chunks hold what has come since the last one, and only if the caller streams; each index
ends with one `complete`, which holds all of its ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from quire.service.gateway.protos import Protos
from quire.service.rpc.field_faults import MAX_N
from quire.v1 import inference_pb2 as pb

_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_TOOL_CALLS: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "abort",
    pb.FINISH_REASON_ERROR: "error",
}


@dataclass(slots=True)
class _Index:
    """What was sent for one index so far."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    ended: bool = False


class EventMapping:
    """The mapping of one call."""

    def __init__(self, protos: Protos, request: Any) -> None:
        """request: the foreign one."""
        self._engine = protos.engine
        self._stream: bool = request.stream
        self._stop_ids = frozenset(request.sampling_params.stop_token_ids)
        self._with_logprobs: bool = request.sampling_params.HasField("logprobs")
        n = min(max(request.sampling_params.n, 1), MAX_N)  # of more the call is refused
        self._indices = [_Index() for _ in range(n)]
        self._started = pb.Started()

    def take(self, message: pb.GenerateResponse) -> Iterator[Any]:
        """The messages for one event."""
        kind = message.WhichOneof("event")
        if kind == "started":
            self._started = message.started
        elif kind == "delta":
            yield from self._chunk(message.delta)
        elif kind == "finished":
            yield self._complete(message.finished)

    def aborted(self) -> Iterator[Any]:
        """The ends of those that were cut off."""
        for index, said in enumerate(self._indices):
            if not said.ended:
                reason = pb.FINISH_REASON_CANCELLED
                yield self._complete(pb.Finished(index=index, reason=reason))

    def _chunk(self, delta: pb.Delta) -> Iterator[Any]:
        said = self._indices[delta.index]
        said.ids += delta.token_ids
        said.logprobs += delta.logprobs
        if not self._stream or not delta.token_ids:
            return
        yield self._engine.GenerateResponse(
            chunk=self._engine.GenerateStreamChunk(
                token_ids=delta.token_ids,
                output_logprobs=self._logprobs(delta.logprobs),
                index=delta.index,
                **self._counts(said),
            )
        )

    def _complete(self, finished: pb.Finished) -> Any:
        said = self._indices[finished.index]
        said.ended = True
        complete = self._engine.GenerateComplete(
            output_ids=said.ids,
            finish_reason=_REASONS[finished.reason],
            output_logprobs=self._logprobs(said.logprobs),
            index=finished.index,
            **self._counts(said),
        )
        matched = finished.WhichOneof("matched")
        if matched == "stop_string":
            complete.matched_stop_str = finished.stop_string
        elif matched == "stop_token_id" and finished.stop_token_id in self._stop_ids:
            complete.matched_token_id = finished.stop_token_id
        return self._engine.GenerateResponse(complete=complete)

    def _counts(self, said: _Index) -> dict[str, int]:
        return {
            "prompt_tokens": self._started.prompt_tokens,
            "completion_tokens": len(said.ids),
            "cached_tokens": self._started.cached_tokens,
        }

    def _logprobs(self, logprobs: Any) -> Any:
        if not self._with_logprobs:
            return None
        engine = self._engine
        return engine.OutputLogProbs(
            token_logprobs=[one.logprob for one in logprobs],
            token_ids=[one.token_id for one in logprobs],
            top_logprobs=[
                engine.TopLogProbs(
                    values=[top.logprob for top in one.top],
                    token_ids=[top.token_id for top in one.top],
                )
                for one in logprobs
            ],
        )
