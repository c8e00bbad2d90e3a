"""The model's tokenizer: text to ids, ids to bytes.

Invariant: `pieces[i]` and `text_pieces[i]` exist for every id of the model's vocabulary; joined and
decoded as UTF-8 the latter are the text, so special tokens and ids that the tokenizer does not know
are empty there. Needs neither transformers nor torch.

Two kinds of vocabulary are read. A byte-level one (GPT-2, Qwen, Llama 3) writes each byte as a
character. SentencePiece's (Llama 2) writes text, with U+2581 for a space, and bytes that it has no
text for as <0xNN>; the space that it puts before a text stays in the pieces.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from quire.engine.errors import ModelError
from quire.engine.plain_file import read_whole
from quire.service.text import tokenizer_files, vocab_and_merges

_MAX_BYTES = 256 << 20  # of tokenizer.json
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_ADDED_KEY = re.compile(r'(?<!\\)"added_tokens"[ \t\n\r]*:[ \t\n\r]*')
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SENTENCEPIECE = [
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
]
_ON_THE_WHOLE_TEXT = (  # of a decoder: no say in what a token stands for
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer, read once. Safe to use from several threads."""

    backend: Backend
    pieces: Sequence[bytes]  # each id's bytes
    text_pieces: Sequence[bytes]  # the same, special tokens empty
    special_tokens: tuple[str, ...]
    eos_token_ids: tuple[int, ...]
    chat_templates: Mapping[str, str]  # by name; a single one is called default
    template_origin: Path | None  # the file that they stand in
    added_tokens: tuple[str, ...]  # those that are not special
    template_tokens: Mapping[str, str]  # bos_token, eos_token, … as templates know them
    size: int  # one more than the highest id
    longest_piece: int  # bytes of the longest token
    silent_tokens: Mapping[str, int]  # those that are text in a prompt, and none in an output

    def max_text_bytes(self, tokens: int) -> int:
        """No text of more bytes can be tokenized into so few tokens."""
        shrinks = 3 if self.backend.normalizer is not None else 1  # NFC composes up to 3 to 1
        return tokens * self.longest_piece * shrinks

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text; special tokens written in it are recognised."""
        ids: list[int] = self.encoding(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encoding(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """The same before its ids are made: its length says how many there are.

        A batch of one, because the library lets other threads run while it works on a batch; the
        fast one, which keeps no tokens' texts: to free those would hold up the other threads.
        """
        encoded: Encoding = self.backend.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )[0]
        return encoded


def load(directory: Path, vocab_size: int) -> Tokenizer:
    """Read tokenizer.json (of GPT-2 also vocab.json and merges.txt) and the files beside it. Raises
    ModelError, naming the file."""
    backend, stated = _backend(directory)
    files = tokenizer_files.read(directory)
    stated |= {
        token.content: token_id
        for token_id, token in files.added.items()
        if backend.token_to_id(token.content) is None
    }
    backend.add_tokens(files.tokens())
    backend.encode_special_tokens = files.split_special_tokens
    vocabulary = backend.get_vocab(with_added_tokens=True)
    _check_ids(directory, vocabulary, stated)
    size = max(vocabulary.values(), default=-1) + 1
    if size > vocab_size:
        raise ModelError(
            f"{directory / 'tokenizer.json'}: holds, with the files beside it, ids up to "
            f"{size - 1}, but the model's vocab_size is {vocab_size}"
        )
    added = backend.get_added_tokens_decoder()
    special = {i: token.content for i, token in sorted(added.items()) if token.special}
    pieces = _pieces(backend, vocabulary, vocab_size)
    text_pieces = pieces.copy()
    for i in special:
        text_pieces[i] = b""
    tokens = {name: token.content for name, token in files.named.items()}
    eos_id = backend.token_to_id(tokens.get("eos_token", ""))
    return Tokenizer(
        backend=backend,
        pieces=pieces,
        text_pieces=text_pieces,
        special_tokens=tuple(special.values()),
        eos_token_ids=() if eos_id is None else (eos_id,),
        chat_templates=files.templates,
        template_origin=files.template_origin,
        added_tokens=tuple(token.content for i, token in added.items() if i not in special),
        template_tokens=tokens,
        size=size,
        longest_piece=max(map(len, pieces)),
        silent_tokens={pieces[i].decode("utf-8", "replace"): i for i in special if pieces[i]},
    )


def _backend(directory: Path) -> tuple[Backend, dict[str, int]]:
    """And its added tokens, with the ids that the file gives them."""
    path = directory / "tokenizer.json"
    if not path.exists():
        if vocab_and_merges.are_there(directory):
            return vocab_and_merges.read(directory), {}
        raise ModelError(f"no tokenizer: {path} is missing")
    try:
        content = read_whole(path, _MAX_BYTES)
        backend = Backend.from_buffer(content)
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"{path}: not a tokenizer: {error}") from error
    if _bytes_of(backend) is None:
        kind = type(backend.decoder).__name__
        raise ModelError(
            f"{path}: its decoder is {kind}; supported are byte-level ones, and SentencePiece's "
            "with bytes for what has no piece"
        )
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.model, BPE):
        backend.model.dropout = None  # is of training: the same text is the same ids each time
    return backend, {token["content"]: token["id"] for token in _added(content.decode())}


def _added(content: str) -> list[dict[str, Any]]:
    """A tokenizer.json's added tokens. The whole file takes long to read once more; in a vocabulary
    a token of that name has a number behind it."""
    for key in _ADDED_KEY.finditer(content):
        found, _ = json.JSONDecoder().raw_decode(content, key.end())
        if isinstance(found, list):
            return found
    return []


def _check_ids(directory: Path, vocabulary: Mapping[str, int], stated: Mapping[str, int]) -> None:
    """Where ids are missing before an added token, the library gives it another one than its file,
    perhaps another token's. Raises ModelError."""
    where = directory / "tokenizer.json"
    for token, token_id in stated.items():
        if vocabulary.get(token) != token_id:
            raise ModelError(
                f"{where}: the added token {token!r} has the id {token_id} in its file, and "
                f"{vocabulary.get(token)} where it is read: a token must have all ids before its "
                "own, and one id alone"
            )
    by_id: dict[int, str] = {}
    for token, token_id in vocabulary.items():
        if by_id.setdefault(token_id, token) != token:
            raise ModelError(
                f"{where}: the tokens {by_id[token_id]!r} and {token!r} both have the id {token_id}"
            )


