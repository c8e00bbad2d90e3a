"""What `--model` means: a directory for the engine, and one for the tokenizer.

    pocket          the model that ships with this package, checked against its manifest
    random:SHAPE    no files: seeded random weights, with pocket's tokenizer
    a directory     as it is; checked against its manifest, if it has one like pocket's
    NAME or A/NAME  fetched from the Hugging Face Hub, unless its cache on this machine has it:
                    safetensors, JSON, tokenizer files; no code

Invariant: what is resolved is on this machine, and is what its files' names say; no code of a model
is ever fetched or run.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError
from quire.engine.model.hf_config import read_directory
from quire.engine.model.hf_quantization import SUPPORTED
from quire.engine.placeholder_file import fault_of
from quire.service.models import pocket

POCKET = "pocket"
RANDOM_PREFIX = "random:"
SETTINGS = (
    *("config.json", "generation_config.json", "hf_quant_config.json"),
    *("modules.json", "1_Pooling/config.json"),  # of a model that makes embeddings
)
FILES = (
    *SETTINGS,
    *("*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja", "added_tokens.json"),
)
OLD_TOKENIZER = ("vocab.json", "merges.txt")  # fetched where there is no tokenizer.json

_FIRST_OWNER = "openai-community/"  # who got the models that at first had no owner
_FIRST_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The directories of a model's parts."""

    name: str  # what clients may ask for, unless another name is set
    engine_model: str  # a directory, or random:SHAPE
    tokenizer_directory: Path


def resolve(config: EngineConfig, *, weights: bool = True) -> ResolvedModel:
    """Find the model, fetching it where it is on the Hub. Raises ConfigError or ModelError.

    weights: also what is not its configuration; without, that need not be there."""
    name = config.model
    path = _path(name)
    if name == POCKET:
        _refuse_revision(config)
        return _pocket()
    if name.startswith(RANDOM_PREFIX):
        _refuse_revision(config)
        return ResolvedModel(name, name, pocket.directory())
    if path.is_dir():
        _refuse_revision(config)
        if pocket.has_manifest(path):
            _verify(path)
        _refuse_stand_ins(path, FILES if weights else SETTINGS)
        return ResolvedModel(path.resolve().name, str(path), path)
    if path.suffix == ".gguf" and path.exists():
        raise ConfigError(f"model = {name}: GGUF is not supported; {SUPPORTED}, as safetensors")
    if path.exists():
        raise ConfigError(f"model = {name}: is a file; give the directory that holds it")
    if not _HUB_ID.fullmatch(name):
        raise ConfigError(
            f"model = {name}: no such directory, and not an id of the Hub{_hint(name)}"
        )
    directory = _of_the_hub(name, config.revision, weights=weights)
    _refuse_stand_ins(directory, FILES if weights else SETTINGS)
    return ResolvedModel(name, str(directory), directory)


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # `~` of nobody who is known here
        raise ConfigError(f"model = {name}: {error}") from None


def _of_the_hub(name: str, revision: str | None, *, weights: bool) -> Path:
    """Refuse what cannot be run before its weights are fetched."""
    kept = _kept_as(name, revision)
    settings = _fetch(kept, revision, SETTINGS)
    read_directory(settings)
    if not weights:
        return settings
    directory = _fetch(kept, revision, FILES)
    if not (directory / "tokenizer.json").is_file():
        _fetch(kept, revision, OLD_TOKENIZER)
    return directory


def _kept_as(name: str, revision: str | None) -> str:
    """The name under which the Hub's cache has a model: of two names of one model, the requested
    one unless only the other is there."""
    short = name.removeprefix(_FIRST_OWNER)
    if short not in _FIRST_NAMES:
        return name
    other = short if name != short else _FIRST_OWNER + short
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return name  # `_fetch` says what is missing
    there = (
        isinstance(try_to_load_from_cache(one, "config.json", revision=revision), str)
        for one in (name, other)
    )
    return other if tuple(there) == (False, True) else name


def _hint(name: str) -> str:
    """A suggestion for a name that is nearly one of the special ones."""
    begins, _, shape = name.partition(":")
    for own in (POCKET, RANDOM_PREFIX.rstrip(":")):
        if difflib.SequenceMatcher(None, begins.lower(), own).ratio() > 0.75:
            return f" (is {own + ':' + shape if shape else own} meant?)"
    return ""


def _refuse_revision(config: EngineConfig) -> None:
    if config.revision is not None:
        raise ConfigError(
            f"revision = {config.revision}: only models of the Hub have revisions, "
            f"and model = {config.model} is none"
        )


def _refuse_stand_ins(directory: Path, files: tuple[str, ...]) -> None:
    """Refuse a pointer, an error page or nothing where a file of the model should be, before any
    is read. Raises ModelError."""
    paths = sorted(path for path in directory.iterdir() if any(map(path.match, files)))
    for path in paths:
        try:
            instead = fault_of(path)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        if instead is not None:
            raise ModelError(f"{path}: {instead}")


def _pocket() -> ResolvedModel:
    directory = pocket.directory()
    _verify(directory)
    return ResolvedModel(POCKET, str(directory), directory)


def _verify(directory: Path) -> None:
    try:
        pocket.verify(directory)
    except ValueError as error:
        raise ModelError(str(error)) from error


def _fetch(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """Download the missing files (the library shows its progress on standard error)."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ConfigError(
            f"model = {name}: no such directory; to fetch it, pip install huggingface_hub"
        ) from error
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise ModelError(f"model {name}: gated; accept its terms, then set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model {name}: the Hub has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model {name}: neither a directory here nor on the Hub{_hint(name)}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(
            f"model {name}{at}: not on this machine, and the Hub cannot be reached; "
            f"give a directory, or fetch it where there is a network{_hint(name)}"
        ) from error
    except Exception as error:  # an HTTP status, a full disk: the library has no common root
        words = " ".join(str(error).split())[:200]
        raise ModelError(f"model {name}{at}: could not be fetched: {words}") from error
