"""One call's output side: turns the engine's outputs into messages of the contract.

Invariant: `started` comes first and once; each index has one `finished` and nothing after it; the
ids in an index's deltas are exactly those that its usage counts. Every index that the call opened
is counted in the ledger once, by a `finished` or by `abandon`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from quire.engine.loop.stats import EngineInfo
from quire.engine.prompt_logprobs import record, unpacked
from quire.engine.request import FinishReason, Output, TokenLogprob
from quire.service.rpc.answer_stream import AnswerPiece, AnswerStream
from quire.service.rpc.validation import Accepted, open_stream
from quire.service.telemetry.counters import Ledger
from quire.service.text.stop_strings import StopMatch
from quire.service.text.text_stream import Piece, TextStream
from quire.service.text.tokenizer import Tokenizer
from quire.v1 import inference_pb2 as pb

_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_WHOLE = (FinishReason.STOP, FinishReason.LENGTH)  # regular ends


@dataclass(slots=True)
class IndexState:
    """The state of one index. Times are time.monotonic()."""

    text: TextStream | AnswerStream | None  # None: ids only
    tokens: int = 0  # received from the engine, delivered or not
    taken: int = 0  # outputs received from the engine, resumed ones not counted
    delivered: int = 0
    reasoning_tokens: int = 0  # of those
    cached_tokens: int = 0
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    preemptions: int = 0
    peak_blocks: int = 0
    finish: FinishReason | None = None


def _reason(reason: FinishReason, state: IndexState) -> "pb.FinishReason":
    """The contract's reason: a model that stops after tool calls waits for their results."""
    called = isinstance(state.text, AnswerStream) and state.text.called
    if reason is FinishReason.STOP and called:
        return pb.FINISH_REASON_TOOL_CALLS
    return _REASONS[reason]


@dataclass(slots=True)
class CallRecord:
    """A call's record for the log, once it has ended."""

    reasons: list[str] = field(default_factory=list)
    delivered: int = 0
    cached_tokens: int = 0
    queued: float = 0.0
    first_token: float | None = None
    preemptions: int = 0


