"""A pointer or an error page where a model's file should be is named before anything is read."""

from pathlib import Path

import pytest

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError
from quire.service.models.resolve import resolve

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "a.safetensors"]
)
@pytest.mark.parametrize(
    ("content", "words"), [(LFS, "Git LFS pointer"), (b"<!doctype html>", "HTML page")]
)
def test_what_stands_instead_of_a_file_is_named(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(EngineConfig(model=str(tmp_path))).tokenizer_directory == tmp_path
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"/{name}: .*{words}"):
        resolve(EngineConfig(model=str(tmp_path)))
    resolve(EngineConfig(model=str(tmp_path)), weights=False)


def test_a_link_to_what_was_not_fetched_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(".git/annex/objects/00/SHA256E-s9--00")
    with pytest.raises(ModelError, match=r"tokenizer\.json: a git-annex link"):
        resolve(EngineConfig(model=str(tmp_path)))
