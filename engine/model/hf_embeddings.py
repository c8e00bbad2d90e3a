"""Checkpoints of models that make embeddings: what sentence-transformers' files say of them, and
whether there is an output head.

Invariant: what makes an embedding is what Quire does, the last token's state and its norm, or the
files are refused by name. A head that is merely missing is not taken for one that is not meant.
"""

import json
from pathlib import Path
from typing import Any

from quire.engine.errors import ConfigError
from quire.engine.json_file import JsonFile
from quire.engine.model.config import QWEN3
from quire.engine.plain_file import open_plain, read_whole

WITHOUT_HEAD = {"Qwen3Model": QWEN3}  # architectures, and what their layers are
MODULES = "modules.json"
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_KNOWN = ("Transformer", "Pooling", "Normalize", "LogitScore")
_LAST = "pooling_mode_lasttoken"
_MAX_HEADER = 100 << 20  # bytes


def embeds_only(path: Path, config: JsonFile) -> bool:
    """Whether a checkpoint has no output head and needs none.

    That is so by its architecture; or because it is stored without a head, as models of
    sentence-transformers are; or because its tensors' names lack the prefix, as a bare decoder's
    do. Raises ConfigError.
    """
    check_modules(path)
    if config.data.get("architectures") in [[name] for name in WITHOUT_HEAD]:
        return True
    if config.data.get("tie_word_embeddings") is True:
        return False
    names = _stored_names(path)
    bare = _EMBEDDING in names or (bool(names) and (path / MODULES).is_file())
    return bare and _HEAD not in names


def check_modules(path: Path) -> None:
    """Refuse modules behind the decoder that Quire does not compute. Raises ConfigError."""
    file = path / MODULES
    if not file.exists():
        return
    modules = _read(file)
    if not isinstance(modules, list):
        raise ConfigError(f"{file}: must hold a list")
    for at, module in enumerate(modules):
        kind = module.get("type") if isinstance(module, dict) else None
        name = str(kind).rpartition(".")[2]
        if name not in _KNOWN:
            known = ", ".join(_KNOWN)
            raise ConfigError(f"{file}: [{at}].type = {kind}: not supported; supported: {known}")
        if name == "Pooling":
            _check_pooling(path / str(module.get("path", "")) / "config.json")


def _check_pooling(file: Path) -> None:
    if not file.exists():
        raise ConfigError(f"{file}: is missing, and {MODULES} names it")
    config = JsonFile.read(file)
    others = [key for key in config.data if key.startswith("pooling_mode_") and key != _LAST]
    for key in others:
        config.only(key, False)
    if not others and config.has("pooling_mode"):  # as newer versions write it
        config.only("pooling_mode", "lasttoken")
    else:
        config.only(_LAST, True)


def _stored_names(path: Path) -> frozenset[str]:
    """The names of a checkpoint's tensors; none if its files do not say. Whether the files are
    sound is checked by the loader."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.exists():
        section = _read(index)
        names = section.get("weight_map") if isinstance(section, dict) else None
    else:
        names = _header(single) if single.exists() else None
    return frozenset(names) if isinstance(names, dict) else frozenset()


def _header(file: Path) -> Any:
    try:
        with open_plain(file) as opened:
            length = int.from_bytes(opened.read(8), "little")
            return json.loads(opened.read(length)) if length <= _MAX_HEADER else None
    except (OSError, ValueError, RecursionError):
        return None


def _read(file: Path) -> Any:
    try:
        return json.loads(read_whole(file))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
