"""From a checkpoint into a model's parameters, one piece of one tensor at a time.

Invariant: when `load_checkpoint`, or the wait that `loading` gives, returns, every parameter holds
what the checkpoint says, cast to the model's dtype, every number is finite, and every tensor of the
checkpoint has been used. Host memory: a few buffers of fixed size. On a GPU several threads read
into pinned buffers; a buffer belongs to its copy until the copy's event, and is not written before.
"""

import itertools
import math
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quire.engine.errors import ModelError
from quire.engine.model.base import CausalModel
from quire.engine.model.layers.placement import Placement
from quire.engine.model.layers.quantized import SCALE
from quire.engine.weights.checkpoint import Checkpoint
from quire.engine.weights.formats import check_format, check_scales
from quire.engine.weights.progress import Progress, no_progress
from quire.engine.weights.safetensors_file import StoredTensor
from quire.kernels.row_scaled import RowScaled

CHUNK_BYTES = 8 << 20
GPU_THREADS = 8
LOADING_BYTES = GPU_THREADS * 8 * CHUNK_BYTES  # of a GPU, at most, where they convert to FP8
_BUFFERS = 2  # of a thread: one is read into while the other is copied
_HEAD = "lm_head.weight"
_CACHE_SCALES = (".k_scale", ".v_scale", ".kv_scale")  # as others' exports call them


@dataclass(frozen=True, slots=True)
class _Job:
    """Rows [first, last) of a stored tensor."""

    placement: Placement
    stored: StoredTensor
    first: int
    last: int

    @property
    def row_bytes(self) -> int:
        """Bytes that are taken of a row."""
        return self.placement.row_numbers * self.stored.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return (self.last - self.first) * self.row_bytes

    def pieces(self) -> Iterator[tuple[int, int]]:
        """(offset in the tensor, bytes) of what is taken, one behind the other: this rank's columns
        of each row, or all rows at once."""
        stored, placement = self.stored, self.placement
        if placement.takes_whole_rows:
            yield self.first * stored.row_bytes, self.nbytes
            return
        skipped = placement.cols.start * stored.dtype.itemsize
        for row in range(self.first, self.last):
            yield row * stored.row_bytes + skipped, self.row_bytes

    @property
    def filled(self) -> Tensor:
        """The part of the parameter that these rows fill; of int8 rows the scales, which are
        finite only if the rows were."""
        begin = self.first - self.placement.rows.start
        part = self.placement.target[begin : begin + self.last - self.first]
        return part.scale if isinstance(part, RowScaled) else part

    def sum(self) -> Tensor:
        """A float32 that is finite if all that was filled is, the sum of wider numbers: [] on its
        device."""
        filled = self.filled
        if filled.itemsize > 1:
            return filled.sum(dtype=torch.float32)
        bad = ((filled.view(torch.uint8) & 0x7F) == 0x7F).any()  # e4m3 has no infinity
        return torch.where(bad, torch.nan, 0.0)

    def check_sum(self, total: float) -> None:
        """Refuse numbers that are not finite. total: the float32 sum of what was filled, which
        is finite only if all are; if it is not, they are looked at one by one."""
        if math.isfinite(total):
            return
        bad = int((~torch.isfinite(self.filled.float())).sum())
        if bad:
            kind = str(self.filled.dtype).removeprefix("torch.")
            scaled = isinstance(self.placement.target, RowScaled)
            raise ModelError(
                f"{self.stored.path}: {self.stored.name}: {bad} {'rows' if scaled else 'numbers'} "
                f"in rows {self.first} to {self.last - 1} are not finite (NaN, infinite, or too "
                f"large for {kind})"
            )


def load_checkpoint(model: CausalModel, directory: Path, progress: Progress = no_progress) -> None:
    """Fill the parameters from safetensors.

    Raises ModelError: a file or weight that is missing, unexpected, misshapen or corrupt, or a
    number that is not finite.
    """
    with loading(model, directory) as wait:
        wait(progress)


@contextmanager
def loading(model: CausalModel, directory: Path) -> Iterator[Callable[[Progress], None]]:
    """Within, threads fill the parameters as `load_checkpoint` does; what it gives waits until they
    are full. Who leaves earlier ends the threads.

    The caller may use the parameters meanwhile, and must have written them before: on a GPU the
    threads copy on streams of their own.
    """
    with Checkpoint.open(directory) as checkpoint:
        jobs = _jobs(directory, checkpoint, model)
        with _working(jobs, checkpoint, model.device) as until_done:

            def wait(progress: Progress) -> None:
                until_done(progress)
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()  # what casts have taken is the cache's to have
                model.weights_digest = checkpoint.digest()

            yield wait


