"""A step's plan, and its masks, as bytes: fixed layouts of numbers, little-endian, and no more.

    head:       magic, step id, decode rows, tokens, and how many of each kind follow
    rows:       key, index, epoch, slot, start, tokens, whether it samples, given ids; the ids
    admissions: key, index, slot, last token, computed tokens; sampling; five lists of ids, a bias
    updates, copies and masked slots: int32 each
    pooled:     slot and how many ids; the ids
    prompt_logprobs: slot, how many tokens, the one that follows, how many of the best
    updates and copies once more, of layers with a window: int32 each

Masks: magic, and how many follow; of each slot, length, bytes.

Invariant: `decode(encode(plan)) == plan`, and so of masks. Whatever bytes it is given, a decoder
reads within them, makes nothing but numbers and bytes, and raises RankError for anything else.
"""

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from quire.engine.errors import RankError
from quire.engine.scheduling.plan import (
    Admission,
    BlockUpdate,
    Mask,
    Masks,
    PlanRow,
    Pooled,
    PromptLogprobsRow,
    SamplingNumbers,
    StepPlan,
)

MAX_BYTES = 1 << 30  # of one plan, or of its masks
_MAGIC, _MASKS_MAGIC = b"QSP4", b"QSM1"
_HEAD = struct.Struct("<4sq11i")
_ROW = struct.Struct("<qiqiii?i")
_ADMISSION = struct.Struct("<qi3i")
_SAMPLING = struct.Struct("<2di4dqii")  # temperature .. min_position, logprobs (-1: none)
_COUNTS = struct.Struct("<6i")
_UPDATE = struct.Struct("<3i")
_COPY = struct.Struct("<2i")
_POOLED = struct.Struct("<2i")
_PROMPT_LOGPROBS = struct.Struct("<4i")
_MASKS = struct.Struct("<4si")
_MASK = struct.Struct("<2i")

T = TypeVar("T")


