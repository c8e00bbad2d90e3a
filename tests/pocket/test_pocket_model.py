"""The shipped directory: complete, unaltered, and refused by name when it is not."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from support import programs
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError
from quire.service.models import pocket
from quire.service.models.resolve import resolve


@pytest.fixture
def copy(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "pocket"))


def test_what_ships_passes(shipped: Path) -> None:
    pocket.verify(shipped)
    named = set(json.loads((shipped / "manifest.json").read_text()))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= named


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"file tokenizer\.json is missing"):
        pocket.verify(copy)


def test_an_altered_file_is_named(copy: Path) -> None:
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"file model\.safetensors is altered"):
        pocket.verify(copy)


def test_a_missing_or_broken_manifest_is_named(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        pocket.verify(copy)
    (copy / "manifest.json").write_text('{"../config.json": "00"}')
    with pytest.raises(ValueError, match="not a plain file"):
        pocket.verify(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        pocket.verify(copy)


def test_the_model_is_small(shipped: Path) -> None:
    assert 2e6 <= (shipped / "model.safetensors").stat().st_size <= 8.5e6


def test_a_server_refuses_an_incomplete_or_altered_directory_by_name(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve(EngineConfig(model=str(copy))).engine_model == str(copy)
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with pytest.raises(ModelError, match=r"file config\.json is altered"):
        resolve(EngineConfig(model=str(copy)))
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"file config\.json is missing"):
        resolve(EngineConfig(model=str(copy)))
    monkeypatch.setattr(pocket, "directory", lambda: copy)
    with pytest.raises(ModelError, match=r"file config\.json is missing"):
        resolve(EngineConfig(model="pocket"))


def test_the_command_names_the_file_in_one_line(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    command = [sys.executable, "-m", "quire.clients.cli", "serve", "--model", str(copy)]
    done = programs.run([*command, "--port", "0", "--http-port", "0"], timeout=PATIENCE)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "tokenizer.json is missing" in line


def test_the_evaluation_and_the_card_are_about_what_ships(shipped: Path) -> None:
    import publish

    assert (shipped / "README.md").read_text() == publish.card(shipped)


def test_a_card_about_other_weights_is_refused(copy: Path) -> None:
    import publish

    report = json.loads((copy / "evaluation.json").read_text())
    (copy / "evaluation.json").write_text(json.dumps({**report, "sha256": "0" * 64}))
    with pytest.raises(SystemExit, match="about other weights"):
        publish.card(copy)


def test_publishing_takes_only_a_whole_directory(copy: Path, tmp_path: Path) -> None:
    import publish

    target = tmp_path / "target"
    target.mkdir()
    publish.install(copy, target)
    pocket.verify(target)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        publish.install(copy, target)
