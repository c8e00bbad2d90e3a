"""The engine and the text side in one process, without a server: what batch.py imports.

Invariant: requests go through the same validation, template and tokenizer as over the wire.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.errors import RequestError, StepError
from quire.engine.model.load_config import model_config
from quire.engine.request import FinishReason
from quire.service.app.placement import on_a_thread
from quire.service.app.progress import Progress
from quire.service.errors import Refusal
from quire.service.models.resolve import resolve
from quire.service.rpc.served_model import ServedModel
from quire.service.rpc.validation import Validator
from quire.service.text import tokenizer as tokenizers
from quire.service.text.chat_template import ChatTemplate
from quire.service.text.workers import PromptWorkers
from quire.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Completion:
    """One request's output. Times in seconds, from submission."""

    ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    cached_tokens: int
    first_token: float
    total: float


class Local:
    """An engine that is ready, and its tokenizer."""

    def __init__(self, engine: AsyncEngine, model: ServedModel) -> None:
        self.engine = engine
        self.model = model
        self._validator = Validator(model, PromptWorkers())
        engine.vocabulary = self._validator.constraints.vocabulary

    async def complete(self, request: pb.GenerateRequest) -> Completion:
        """Run one request (n = 1) to its end. Raises RequestError or StepError."""
        try:
            accepted = await self._validator.validate(request, self.engine.new_key())
        except Refusal as refusal:
            raise RequestError("request", refusal.message) from refusal
        generation = accepted.generation
        began, first, cached, ids = time.monotonic(), 0.0, 0, list[int]()
        async for outputs in self.engine.generate(generation):
            for output in outputs:
                if output.finish is FinishReason.ERROR:
                    raise StepError(output.error_id or "", "see the log")
                if output.started:
                    cached = output.cached_tokens
                if output.token_ids and not ids:
                    first = time.monotonic() - began
                ids.extend(output.token_ids)
        text = self.model.tokenizer.backend.decode(ids, skip_special_tokens=True)
        total = time.monotonic() - began
        prompt = len(generation.prompt_token_ids)
        return Completion(tuple(ids), text, prompt, cached, first, total)


@asynccontextmanager
async def local(config: EngineConfig) -> AsyncIterator[Local]:
    """Load, and stop at the end. Raises QuireError."""
    resolved = resolve(config)
    config = config.replace(model=resolved.engine_model)
    vocab_size = model_config(config).vocab_size
    tokenizer = await asyncio.to_thread(tokenizers.load, resolved.tokenizer_directory, vocab_size)
    chat = ChatTemplate.of(tokenizer)
    engine, progress = AsyncEngine(on_a_thread(config)), Progress()
    try:
        await engine.start(progress)
        progress.close()
        yield Local(engine, ServedModel(resolved.name, engine.info, tokenizer, chat))
    finally:
        await engine.stop()
