"""A server whose model has a chat template with tools, and says what a test tells it to."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.fake_engine import EOS, VOCAB_SIZE, Device
from support.harness import Running, serving

from quire.engine.scheduling.plan import PlanRow
from quire.service.models import pocket
from quire.service.models.resolve import ResolvedModel
from quire.service.text import tokenizer as tokenizers

TOKENIZER = tokenizers.load(pocket.directory(), VOCAB_SIZE)


def ids_of(text: str) -> list[int]:
    """As a model would say it."""
    return TOKENIZER.encode(text, add_special_tokens=False)


class ScriptedDevice(Device):
    """Says `script`, whatever it is asked, and then EOS."""

    def __init__(self, script: Sequence[int] | str = ()) -> None:
        super().__init__()
        self.tell(script)
        self.say = self._say

    def tell(self, script: Sequence[int] | str) -> None:
        """From now on."""
        self.script = ids_of(script) if isinstance(script, str) else list(script)

    def _say(self, row: PlanRow, prompt: Sequence[int]) -> int:
        at = row.start + row.num_tokens - len(prompt)
        return self.script[at] if at < len(self.script) else EOS


@asynccontextmanager
async def serving_template(
    template: str, directory: Path, device: Device, **options: Any
) -> AsyncIterator[Running]:
    """Pocket's tokenizer with this chat template. directory: an empty one."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((pocket.directory() / name).read_bytes())
    (directory / "chat_template.jinja").write_text(template)
    async with serving(device, load=False, **options) as running:
        running.server._resolved = ResolvedModel("scripted", "fake", directory)
        await running.server.load(VOCAB_SIZE)
        yield running