def check_checkpoint(model: CausalModel, directory: Path) -> None:
    """Whether a checkpoint holds the model's weights, by its files' headers and its scales alone.

    model: may stand on the meta device, so that it is known before any memory is taken. Raises
    ModelError, as `load_checkpoint` would for a file or weight that is missing, unexpected,
    misshapen or of another format than the configuration's, and for a scale that is no scale.
    """
    with Checkpoint.open(directory) as checkpoint:
        _agreed(directory, checkpoint, model)


def _jobs(directory: Path, checkpoint: Checkpoint, model: CausalModel) -> list[_Job]:
    """The pieces to read, in the files' order, once names and shapes are known to agree."""
    stored = _agreed(directory, checkpoint, model)
    placements = model.placements()
    if model.config.tie_word_embeddings and _HEAD in checkpoint.tensors:
        mine = next(one.rows for one in placements if one.name == model.embedding_weight)
        tensors = checkpoint.tensors
        _check_tied(checkpoint, tensors[_HEAD], tensors[model.embedding_weight], mine)
    jobs = [
        _Job(placement, stored[placement.name], first, last)
        for placement in placements
        for first, last in placement.chunks(CHUNK_BYTES // stored[placement.name].dtype.itemsize)
    ]
    return sorted(jobs, key=lambda job: (job.stored.path, job.stored.offset, job.first))


def _agreed(directory: Path, checkpoint: Checkpoint, model: CausalModel) -> dict[str, StoredTensor]:
    """The model's weights as they are stored; their names and shapes are the model's."""
    placements = {placement.name: placement for placement in model.placements()}
    stored = dict(checkpoint.tensors)
    if model.config.tie_word_embeddings and _HEAD in stored:
        _check_tied_form(checkpoint, stored.pop(_HEAD), model.embedding_weight)
    _check_names(directory, placements.keys() - stored.keys(), "is missing")
    unknown = stored.keys() - placements.keys()
    unknown = {name for name in unknown if not model.is_buffer(name)}
    if unknown:
        fault = "is not a weight of the model"
        if min(unknown).endswith(_CACHE_SCALES):
            fault = "is a scale of a cache of 8 bits: kv_cache_dtype = fp8 has none but 1"
        _check_names(stored[min(unknown)].path, unknown, fault)
    for name, placement in placements.items():
        if stored[name].shape != placement.shape:
            raise ModelError(
                f"{stored[name].path}: {name} has the shape {list(stored[name].shape)}, "
                f"the configuration asks for {list(placement.shape)}"
            )
        check_format(placement, stored[name])
        if name.endswith(SCALE):
            check_scales(checkpoint, stored[name])
    return stored


def _check_names(where: Path, names: set[str], fault: str) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise ModelError(f"{where}: {min(names)} {fault}{more}")


def _check_tied_form(checkpoint: Checkpoint, head: StoredTensor, name: str) -> None:
    """A tied head that is stored a second time has the embedding's shape and dtype."""
    embedding = checkpoint.tensors.get(name)
    if embedding is None:
        return  # reported as missing
    if (embedding.shape, embedding.dtype) != (head.shape, head.dtype):
        raise ModelError(_differs(head, name))


def _differs(head: StoredTensor, embedding: str) -> str:
    return f"{head.path}: {_HEAD} differs from {embedding}, yet tie_word_embeddings is true"


def _check_tied(
    checkpoint: Checkpoint, head: StoredTensor, embedding: StoredTensor, rows: slice
) -> None:
    """A tied head may be stored a second time only if it is the same. rows: this rank's."""
    begin, end = rows.start * head.row_bytes, rows.stop * head.row_bytes
    one, other = (memoryview(bytearray(min(CHUNK_BYTES, end - begin))) for _ in range(2))
    for start in range(begin, end, CHUNK_BYTES):
        count = min(CHUNK_BYTES, end - start)
        checkpoint.read(embedding, start, one[:count])
        checkpoint.read(head, start, other[:count])
        if one[:count] != other[:count]:
            raise ModelError(_differs(head, embedding.name))


# ---------------------------------------------------------------- the work


@contextmanager
def _working(
    jobs: list[_Job], checkpoint: Checkpoint, device: torch.device
) -> Iterator[Callable[[Progress], None]]:
    """Within, a few threads do all jobs; what it gives waits for them, and raises the first error
    of any, which ends all."""
    total, size = sum(job.nbytes for job in jobs), max((job.nbytes for job in jobs), default=0)
    count = min(GPU_THREADS if device.type == "cuda" else 1, len(jobs))
    reports: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    shared = _Shared(iter(jobs))
    threads = [
        threading.Thread(
            target=_work, args=(shared, checkpoint, device, size, reports), name=f"weights-{index}"
        )
        for index in range(count)
    ]

    def until_done(progress: Progress) -> None:
        done = 0
        while done < total:
            done += _bytes(reports.get())
            progress(done, total)
        for thread in threads:
            thread.join()
        while not reports.empty():  # a copy may fail after the last report
            _bytes(reports.get())

    try:
        for thread in threads:
            thread.start()
        yield until_done
    finally:
        shared.stop()
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()


def _bytes(report: int | BaseException) -> int:
    """Of a thread's report; raises its error."""
    if isinstance(report, BaseException):
        raise report
    return report


class _Shared:
    """Jobs that are still to be taken, by any thread."""

    def __init__(self, jobs: Iterator[_Job]) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()

    def take(self) -> _Job | None:
        with self._lock:
            return next(self._jobs, None)

    def stop(self) -> None:
        with self._lock:
            self._jobs = iter(())


def _work(
    shared: _Shared,
    checkpoint: Checkpoint,
    device: torch.device,
    buffer_bytes: int,
    reports: "queue.SimpleQueue[int | BaseException]",
) -> None:
    """A thread's life: take jobs until none is left; report bytes, or the error."""
    try:
        lane = _GpuLane(buffer_bytes, device) if device.type == "cuda" else _CpuLane(buffer_bytes)
        while (job := shared.take()) is not None:
            lane.move(job, checkpoint)
            reports.put(job.nbytes)
        lane.finish()
    except BaseException as error:
        reports.put(error)


class _CpuLane:
    """Reads into one buffer and casts from it."""

    def __init__(self, nbytes: int) -> None:
        self._buffer = _Buffer(nbytes, pinned=False)

    def move(self, job: _Job, checkpoint: Checkpoint) -> None:
        job.placement.put_taken(job.first, self._buffer.read(job, checkpoint))
        job.check_sum(float(job.sum()))

    def finish(self) -> None:
        """Nothing is in flight."""


class _GpuLane:
    """Reads into pinned buffers in turn; copies and casts on a stream of its own, as all work of
    its thread does: to enter and leave a stream for each piece takes torch longer than a copy."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        torch.cuda.set_stream(self._stream)  # this thread's from here on
        buffers = [(_Buffer(nbytes, pinned=True), torch.cuda.Event()) for _ in range(_BUFFERS)]
        self._turns = itertools.cycle(buffers)
        self._sums: list[tuple[_Job, Tensor]] = []  # on the device until all is there

    def move(self, job: _Job, checkpoint: Checkpoint) -> None:
        buffer, copied = next(self._turns)
        copied.synchronize()
        staged = buffer.read(job, checkpoint)
        placement = job.placement
        if staged.dtype != placement.target.dtype:
            staged = staged.to(self._device, non_blocking=True)
        placement.put_taken(job.first, staged)
        copied.record(self._stream)
        self._sums.append((job, job.sum()))

    def finish(self) -> None:
        self._stream.synchronize()
        if not self._sums:
            return
        totals = torch.stack([total for _, total in self._sums]).tolist()
        for (job, _), total in zip(self._sums, totals, strict=True):
            job.check_sum(total)


class _Buffer:
    """Host memory for one job's bytes."""

    def __init__(self, nbytes: int, *, pinned: bool) -> None:
        self._bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self._view = memoryview(self._bytes.numpy().data)

    def read(self, job: _Job, checkpoint: Checkpoint) -> Tensor:
        """What is taken of the job's rows: [m, k] or [m], in the stored dtype."""
        done = 0
        for start, nbytes in job.pieces():
            checkpoint.read(job.stored, start, self._view[done : done + nbytes])
            done += nbytes
        rows, placement = job.last - job.first, job.placement
        shape = (rows,) if placement.is_vector else (rows, placement.row_numbers)
        return self._bytes[: job.nbytes].view(job.stored.dtype).view(shape)
