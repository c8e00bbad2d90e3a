"""GPT-2's tokenizer from vocab.json and merges.txt, for old folders without a tokenizer.json.

Invariant: the result splits text as transformers' class for GPT-2 does. Other families have files
of the same names but split text differently, which the files do not say: they are refused, with the
command that writes a tokenizer.json.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from quire.engine.errors import ModelError
from quire.engine.plain_file import read_whole

VOCAB, MERGES = "vocab.json", "merges.txt"
_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
_END = "<|endoftext|>"  # begins and ends texts, unless a file names another


def are_there(directory: Path) -> bool:
    """Whether a directory has both files."""
    return (directory / VOCAB).is_file() and (directory / MERGES).is_file()


def read(directory: Path) -> Tokenizer:
    """The tokenizer. Raises ModelError for files that are unsound, or may be another family's."""
    about = _object(directory / "tokenizer_config.json")
    kind = about.get("tokenizer_class")
    model_type = _object(directory / "config.json").get("model_type")
    if kind not in _CLASSES and not (kind is None and model_type == "gpt2"):
        raise ModelError(f"{_refused(directory)} are of {kind or model_type or 'an unknown kind'}")
    if about.get("add_bos_token"):
        raise ModelError(f"{_refused(directory)} come with add_bos_token = true")
    try:
        for name in (VOCAB, MERGES):
            read_whole(directory / name)  # refuses what the library would not
        model = models.BPE.from_file(str(directory / VOCAB), str(directory / MERGES))
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"{directory / VOCAB}, {MERGES}: not a vocabulary: {error}") from error
    backend = Tokenizer(model)
    space = bool(about.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(_END) is not None:
        backend.add_special_tokens([AddedToken(_END, special=True)])
    return backend


def _refused(directory: Path) -> str:
    make = f"T.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
    return (
        f"no tokenizer: {directory / 'tokenizer.json'} is missing; to write it, "
        f'python -c "from transformers import AutoTokenizer as T; {make}"; '
        f"{VOCAB} and {MERGES} alone are read of GPT-2, and these"
    )


def _object(path: Path) -> dict[str, Any]:
    """Of a file that may not be there."""
    try:
        content = json.loads(read_whole(path)) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
