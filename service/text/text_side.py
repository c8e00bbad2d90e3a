"""A model's tokenizer and chat template, read together before its weights."""

from pathlib import Path

from quire.engine.errors import ModelError
from quire.service.panics import as_exception
from quire.service.text import tokenizer as tokenizers
from quire.service.text.chat_template import ChatTemplate
from quire.service.text.tokenizer import Tokenizer


def read_text_side(directory: Path, vocab_size: int) -> tuple[Tokenizer, ChatTemplate | None]:
    """None: the model has no template. Raises ModelError."""
    try:
        tokenizer = tokenizers.load(directory, vocab_size)
        return tokenizer, ChatTemplate.of(tokenizer)
    except BaseException as error:
        if as_exception(error) is error:
            raise
        raise ModelError(f"{directory}: its tokenizer cannot be used: {error!r}") from None
