"""What a user names instead of a file is refused by its name, at once."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quire.clients.arguments import file_text
from quire.clients.connection import TLS
from quire.clients.errors import OptionError
from quire.engine.errors import ConfigError, ModelError
from quire.engine.json_file import JsonFile
from quire.engine.model.hf_embeddings import check_modules
from quire.engine.parallel.secret import read_secret
from quire.engine.weights.checkpoint import Checkpoint
from quire.service.models import pocket
from quire.service.security.reload import read_file
from quire.service.settings import read_settings
from quire.service.text import tokenizer, vocab_and_merges

READERS: list[tuple[str, Callable[[Path], Any]]] = [
    ("quire.toml", lambda path: read_settings({}, {}, path)),
    ("secret", lambda path: read_secret(str(path), {})),
    ("keys", lambda path: read_file("api_keys", path, 4096)),
    ("config.json", JsonFile.read),
    ("modules.json", lambda path: check_modules(path.parent)),
    ("model.safetensors", lambda path: Checkpoint.open(path.parent)),
    ("model.safetensors.index.json", lambda path: Checkpoint.open(path.parent)),
    ("tokenizer.json", lambda path: tokenizer.load(path.parent, 4096)),
    ("tokenizer_config.json", lambda path: tokenizer.load(path.parent, 4096)),
    ("special_tokens_map.json", lambda path: tokenizer.load(path.parent, 4096)),
    ("chat_template.jinja", lambda path: tokenizer.load(path.parent, 4096)),
    ("additional_chat_templates/a.jinja", lambda path: tokenizer.load(path.parents[1], 4096)),
    ("tokenizer_config.json", lambda path: vocab_and_merges.read(path.parent)),
    ("schema.json", lambda path: file_text("--json-schema", path)),
    ("ca.pem", lambda path: TLS(root=str(path)).credentials()),
]


@pytest.fixture(params=["pipe", "device", "folder", "socket"])
def instead(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], None]]:
    """Makes it at a path."""
    sockets = []

    def make(path: Path) -> None:
        if request.param == "pipe":
            os.mkfifo(path)  # who opens it to read, and waits, is let go, and reads nothing
            threading.Thread(target=lambda: path.open("wb").close(), daemon=True).start()
        elif request.param == "device":
            path.symlink_to(os.devnull)
        elif request.param == "folder":
            path.mkdir()
        else:
            sockets.append(socket.socket(socket.AF_UNIX))
            with tempfile.TemporaryDirectory() as short:  # a socket's address may not be long
                sockets[-1].bind(f"{short}/socket")
                os.link(f"{short}/socket", path)

    yield make
    for one in sockets:
        one.close()


@pytest.mark.parametrize(("name", "read"), READERS, ids=[name for name, _ in READERS])
def test_what_is_no_file_is_told_in_a_line(
    name: str, read: Callable[[Path], Any], instead: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name != "tokenizer.json":
        (tmp_path / "tokenizer.json").symlink_to(pocket.directory() / "tokenizer.json")
    instead(path)
    with pytest.raises((ConfigError, ModelError, OptionError)) as told:
        read(path)
    said = str(told.value)
    assert "is not a file" in said or "directory" in said or "No such device" in said
    assert "\n" not in said


def test_a_file_larger_than_any_of_its_kind_is_not_read(tmp_path: Path) -> None:
    (large := tmp_path / "config.json").touch()
    os.truncate(large, 33 << 20)
    with pytest.raises(ConfigError, match="more than 33554432 bytes"):
        JsonFile.read(large)
