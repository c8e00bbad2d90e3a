"""Tokenize and Detokenize: the prompt's way to ids as Generate goes it, and the way back.

Invariant: nothing that grows with a message happens on the event loop, or before the call has its
client's permit and a place. The places are of a queue of their own, as long as Generate's: these
calls wait for the prompt workers alone, so neither queue takes the other's room. Both answers stay
below what any client accepts as one message.
"""

import contextlib
from collections.abc import Iterator, Sequence

from quire.service.admission.admission import Admission, Policy
from quire.service.admission.rate_limits import ClientLimits
from quire.service.errors import invalid_field
from quire.service.rpc.field_faults import Faults
from quire.service.rpc.served_model import ServedModel
from quire.service.rpc.validation import Validator
from quire.service.security.auth import Caller
from quire.service.text.tokenizer import Tokenizer
from quire.service.text.workers import THREADS, PromptWorkers, Wanted
from quire.v1 import inference_pb2 as pb

# A message that gRPC's clients take unasked has 4 MiB. An id takes three bytes of it.
MAX_IDS = 1 << 20
MAX_TEXT_BYTES = 3 << 20


class TextCalls:
    """Tokenize and Detokenize of one server."""

    def __init__(self, limits: ClientLimits, max_waiting: int) -> None:
        """limits: the clients' own, which Generate asks too. max_waiting: calls."""
        self._limits = limits
        self._admission = Admission(Policy(slots=THREADS, max_waiting=max_waiting))

    @property
    def open(self) -> int:
        """Calls that have a place."""
        return self._admission.waiting

    async def tokenize(
        self, request: pb.TokenizeRequest, caller: Caller, validator: Validator, model: ServedModel
    ) -> pb.TokenizeResponse:
        """Raises Refusal where Generate would refuse the prompt; but for its length, which may be
        beyond the model's."""
        with self._place(caller):
            prompt = _as_prompt(request)
            validator.check(prompt)

            def read(wanted: Wanted) -> pb.TokenizeResponse:
                ids, _ = validator.prompts.read(prompt, wanted, must_fit=False)
                if len(ids) > MAX_IDS:
                    kind = str(prompt.WhichOneof("prompt"))
                    raise invalid_field(kind, f"{len(ids)} tokens: at most {MAX_IDS} are told")
                return pb.TokenizeResponse(token_ids=ids, max_model_len=model.info.max_model_len)

            return await validator.workers.run(read, caller.client, prompt.ByteSize())

    async def detokenize(
        self,
        request: pb.DetokenizeRequest,
        caller: Caller,
        workers: PromptWorkers,
        model: ServedModel,
    ) -> pb.DetokenizeResponse:
        """Raises Refusal for ids beyond the vocabulary, and for too many."""
        with self._place(caller):
            count = len(request.token_ids)
            if count > MAX_IDS:
                raise invalid_field("token_ids", f"{count} ids: at most {MAX_IDS}")

            def read(_wanted: Wanted) -> pb.DetokenizeResponse:
                text = text_of(request.token_ids, model.tokenizer, model.info.vocab_size)
                return pb.DetokenizeResponse(text=text)

            return await workers.run(read, caller.client, request.ByteSize())

    @contextlib.contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        """Raises Refusal: the client has had its calls, or too many wait."""
        permit = self._limits.enter(caller.client)
        try:
            place = self._admission.enter(caller.client)
            try:
                yield
            finally:
                place.leave()
        finally:
            permit.end(0)


def text_of(ids: Sequence[int], tokenizer: Tokenizer, vocab_size: int) -> str:
    """The text of all of them at once. Raises Refusal."""
    faults = Faults()
    faults.ids("token_ids", ids, vocab_size)
    faults.raise_if_any()
    pieces = [tokenizer.text_pieces[i] for i in ids]
    size = sum(map(len, pieces))
    if size <= MAX_TEXT_BYTES:
        text = b"".join(pieces).decode("utf-8", "replace")
        size = len(text.encode())
        if size <= MAX_TEXT_BYTES:
            return text
    raise invalid_field("token_ids", f"{size} bytes of text: at most {MAX_TEXT_BYTES} are told")


def _as_prompt(request: pb.TokenizeRequest) -> pb.GenerateRequest:
    """The prompt as a GenerateRequest, for Generate's own checks and readers."""
    match request.WhichOneof("prompt"):
        case "text":
            return pb.GenerateRequest(text=request.text)
        case "chat":
            return pb.GenerateRequest(chat=request.chat)
    raise invalid_field("prompt", "is missing: give text or chat")
