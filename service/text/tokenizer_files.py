"""The files beside tokenizer.json that say more about a tokenizer, read as transformers reads them.

    tokenizer_config.json                names of tokens, added_tokens_decoder, chat_template
    special_tokens_map.json              the same names; counts where there is no decoder
    added_tokens.json                    more tokens; counts where there is no decoder
    chat_template.jinja                  the template; before the config's
    additional_chat_templates/*.jinja    named ones, such as tool_use

Invariant: a token counts wherever it stands, and each error names the file.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from quire.engine.errors import ModelError
from quire.engine.json_file import once
from quire.engine.plain_file import read_whole

CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
NAMES = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
    "mask_token",
)
_ID = re.compile("[0-9]{1,10}")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(slots=True)
class TokenizerFiles:
    """The content of the files. templates: by name; a single one is called default."""

    named: dict[str, AddedToken] = field(default_factory=dict)
    added: dict[int, AddedToken] = field(default_factory=dict)  # by the id that a file gives
    extra: list[AddedToken] = field(default_factory=list)  # special, without a name
    templates: dict[str, str] = field(default_factory=dict)
    template_origin: Path | None = None
    split_special_tokens: bool = False

    def tokens(self) -> list[AddedToken]:
        """Tokens in the order in which they get the ids that are free."""
        found = [token for _, token in sorted(self.added.items())]
        written = {token.content for token in found}
        names = sorted(self.named, key=lambda n: NAMES.index(n) if n in NAMES else len(NAMES))
        for token in (*(self.named[name] for name in names), *self.extra):
            if token.content not in written:
                written.add(token.content)
                found.append(token)
        special = {token.content for token in self.named.values()}
        for token in found:
            token.special = token.special or token.content in special
        return found


def read(directory: Path) -> TokenizerFiles:
    """Raises ModelError."""
    path = directory / CONFIG
    config = _read_json(path)
    files = TokenizerFiles(split_special_tokens=_flag(config, "split_special_tokens", str(path)))
    _read_names(files, config, path)
    if "added_tokens_decoder" in config:
        _read_decoder(files, config["added_tokens_decoder"], path)
    else:
        _read_names(files, _read_json(directory / SPECIAL_MAP), directory / SPECIAL_MAP)
        _read_added(files, directory / ADDED)
    by_content = {token.content: token for token in files.added.values()}
    files.named = {name: by_content.get(t.content, t) for name, t in files.named.items()}
    _read_templates(files, directory, config)
    return files


def _read_names(files: TokenizerFiles, content: Mapping[str, Any], path: Path) -> None:
    for name, value in content.items():
        if value is None:
            continue
        if name.endswith("_token") and (name in NAMES or not isinstance(value, bool)):
            files.named[name] = _token(value, f"{path}: {name}")
    extra = content.get("extra_special_tokens") or content.get("additional_special_tokens")
    if isinstance(extra, Mapping):  # named ones of the model's own
        files.named |= {name: _token(v, f"{path}: {name}") for name, v in extra.items()}
    elif isinstance(extra, list):
        known = {token.content for token in files.extra}
        tokens = [_token(value, f"{path}: extra_special_tokens") for value in extra]
        files.extra += [token for token in tokens if token.content not in known]
    elif extra:
        raise ModelError(f"{path}: extra_special_tokens: neither a list nor an object")


def _read_decoder(files: TokenizerFiles, decoder: Any, path: Path) -> None:
    where = f"{path}: added_tokens_decoder"
    if not isinstance(decoder, Mapping):
        raise ModelError(f"{where}: not an object")
    for key, value in decoder.items():
        if not _ID.fullmatch(key) or not isinstance(value, Mapping):
            raise ModelError(f"{where}: {key!r}: not an id with an object that holds its content")
        files.added[int(key)] = _token(value, f"{where}: {key}", special=False)


def _read_added(files: TokenizerFiles, path: Path) -> None:
    special = {token.content for token in (*files.named.values(), *files.extra)}
    for content, token_id in _read_json(path).items():
        if type(token_id) is not int:
            raise ModelError(f"{path}: {content!r}: not an id")
        is_special = content in special
        files.added[token_id] = AddedToken(content, normalized=not is_special, special=is_special)


def _read_templates(files: TokenizerFiles, directory: Path, config: Mapping[str, Any]) -> None:
    path = directory / TEMPLATE
    named = sorted((directory / TEMPLATES).glob("*.jinja"))
    if path.exists():
        files.templates["default"] = _read_text(path)
    files.templates |= {file.stem: _read_text(file) for file in named}
    if files.templates:
        files.template_origin = path if path.exists() else directory / TEMPLATES
        return
    template, origin = config.get("chat_template"), directory / CONFIG
    if isinstance(template, str):
        files.templates = {"default": template}
    elif isinstance(template, Mapping):
        files.templates = _named_templates(template.items(), origin)
    elif isinstance(template, list):
        named_ones = (one if isinstance(one, Mapping) else {} for one in template)
        pairs = ((one.get("name"), one.get("template")) for one in named_ones)
        files.templates = _named_templates(pairs, origin)
    elif template is not None:
        raise ModelError(f"{origin}: chat_template: neither a text nor several by name")
    files.template_origin = origin if files.templates else None


def _named_templates(pairs: Iterable[tuple[Any, Any]], path: Path) -> dict[str, str]:
    templates = {}
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise ModelError(f"{path}: chat_template: {name!r}: not a name with a text")
        templates[name] = text
    return templates


def _token(value: Any, where: str, *, special: bool = True) -> AddedToken:
    """A token from its text, or from an object with its content. special: where it is not said."""
    if isinstance(value, str):
        return AddedToken(value, special=special)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise ModelError(f"{where}: neither a text nor an object with its content")
    flags = {name: _flag(value, name, where) for name in _FLAGS if value.get(name) is not None}
    return AddedToken(value["content"], **{"special": special, **flags})


def _flag(values: Mapping[str, Any], name: str, where: str) -> bool:
    """false where it is not said."""
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{where}: {name}: must be true or false")
    return bool(value)


def _read_text(path: Path) -> str:
    try:
        return read_whole(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(_read_text(path), object_pairs_hook=once)
        json.dumps(content, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content
