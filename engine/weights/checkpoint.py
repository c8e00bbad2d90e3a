"""A directory's safetensors files as one set of named tensors, and a digest of their content.

Invariant: every name is stored once, in the file that the index names, if there is an index. Weight
files that would not be read are refused, and so is a weight that is stored twice: it is unknown
which one is meant.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from quire.engine.errors import ConfigError, ModelError
from quire.engine.json_file import JsonFile
from quire.engine.weights.safetensors_file import StoredTensor, read_header, read_into

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PROBES = 8  # windows of a tensor that the digest reads
_PROBE_BYTES = 2048
_BARE = {"embed_tokens.weight": "model.", "wte.weight": "transformer."}  # and what is left out
_HEAD = "lm_head."


class Checkpoint:
    """Open files of a checkpoint. Use as a context manager."""

    def __init__(self, tensors: dict[str, StoredTensor]) -> None:
        self.tensors = tensors
        self._files: dict[Path, int] = {}
        self._stack = ExitStack()

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Find and check the files. Raises ModelError."""
        index, single = directory / INDEX, directory / SINGLE
        if os.path.lexists(index):
            tensors = _indexed(directory)
            _refuse_others(directory, INDEX, {tensor.path for tensor in tensors.values()})
            return cls(_prefixed(tensors))
        if os.path.lexists(single):
            _refuse_others(directory, SINGLE, {single})
            return cls(_prefixed(read_header(single)))
        raise ModelError(f"{directory}: neither {SINGLE} nor {INDEX} is there{_instead(directory)}")

    def __enter__(self) -> Self:
        for path in {tensor.path for tensor in self.tensors.values()}:
            try:
                self._files[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                self._stack.close()
                raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
            self._stack.callback(os.close, self._files[path])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, tensor: StoredTensor, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on; threads may read at once."""
        read_into(self._files[tensor.path], tensor, start, buffer)

    def digest(self) -> str:
        """Names the content: 32 hex digits over names, dtypes, shapes and evenly spread bytes of
        every tensor (all bytes of small ones), however it is cut into files."""
        digest = xxhash.xxh3_128()
        window = memoryview(bytearray(_PROBES * _PROBE_BYTES))
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(repr((name, str(tensor.dtype), tensor.shape)).encode())
            for start, length in _probes(tensor.nbytes):
                self.read(tensor, start, window[:length])
                digest.update(window[:length])
        return digest.hexdigest()


def _prefixed(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under a whole model's names. A decoder that was saved alone, as those that make
    embeddings and the Hub's GPT-2 are, leaves out their first part. Raises ModelError."""
    prefix = next((prefix for name, prefix in _BARE.items() if name in tensors), None)
    if prefix is None:
        return tensors
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        whole = name if name.startswith((prefix, _HEAD)) else f"{prefix}{name}"
        found[_new(found, whole, tensor)] = tensor
    return found


def _new(tensors: dict[str, StoredTensor], name: str, tensor: StoredTensor) -> str:
    """The name, if no other tensor has it. Raises ModelError."""
    other = tensors.get(name)
    if other is not None:
        raise ModelError(
            f"{tensor.path}: {tensor.name}: two sources of one weight: it is also {other.name} of "
            f"{other.path.name}; leave out the one that is not meant"
        )
    return name


def _probes(nbytes: int) -> list[tuple[int, int]]:
    if nbytes <= _PROBES * _PROBE_BYTES:
        return [(0, nbytes)]
    last = nbytes - _PROBE_BYTES
    return [(last * probe // (_PROBES - 1), _PROBE_BYTES) for probe in range(_PROBES)]


def _refuse_others(directory: Path, source: str, used: set[Path]) -> None:
    """Refuse files named like weights that `source` leaves out."""
    others = sorted(set(directory.glob("model*.safetensors")) - used)
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise ModelError(
            f"{directory}: two sources of weights: {source}, and {others[0].name}{more}, which it "
            "does not name; remove the one that is not meant"
        )


def _instead(directory: Path) -> str:
    """The weights that a directory without safetensors has, for the error message."""
    found = sorted(
        path.name
        for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
        for path in directory.glob(pattern)
    )
    return f"; {found[0]} is, which is not read" if found else ""


def _indexed(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of all files that the index names."""
    index = directory / INDEX
    try:
        section = JsonFile.read(index).section("weight_map")
    except ConfigError as error:
        raise ModelError(str(error)) from None
    places = {} if section is None else section.data
    if not places:
        raise ModelError(f"{index}: weight_map is missing or empty")
    for name, file in places.items():
        if (
            not isinstance(file, str)
            or not file.isprintable()
            or Path(file).name != file
            or not file
        ):
            raise ModelError(f"{index}: {name}: {file!r} is not the name of a file")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        for name, tensor in read_header(directory / file).items():
            if places.get(name, file) == file:
                tensors[_new(tensors, name, tensor)] = tensor
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise ModelError(f"{directory / places[missing[0]]}: {missing[0]} is missing")
    return tensors