def _bytes_of(backend: Backend) -> Callable[[str], bytes] | None:
    """What turns a token of the vocabulary into bytes; None for a kind that is not known."""
    if backend.decoder is None:
        return None
    decoder = json.loads(backend.decoder.__getstate__())
    if decoder["type"] == "ByteLevel":
        return _of_byte_level()
    steps = [step for step in decoder.get("decoders", ()) if step not in _ON_THE_WHOLE_TEXT]
    return _of_sentencepiece if steps == _SENTENCEPIECE else None


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes as (from GPT-2): printable bytes
    stand for themselves, the others for characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(plain)]
    alphabet = {chr(b): b for b in plain}
    alphabet.update({chr(0x100 + i): b for i, b in enumerate(others)})
    return alphabet


def _of_byte_level() -> Callable[[str], bytes]:
    """A token with a character outside the alphabet stands for its own UTF-8."""
    alphabet = frozenset(byte_alphabet())
    table = {ord(c): chr(b) for c, b in byte_alphabet().items()}

    def bytes_of(token: str) -> bytes:
        if alphabet.issuperset(token):
            return token.translate(table).encode("latin-1")
        return token.encode()

    return bytes_of


def _of_sentencepiece(token: str) -> bytes:
    if _BYTE.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace(_SPACE, " ").encode()


def _pieces(backend: Backend, vocabulary: Mapping[str, int], vocab_size: int) -> list[bytes]:
    """Bytes of each id."""
    bytes_of = _bytes_of(backend)
    assert bytes_of is not None
    pieces = [b""] * vocab_size
    for token, token_id in vocabulary.items():
        pieces[token_id] = bytes_of(token)
    return pieces
