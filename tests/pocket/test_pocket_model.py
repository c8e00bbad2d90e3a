"""The shipped directory: complete, unaltered, and refused by name when it is not."""

import json
import shutil
from pathlib import Path

import pytest

from quire.service import pocket_model


@pytest.fixture
def copy(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "pocket"))


def test_what_ships_passes(shipped: Path) -> None:
    pocket_model.verify(shipped)
    named = set(json.loads((shipped / "manifest.json").read_text()))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= named


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"file tokenizer\.json is missing"):
        pocket_model.verify(copy)


def test_an_altered_file_is_named(copy: Path) -> None:
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"file model\.safetensors is altered"):
        pocket_model.verify(copy)


def test_a_missing_or_broken_manifest_is_named(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        pocket_model.verify(copy)
    (copy / "manifest.json").write_text('{"../config.json": "00"}')
    with pytest.raises(ValueError, match="not a plain file"):
        pocket_model.verify(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        pocket_model.verify(copy)


def test_the_model_is_small(shipped: Path) -> None:
    assert 2e6 <= (shipped / "model.safetensors").stat().st_size <= 8.5e6
