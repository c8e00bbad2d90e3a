"""Commands, batches and other messages between the two processes, as frames of bytes.

A frame is its length (four bytes, little-endian) and one marshalled message: a tuple that begins
with its kind and contains only tuples, lists, numbers, strings and bytes.

Invariant: marshal is safe here, and only here: both ends are the same program in the same
interpreter, and the socket between them is private, created by one and inherited by the other, so
nobody else can write to it. Unpacking gives back what was packed.
"""

import dataclasses
import marshal
import struct
from operator import attrgetter
from typing import Any

from quire.engine.errors import CapacityError, ConfigError, ModelError, QuireError
from quire.engine.loop.commands import (
    Abort,
    AskBlockMap,
    Command,
    Finish,
    FlushCache,
    SetVocabulary,
    Stop,
    Submit,
    UnwatchBlocks,
    WatchBlocks,
)
from quire.engine.loop.loop import Batch
from quire.engine.loop.stats import EngineInfo, EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.engine.model.config import GenerationDefaults
from quire.engine.request import (
    Constraint,
    FinishReason,
    GenerationRequest,
    Output,
    Pooling,
    SamplingParams,
    TokenLogprob,
    Vocabulary,
)
from quire.engine.scheduling.kv_events import KvEvent, KvEvents

# Kinds of message. Inward: BUILD (config), COMMANDS (commands). Outward: PROGRESS (stage, share),
# READY (info), REFUSED (error), BATCH (batch), DIED (error id).
BUILD, COMMANDS = "build", "commands"
PROGRESS, READY, REFUSED, BATCH, DIED = "progress", "ready", "refused", "batch", "died"

_HEAD = struct.Struct("<I")
_VERSION = 2  # of marshal: floats as bytes, and no table of shared objects, which costs time

Message = tuple[Any, ...]


def frame(message: Message) -> bytes:
    """One message as it goes over the socket."""
    body = marshal.dumps(message, _VERSION)
    return _HEAD.pack(len(body)) + body


class Frames:
    """Takes bytes as they come; gives whole messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()  # the beginning of a message

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that these bytes complete, in order."""
        if self._bytes:
            self._bytes += data
            data = self._bytes
        messages, at = [], 0
        with memoryview(data) as view:
            while len(view) - at >= _HEAD.size:
                (length,) = _HEAD.unpack_from(view, at)
                begin, end = at + _HEAD.size, at + _HEAD.size + length
                if end > len(view):
                    break
                messages.append(marshal.loads(view[begin:end]))
                at = end
        if data is self._bytes:
            del self._bytes[:at]
        elif at < len(data):  # whole messages are read where they are
            self._bytes += data[at:]
        return messages


# ---------------------------------------------------------------- inward

_sampling_values = attrgetter(*(f.name for f in dataclasses.fields(SamplingParams)))
_SMALL = (Finish, Abort, AskBlockMap, FlushCache, WatchBlocks, UnwatchBlocks, Stop)
_COMMANDS: dict[str, Any] = {kind.__name__: kind for kind in _SMALL}


def pack_command(command: Command) -> Message:
    """A Submit, or one of the small commands by its name."""
    match command:
        case Submit(request):
            return "Submit", _pack_request(request)
        case Finish(key, index, kept):
            return "Finish", key, index, kept
        case Abort(key):
            return "Abort", key
        case SetVocabulary(vocabulary):
            return "SetVocabulary", dataclasses.astuple(vocabulary)
    return (type(command).__name__,)


def unpack_command(packed: Message) -> Command:
    """The reverse of pack_command."""
    name, *values = packed
    if name == "Submit":
        return Submit(_unpack_request(values[0]))
    if name == "SetVocabulary":
        return SetVocabulary(Vocabulary(*values[0]))
    command: Command = _COMMANDS[name](*values)
    return command