def encode(plan: StepPlan) -> bytes:
    """Raises RankError for a plan of more than MAX_BYTES, or with a number beyond its field."""
    more = plan.pooled, plan.prompt_logprobs, plan.window_updates, plan.window_copies
    counts = (plan.rows, plan.admitted, plan.block_updates, plan.copies, plan.masked, *more)
    sizes = (plan.num_decode_rows, plan.num_tokens, *map(len, counts))
    try:
        parts = [_HEAD.pack(_MAGIC, plan.step_id, *sizes)]
        for row in plan.rows:
            parts += [_ROW.pack(*row[:7], len(row.packed) // 4), row.packed]
        for one in plan.admitted:
            parts += _admission(one)
        parts += [_UPDATE.pack(*update) for update in plan.block_updates]
        parts += [_COPY.pack(*copy) for copy in plan.copies]
        parts.append(_ids(plan.masked))
        for slot, ids in plan.pooled:
            parts += [_POOLED.pack(slot, len(ids)), _ids(ids)]
        parts += [_PROMPT_LOGPROBS.pack(*one) for one in plan.prompt_logprobs]
        parts += [_UPDATE.pack(*update) for update in plan.window_updates]
        parts += [_COPY.pack(*copy) for copy in plan.window_copies]
    except (struct.error, OverflowError) as error:
        raise RankError(f"step {plan.step_id} cannot be told to the ranks: {error}") from error
    return _bounded(b"".join(parts), f"step {plan.step_id}")


def encode_masks(masks: Masks) -> bytes:
    """Raises RankError for more than MAX_BYTES."""
    parts: list[Mask] = [_MASKS.pack(_MASKS_MAGIC, len(masks))]
    for slot, mask in masks:
        parts += [_MASK.pack(slot, len(mask)), mask]
    return _bounded(b"".join(parts), "a step's masks")


def _bounded(data: bytes, what: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise RankError(f"{what} would take {len(data)} bytes: at most {MAX_BYTES}")
    return data


def _ids(ids: Iterable[int]) -> bytes:
    return np.fromiter(ids, np.int64).astype("<i4").tobytes()


def _admission(one: Admission) -> list[bytes]:
    sampling = one.sampling
    lists: tuple[Sequence[int], ...] = (
        sampling.ending_ids,
        sampling.allowed_ids,
        sampling.banned_ids,
        one.prompt_token_ids,
        one.output_token_ids,
    )
    logprobs = -1 if sampling.logprobs is None else sampling.logprobs
    biased = [i for i, _ in sampling.logit_bias]
    return [
        _ADMISSION.pack(*one[:5]),
        _SAMPLING.pack(*sampling[:9], logprobs),
        _COUNTS.pack(len(biased), *map(len, lists)),
        _ids(biased),
        np.array([value for _, value in sampling.logit_bias], "<f8").tobytes(),
        *map(_ids, lists),
    ]


def decode(data: bytes) -> StepPlan:
    """Raises RankError for bytes that are no plan."""
    return _whole(data, _read, "plan")


def decode_masks(data: bytes) -> Masks:
    """Raises RankError for bytes that are no masks."""
    return _whole(data, _read_masks, "masks")


def _whole(data: bytes, read: "Callable[[_Reader], T]", what: str) -> T:
    reader = _Reader(data)
    try:
        value = read(reader)
    except (struct.error, ValueError) as error:
        raise RankError(f"{len(data)} bytes that are no {what}: {error}") from error
    if reader.at != len(data):
        raise RankError(f"{len(data)} bytes that are no {what}: the end is at {reader.at}")
    return value


def _read_masks(reader: "_Reader") -> Masks:
    magic, count = reader.take(_MASKS)
    if magic != _MASKS_MAGIC:
        raise ValueError("another beginning")
    return tuple(_read_mask(reader) for _ in reader.times(count))


def _read(reader: "_Reader") -> StepPlan:
    magic, step_id, num_decode_rows, num_tokens, *counts = reader.take(_HEAD)
    if magic != _MAGIC:
        raise ValueError("another beginning")
    rows, admitted, updates, copies = map(reader.times, counts[:4])
    return StepPlan(
        step_id,
        tuple(_read_row(reader) for _ in rows),
        tuple(_read_admission(reader) for _ in admitted),
        tuple(BlockUpdate(*reader.take(_UPDATE)) for _ in updates),
        tuple(_read_copy(reader) for _ in copies),
        num_decode_rows,
        num_tokens,
        reader.ids(counts[4]),
        tuple(_read_pooled(reader) for _ in reader.times(counts[5])),
        tuple(
            PromptLogprobsRow._make(reader.take(_PROMPT_LOGPROBS)) for _ in reader.times(counts[6])
        ),
        tuple(BlockUpdate(*reader.take(_UPDATE)) for _ in reader.times(counts[7])),
        tuple(_read_copy(reader) for _ in reader.times(counts[8])),
    )


def _read_row(reader: "_Reader") -> PlanRow:
    *numbers, count = reader.take(_ROW)
    return PlanRow._make((*numbers, reader.raw(4 * count)))


def _read_admission(reader: "_Reader") -> Admission:
    head = reader.take(_ADMISSION)
    *numbers, logprobs = reader.take(_SAMPLING)
    biased, *counts = reader.take(_COUNTS)
    bias = tuple(zip(reader.ids(biased), reader.array(biased, "<f8"), strict=True))
    ending, allowed, banned, prompt, outputs = map(reader.ids, counts)
    asked = None if logprobs < 0 else logprobs
    sampling = SamplingNumbers._make((*numbers, ending, asked, bias, allowed, banned))
    return Admission._make((*head, sampling, prompt, outputs))


def _read_copy(reader: "_Reader") -> tuple[int, int]:
    source, target = reader.take(_COPY)
    return source, target


def _read_pooled(reader: "_Reader") -> Pooled:
    slot, count = reader.take(_POOLED)
    return Pooled(slot, reader.ids(count))


def _read_mask(reader: "_Reader") -> tuple[int, bytes]:
    slot, length = reader.take(_MASK)
    return slot, reader.raw(length)


class _Reader:
    """Takes values from the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        """One record. Raises struct.error where the bytes end within it."""
        values = layout.unpack_from(self._data, self.at)
        self.at += layout.size
        return values

    def times(self, count: int) -> Iterable[None]:
        """Iterate over `count` records. Raises ValueError if the bytes cannot hold that many."""
        if not 0 <= count <= len(self._data) - self.at:
            raise ValueError(f"{count} records")
        return itertools.repeat(None, count)

    def raw(self, length: int) -> bytes:
        """The next bytes. Raises ValueError if there are fewer."""
        if not 0 <= length <= len(self._data) - self.at:
            raise ValueError(f"{length} bytes at {self.at}")
        self.at += length
        return self._data[self.at - length : self.at]

    def array(self, count: int, kind: str) -> tuple[float, ...]:
        """The next numbers of a numpy dtype."""
        raw = self.raw(count * np.dtype(kind).itemsize)
        return tuple(np.frombuffer(raw, kind).tolist())

    def ids(self, count: int) -> tuple[int, ...]:
        """The next int32 values."""
        return self.array(count, "<i4")  # type: ignore[return-value]