class CallOutput:
    """Turns a call's engine outputs into responses."""

    def __init__(
        self,
        accepted: Accepted,
        tokenizer: Tokenizer,
        info: EngineInfo,
        ledger: Ledger,
        accepted_at: float,
        end_index: Callable[[int, int], None],
        on_started: Callable[[float], None],
    ) -> None:
        """end_index(index, kept): tells the engine that a stop string was found.
        on_started(seconds): an index was scheduled after waiting so long."""
        self._request = accepted.generation
        self._request_id = accepted.request_id
        self._info = info
        self._options = accepted.text
        self._tokenizer = tokenizer
        self._ledger = ledger
        self._accepted_at = accepted_at
        self._end_index = end_index
        self._on_start = on_started
        self._started = False
        self._prompt_logprobs_sent = 0  # prompt tokens whose log-probabilities have been sent
        self.error_id: str | None = None  # of the last failed step
        self.dead_end: str | None = None  # why an index could not go on
        self.sampled = 0  # tokens received from the engine, sent to the client or not
        resumed = accepted.resumed
        self._replayed = None if resumed is None else resumed.match
        # The resumed ids hold a stop string: `complete` is the whole answer.
        self.already_complete = self._replayed is not None
        self._accepted = accepted

    @property
    def started(self) -> bool:
        """Whether `started` has been sent."""
        return self._started

    @cached_property
    def _indices(self) -> list[IndexState]:
        """Not made before there is an output: the request is on its way meanwhile."""
        return [IndexState(self._open_text(index)) for index in range(self._request.n)]

    def _open_text(self, index: int) -> TextStream | AnswerStream | None:
        accepted = self._accepted
        if accepted.text.ids_only:
            return None
        if accepted.resumed is not None:
            return accepted.resumed.stream  # the only one: n is 1
        return open_stream(self._tokenizer, accepted.generation, accepted.text, index)

    def complete(self) -> Iterator[pb.GenerateResponse]:
        """The answer to a call that is already complete."""
        yield self._start(self._indices[0])
        yield from self._finish(0, FinishReason.STOP, match=self._replayed)

    # ------------------------------------------------------------ from the engine

    def take(self, outputs: Iterable[Output]) -> Iterator[pb.GenerateResponse]:
        """Messages for new outputs: one delta per index, and more only where one would be too
        large, or hold text behind a call. They are made lazily, so that not all of a large output
        is built at once."""
        for output in outputs:
            self.sampled += len(output.token_ids)
            state = self._indices[output.index]
            if state.finish is not None:
                continue  # a stop string ended it, which the engine does not know yet
            if output.started:
                yield from self._on_started(state, output)
            if output.prompt_logprobs:
                yield from self._on_prompt_logprobs(output.prompt_logprobs)
            state.preemptions = output.preemptions
            state.peak_blocks = output.peak_blocks
            if output.token_ids:
                self._on_times(state, output)
            yield from self._on_tokens(output.index, state, output)

    def _on_started(self, state: IndexState, output: Output) -> Iterator[pb.GenerateResponse]:
        state.cached_tokens = output.cached_tokens
        state.started_at = output.started_at
        waited = max(output.started_at - self._accepted_at, 0.0)
        self._ledger.queue_time.observe(waited)
        self._on_start(waited)
        if not self._started:
            yield self._start(state)
            if self._request.prompt_logprobs is not None:
                first = self._request.prompt_token_ids[0]
                told = pb.PromptLogprobs(first_token_id=first)
                told.first_token_bytes = self._bytes(first)
                yield pb.GenerateResponse(prompt_logprobs=told)

    def _on_prompt_logprobs(self, told: bytes) -> Iterator[pb.GenerateResponse]:
        """More of the prompt's log-probabilities, in messages as large as deltas."""
        top, prompt = self._request.prompt_logprobs, self._request.prompt_token_ids
        assert top is not None
        begin, self._prompt_logprobs_sent = (
            self._prompt_logprobs_sent,
            self._prompt_logprobs_sent + len(told) // record(top).itemsize,
        )
        rest = unpacked(told, top, prompt[1 + begin : 1 + self._prompt_logprobs_sent])
        most = self._options.delta_tokens
        while some := [self._logprob(one) for one in islice(rest, most)]:
            yield pb.GenerateResponse(prompt_logprobs=pb.PromptLogprobs(logprobs=some))

    def _start(self, state: IndexState) -> pb.GenerateResponse:
        self._started = True
        return pb.GenerateResponse(
            started={
                "request_id": self._request_id,
                "seed": self._request.sampling.seed,
                "model_fingerprint": self._info.fingerprint,
                "numerics": self._info.numerics,
                "prompt_tokens": len(self._request.prompt_token_ids),
                "cached_tokens": state.cached_tokens,
            }
        )

    def _on_times(self, state: IndexState, output: Output) -> None:
        count, before = len(output.token_ids), state.last_token_at
        state.tokens += count
        if before is None:
            count, before = count - 1, output.first_token_at
            state.first_token_at = before
            self._ledger.time_to_first_token.observe(before - self._accepted_at)
        if count:
            # Several tokens here were joined: their steps share the time.
            self._ledger.inter_token_latency.observe((output.time - before) / count, count)
        state.last_token_at = output.time

    def _on_tokens(
        self, index: int, state: IndexState, output: Output
    ) -> Iterator[pb.GenerateResponse]:
        match = None
        if state.text is None:
            yield from self._deltas(state, Piece(output.token_ids, [], output.logprobs), index)
        else:
            for start in range(0, len(output.token_ids), self._options.delta_tokens):
                match = self._push(state, output, start)
                if match is not None:
                    self._end_index(index, state.taken)
                yield from self._deltas(state, state.text.take(), index)
                if match is not None:
                    break
            if output.finish is not None and match is None:
                yield from self._deltas(state, state.text.end(), index, closing=True)
        if match is not None:
            yield from self._finish(index, FinishReason.STOP, match=match)
        elif output.finish is not None:
            if output.finish is FinishReason.ERROR:
                self.error_id = output.error_id or self.error_id
                self.dead_end = output.dead_end or self.dead_end
                if not self._started:
                    self._close(state, FinishReason.ERROR)  # only a status will report it
                    return
            yield from self._finish(index, output.finish, stop_token_id=output.stop_token_id)

    def _push(self, state: IndexState, output: Output, start: int) -> StopMatch | None:
        """Feed a delta's tokens from `start` on; the one that ended the index makes no text."""
        assert state.text is not None
        ids, logprobs = output.token_ids, output.logprobs
        silent = len(ids) - 1 if output.stop_token_id is not None else -1
        for i in range(start, min(start + self._options.delta_tokens, len(ids))):
            state.taken += 1
            logprob = logprobs[i] if logprobs is not None else None
            if i == silent:
                state.text.push_silent(ids[i], logprob)
                return None
            match = state.text.push(ids[i], logprob)
            if match is not None:
                return match
        return None

    # ------------------------------------------------------------ ends

    def end(self, reason: FinishReason, *, flush: bool = True) -> Iterator[pb.GenerateResponse]:
        """End all open indices from this side: the engine or the server is going away.

        flush: send text that was held back; not where that text may be what made the call fail.
        """
        for index, state in enumerate(self._indices):
            if state.finish is not None:
                continue
            if not self._started:
                self._close(state, reason)
                continue
            if flush and state.text is not None:
                yield from self._deltas(state, state.text.end(), index, closing=True)
            yield from self._finish(index, reason)

    def abandon(self) -> None:
        """The client is gone: count open indices as cancelled."""
        for state in self._indices:
            if state.finish is None:
                self._close(state, FinishReason.CANCELLED)

    def _close(self, state: IndexState, reason: FinishReason) -> None:
        state.finish = reason
        self._ledger.finished[reason] += 1
        if reason in _WHOLE and state.tokens > 1:
            assert state.last_token_at is not None and state.first_token_at is not None
            seconds = state.last_token_at - state.first_token_at
            self._ledger.time_per_output_token.observe(seconds / (state.tokens - 1))

    def _finish(
        self,
        index: int,
        reason: FinishReason,
        *,
        match: StopMatch | None = None,
        stop_token_id: int | None = None,
    ) -> Iterator[pb.GenerateResponse]:
        state = self._indices[index]
        self._close(state, reason)
        response = pb.GenerateResponse(
            finished={
                "index": index,
                "reason": _reason(reason, state),
                "usage": {
                    "prompt_tokens": len(self._request.prompt_token_ids),
                    "completion_tokens": state.delivered,
                    "cached_tokens": state.cached_tokens,
                    "reasoning_tokens": state.reasoning_tokens,
                    "resumed_reasoning_tokens": self._resumed_thoughts(state),
                },
                "timings": self._timings(state),
                "preemptions": state.preemptions,
                "peak_blocks": state.peak_blocks,
            }
        )
        finished = response.finished
        if finished.reason != pb.FINISH_REASON_STOP:
            pass  # nothing is said to have matched
        elif match is not None:
            finished.stop_string = match.string
        elif stop_token_id is not None:
            string = self._options.stop_tokens.get(stop_token_id)
            if string is None:
                finished.stop_token_id = stop_token_id
            else:
                finished.stop_string = string
        yield response

    @staticmethod
    def _resumed_thoughts(state: IndexState) -> int:
        return state.text.resumed_thoughts if isinstance(state.text, AnswerStream) else 0

    def _timings(self, state: IndexState) -> pb.Timings:
        started, first, last = state.started_at, state.first_token_at, state.last_token_at
        if started is None:
            return pb.Timings()
        timings = pb.Timings(queued_seconds=max(started - self._accepted_at, 0.0))
        if first is not None and last is not None:
            timings.prefill_seconds = max(first - started, 0.0)
            timings.decode_seconds = max(last - first, 0.0)
        return timings

    # ------------------------------------------------------------ messages

    def _deltas(
        self,
        state: IndexState,
        piece: Piece | AnswerPiece | None,
        index: int,
        *,
        closing: bool = False,
    ) -> Iterable[pb.GenerateResponse]:
        """None, or an empty piece, makes no delta. closing: the piece was held back until now and
        is sent because the index ends."""
        if piece is None or (isinstance(piece, Piece) and not (piece.ids or piece.texts)):
            return ()
        parts = piece.parts(self._options.delta_tokens)
        return (self._delta(state, part, index, closing=closing) for part in parts)

    def _delta(
        self, state: IndexState, piece: Piece | AnswerPiece, index: int, *, closing: bool
    ) -> pb.GenerateResponse:
        told = {"index": index, "text": piece.text, "token_ids": piece.ids, "closing": closing}
        response = pb.GenerateResponse(delta=told)
        if isinstance(piece, AnswerPiece):
            delta = response.delta
            delta.reasoning = piece.reasoning
            for number, call_id, name, arguments in piece.calls:
                delta.tool_calls.add(index=number, id=call_id, name=name, arguments_json=arguments)
            state.reasoning_tokens += piece.reasoning_tokens
        for logprob in piece.logprobs or ():
            response.delta.logprobs.append(self._logprob(logprob))
        state.delivered += len(piece.ids)  # only now: what cannot be told has not been delivered
        self._ledger.delivered += len(piece.ids)
        return response

    def _logprob(self, one: TokenLogprob) -> pb.TokenLogprob:
        return pb.TokenLogprob(
            token_id=one.token_id,
            bytes=self._bytes(one.token_id),
            logprob=one.logprob,
            rank=one.rank,
            top=[
                pb.TopLogprob(token_id=i, bytes=self._bytes(i), logprob=value)
                for i, value in one.top
            ],
        )

    def _bytes(self, token_id: int) -> bytes:
        return b"" if self._options.ids_only else self._tokenizer.pieces[token_id]

    def record(self) -> CallRecord:
        """The call's record for the log, once it has ended."""
        record = CallRecord()
        for state in self._indices:
            record.reasons.append(state.finish.value if state.finish else "open")
            record.delivered += state.delivered
            record.preemptions += state.preemptions
        first = self._indices[0]
        record.cached_tokens = first.cached_tokens
        if first.started_at is not None:
            record.queued = max(first.started_at - self._accepted_at, 0.0)
        if first.first_token_at is not None:
            record.first_token = max(first.first_token_at - self._accepted_at, 0.0)
        return record
