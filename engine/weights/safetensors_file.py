"""The safetensors format, read without mapping: headers, and bytes at an offset.

Invariant: a StoredTensor lies wholly within its file as it was when the header was read, its size
follows from dtype and shape, and every byte of data belongs to exactly one tensor; a file that says
otherwise is refused.

Format: 8 bytes, the header's length (little-endian); the header, a JSON object of
name -> {dtype, shape, data_offsets}; then the data, which the offsets count from.
Source: https://huggingface.co/docs/safetensors
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire.engine.errors import ModelError
from quire.engine.json_file import once
from quire.engine.placeholder_file import HEAD_BYTES, missing, stand_in
from quire.engine.plain_file import open_plain

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
}
_OF_MASKS = {"BOOL": torch.bool, "U8": torch.uint8}  # of buffers beside the weights
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_SIZE = 1 << 63  # so are a dimension's and an offset's
_MAX_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are. offset: from the beginning of the file."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a file, by name. Raises ModelError for a file that is not sound."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise ModelError(f"{path}: corrupt: the file is empty")
            instead = stand_in(file.read(HEAD_BYTES))
            if instead is not None:
                raise ModelError(f"{path}: {instead}")
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ModelError(f"{path}: corrupt: header of {length} bytes in {size}")
            text = file.read(length).decode()
            header = json.loads(text, object_pairs_hook=once)
    except FileNotFoundError:
        raise ModelError(f"{path}: cannot be read: {missing(path)}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: corrupt: the header is not JSON") from error
    if not isinstance(header, dict) or not text.startswith("{"):
        raise ModelError(f"{path}: corrupt: the header is not an object")
    _check_metadata(path, header.pop("__metadata__", None))
    data = 8 + length
    tensors = {name: _entry(path, name, said, data, size) for name, said in header.items()}
    _check_cover(path, tensors, data, size)
    return tensors


def _check_metadata(path: Path, said: Any) -> None:
    """Texts by name, where there are any."""
    if said is not None and not (
        isinstance(said, dict) and all(isinstance(value, str) for value in said.values())
    ):
        raise ModelError(f"{path}: corrupt: the header's __metadata__")


def _check_cover(path: Path, tensors: dict[str, StoredTensor], data: int, size: int) -> None:
    """Each tensor begins where another ends, from the first byte of data to the last."""
    end, before = data, "the header"
    for tensor in sorted(tensors.values(), key=lambda one: (one.offset, one.nbytes)):
        if tensor.offset < end:
            raise ModelError(f"{path}: corrupt: {tensor.name} overlaps {before}")
        if tensor.offset > end:
            hole = tensor.offset - end
            raise ModelError(
                f"{path}: corrupt: {hole} bytes before {tensor.name} belong to no tensor"
            )
        end, before = tensor.offset + tensor.nbytes, tensor.name
    if end != size:
        raise ModelError(f"{path}: corrupt: the last {size - end} bytes belong to no tensor")


def _entry(path: Path, name: str, said: Any, data: int, size: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = said["dtype"], said["shape"], said["data_offsets"]
        sound = type(dtype) is str and type(shape) is list
        sound = sound and len(shape) <= _MAX_DIMENSIONS
        sound = sound and all(type(n) is int and 0 <= n < _MAX_SIZE for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ModelError(f"{path}: corrupt: the header's entry of {name}")
    known = (_DTYPES | _OF_MASKS).get(dtype)
    if known is None:
        raise ModelError(f"{path}: {name}: {_unsupported(dtype)}")
    tensor = StoredTensor(name, path, known, tuple(shape), data + begin)
    if end - begin != tensor.nbytes or data + end > size:
        raise ModelError(
            f"{path}: corrupt: {name} of {tensor.nbytes} bytes at {begin} to {end}, "
            f"in {size - data} bytes of data"
        )
    return tensor


def check_dtype(tensor: StoredTensor) -> None:
    """Refuse a weight in a type that only masks have. Raises ModelError."""
    for dtype, of_masks in _OF_MASKS.items():
        if tensor.dtype == of_masks:
            raise ModelError(f"{tensor.path}: {tensor.name}: {_unsupported(dtype)}")


def _unsupported(dtype: str) -> str:
    return f"dtype {dtype} is not supported ({', '.join(_DTYPES)})"


def read_into(file: int, tensor: StoredTensor, start: int, buffer: memoryview) -> None:
    """Fill `buffer` with the tensor's bytes from `start` on. file: a descriptor of its file.

    Raises ModelError if the file has become shorter or cannot be read.
    """
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(file, [buffer[done:]], tensor.offset + start + done)
        except OSError as error:
            raise ModelError(f"{tensor.path}: cannot be read: {error.strerror}") from error
        if count == 0:
            raise ModelError(f"{tensor.path}: ends within {tensor.name}")
        done += count