def _pack_request(request: GenerationRequest) -> Message:
    return (
        request.key,
        request.prompt_token_ids,
        _sampling_values(request.sampling),
        request.n,
        request.priority,
        request.cache_salt,
        request.resume_token_ids,
        request.client,
        None if request.constraint is None else dataclasses.astuple(request.constraint),
        request.user,
        None if request.pooling is None else request.pooling.token_ids,
        request.prompt_logprobs,
    )


def _unpack_request(packed: Message) -> GenerationRequest:
    request = GenerationRequest(*packed)
    request.sampling = SamplingParams(*packed[2])
    if request.constraint is not None:
        request.constraint = Constraint(*request.constraint)  # type: ignore[misc]
    if request.pooling is not None:
        request.pooling = Pooling(request.pooling)  # type: ignore[arg-type]
    return request


# ---------------------------------------------------------------- outward

_INFO_FIELDS = tuple(f.name for f in dataclasses.fields(EngineInfo))
_REFUSALS = {kind.__name__: kind for kind in (ConfigError, ModelError, CapacityError)}


def pack_batch(batch: Batch) -> Message:
    """Called once a step: an output that says no more than its tokens is a short tuple."""
    outputs = [_pack_output(output) for output in batch.outputs]
    stats = None if batch.stats is None else tuple(batch.stats)
    times = None if batch.step_times is None else batch.step_times.values()
    blocks = [(*told[:3], [tuple(event) for event in told.events]) for told in batch.blocks]
    return BATCH, outputs, stats, times, batch.answers, blocks


def unpack_batch(packed: Message) -> Batch:
    """The reverse of pack_batch."""
    _, outputs, stats, times, answers, blocks = packed
    return Batch(
        [_unpack_output(output) for output in outputs],
        None if stats is None else EngineStats(*stats),
        None if times is None else StepTimes(times),
        answers,
        tuple(
            KvEvents(number, time, kind, tuple(KvEvent(*event) for event in events))
            for number, time, kind, events in blocks
        ),
    )


def _pack_output(output: Output) -> Message:
    says = (
        output.key,
        output.index,
        output.time,
        output.first_token_at,
        output.token_ids,
        output.preemptions,
        output.peak_blocks,
    )
    more = output.started or output.logprobs is not None or output.prompt_logprobs
    if output.finish is None and not more:
        return says
    return (
        *says,
        output.started,
        output.started_at,
        output.cached_tokens,
        _pack_logprobs(output.logprobs),
        None if output.finish is None else output.finish.value,
        output.stop_token_id,
        output.error_id,
        output.dead_end,
        output.pooled,
        output.prompt_logprobs,
    )


def _unpack_output(packed: Message) -> Output:
    output = Output(*packed)
    if output.logprobs is not None:
        output.logprobs = [TokenLogprob(*values) for values in output.logprobs]  # type: ignore[misc]
    if output.finish is not None:
        output.finish = FinishReason(output.finish)
    return output


def _pack_logprobs(logprobs: list[TokenLogprob] | None) -> list[Message] | None:
    if logprobs is None:
        return None
    return [(one.token_id, one.logprob, one.rank, one.top) for one in logprobs]


def pack_info(info: EngineInfo) -> Message:
    """All fields in order, the nested ones as tuples."""
    values = {name: getattr(info, name) for name in _INFO_FIELDS}
    values["generation"] = dataclasses.astuple(info.generation)
    return READY, tuple(values.values())


def unpack_info(packed: Message) -> EngineInfo:
    """The reverse of pack_info."""
    values = dict(zip(_INFO_FIELDS, packed[1], strict=True))
    values["generation"] = GenerationDefaults(*values["generation"])
    return EngineInfo(**values)


def pack_refusal(error: QuireError) -> Message:
    """Why an engine could not be built: the error's class by name, and its words."""
    return REFUSED, type(error).__name__, str(error)


def unpack_refusal(packed: Message) -> QuireError:
    """An error of the same class where it is one that building raises; the same words."""
    _, name, words = packed
    return _REFUSALS.get(name, QuireError)(words)
