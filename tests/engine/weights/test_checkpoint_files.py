"""Files of weights: what stands in for one, two sources, bytes that no or two tensors own, NaN."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_checkpoint import CONFIG, write

from quire.engine.errors import ModelError
from quire.engine.model.registry import build_model
from quire.engine.weights.checkpoint import INDEX, SINGLE, Checkpoint
from quire.engine.weights.loader import load_checkpoint
from quire.engine.weights.safetensors_file import read_header
from quire.kernels import reference

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1192135096\n"


def raw(path: Path, entries: dict[str, tuple[int, int]], nbytes: int) -> None:
    """A file of float32 vectors at these offsets."""
    header = {
        name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for name, (begin, end) in entries.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(nbytes))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "Git LFS pointer"),
        (b"/annex/objects/SHA256E-s9--00.safetensors\n", "git-annex pointer"),
        (b"<html>404</html>", "HTML page"),
        (b"PK\x03\x04data", "zip archive"),
        (b"", "empty"),
    ],
)
def test_what_stands_instead_of_weights_is_named(
    content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(ModelError, match=rf"/model\.safetensors: .*{words}"):
        Checkpoint.open(tmp_path)


def test_a_link_to_what_was_not_fetched_is_named(tmp_path: Path) -> None:
    (tmp_path / SINGLE).symlink_to(".git/annex/objects/00/SHA256E-s9--00")
    with pytest.raises(ModelError, match="git-annex link"):
        Checkpoint.open(tmp_path)


def _index_beside(directory: Path) -> None:
    (directory / "old-1.safetensors").write_bytes((directory / SINGLE).read_bytes())
    names = dict.fromkeys(read_header(directory / SINGLE), "old-1.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": names}))


def _shard_beside(directory: Path) -> None:
    save_file({"x": torch.zeros(2)}, directory / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("add", [_index_beside, _shard_beside])
def test_two_sources_of_weights_are_refused(add: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    Checkpoint.open(tmp_path)
    add(tmp_path)
    with pytest.raises(ModelError, match="two sources of weights"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("entries", "nbytes", "words"),
    [
        ({"a": (0, 8), "b": (4, 12)}, 12, "b overlaps a"),
        ({"a": (0, 8), "b": (0, 8)}, 8, "b overlaps a"),
        ({"a": (0, 8), "b": (12, 20)}, 20, "4 bytes before b belong to no tensor"),
        ({"a": (4, 8)}, 8, "4 bytes before a belong to no tensor"),
        ({"a": (0, 8)}, 16, "the last 8 bytes belong to no tensor"),
    ],
)
def test_every_byte_belongs_to_one_tensor(
    entries: dict[str, tuple[int, int]], nbytes: int, words: str, tmp_path: Path
) -> None:
    raw(tmp_path / SINGLE, entries, nbytes)
    with pytest.raises(ModelError, match=rf"model\.safetensors: corrupt: .*{words}"):
        read_header(tmp_path / SINGLE)


@pytest.mark.parametrize("shape", [[10**200] * 30, [1 << 63], [10**18] * 100, [1] * 1000])
def test_a_shape_that_no_tensor_has_is_refused_at_once(shape: list[int], tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match=r"safetensors: corrupt: the header's entry of a$"):
        read_header(tmp_path / SINGLE)


@pytest.mark.parametrize(
    "header",
    [
        "\ufeff{}".encode(),
        "{}".encode("utf-16"),
        b'{"\xff": 1}',
        b" {}",
        b'{"__metadata__": [1]}',
        b'{"__metadata__": {"format": 1}}',
    ],
)
def test_a_header_that_other_readers_would_not_take_is_refused(
    header: bytes, tmp_path: Path
) -> None:
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match=r"safetensors: corrupt: the header"):
        read_header(tmp_path / SINGLE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(value: float, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    write(tmp_path, lambda tensors: tensors[name][3, 5].fill_(value))
    model = build_model(CONFIG, reference, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ModelError, match=rf"{name}: 1 numbers .* not finite"):
        load_checkpoint(model, tmp_path)


def test_large_finite_numbers_whose_sum_is_not_are_taken(tmp_path: Path) -> None:
    write(tmp_path, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    model = build_model(CONFIG, reference, dtype=torch.float32, device=torch.device("cpu"))
    load_checkpoint(model, tmp_path)
