"""What every call knows about the served model."""

from collections.abc import Collection
from dataclasses import dataclass

from quire.engine.loop.stats import EngineInfo
from quire.service.answers.events import Family
from quire.service.text.chat_template import ChatTemplate
from quire.service.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The served model, as far as requests are concerned. chat is None: there is no template.
    family is None: it is unknown how its answers are parsed."""

    name: str
    info: EngineInfo
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    family: Family | None = None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The union of the tokenizer's and the model's."""
        return ends_of(self.tokenizer, self.info.eos_token_ids)

    @property
    def cache_tokens(self) -> int:
        """Tokens of one request that the cache can hold; the last token needs no place."""
        return self.info.num_blocks * self.info.block_size + 1


def ends_of(tokenizer: Tokenizer, eos_token_ids: Collection[int]) -> tuple[int, ...]:
    """Ids that end an output: the tokenizer's and the model's, in order."""
    return tuple(sorted({*tokenizer.eos_token_ids, *eos_token_ids}))
