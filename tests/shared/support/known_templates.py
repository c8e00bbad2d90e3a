"""What a chat template does is found out once a process, and in its forks no more; and the embedded
model's tokenizer is read once.

Hundreds of renderings tell what a template does, and nearly all servers of the tests have one of
few. Importing this is enough.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quire.service.models import pocket
from quire.service.text import chat_template, tokenizer
from quire.service.text.template_traits import Traits, find_traits
from quire.service.text.tokenizer import Tokenizer, load

_found: dict[tuple[Any, ...], Traits] = {}
_loaded: dict[int, Tokenizer] = {}


def _find_traits_once(
    environment: Any,
    source: str,
    template: Any,
    tokens: Mapping[str, str],
    special: Iterable[str],
    added: Iterable[str],
) -> Traits:
    words = source, tuple(tokens.items()), tuple(special), tuple(added)
    if words not in _found:
        _found[words] = find_traits(environment, source, template, tokens, *words[2:])
    return _found[words]


def _load_once(directory: Path, vocab_size: int) -> Tokenizer:
    if directory != pocket.directory():
        return load(directory, vocab_size)
    if vocab_size not in _loaded:
        _loaded[vocab_size] = load(directory, vocab_size)
    return _loaded[vocab_size]


chat_template.find_traits = _find_traits_once
tokenizer.load = _load_once
if __name__ == "known_templates":  # in what forks servers, the embedded model's is found before
    chat_template.ChatTemplate.of(tokenizer.load(pocket.directory(), 1 << 12))
