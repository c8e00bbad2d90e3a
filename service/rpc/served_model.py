"""What every call knows about the served model."""

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
        return tuple(sorted({*self.tokenizer.eos_token_ids, *self.info.eos_token_ids}))

    @property
    def cache_tokens(self) -> int:
        """Tokens of one request that the cache can hold; the last token needs no place."""
        return self.info.num_blocks * self.info.block_size + 1
