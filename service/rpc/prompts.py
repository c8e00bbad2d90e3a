"""A request's prompt (text, ids or a chat) as the ids that it runs with.

Invariant: a prompt longer than any prompt can be is refused before it is rendered or tokenized, and
between two stages work stops for a call that has ended.
"""

from collections.abc import Sequence

from quire.service.errors import Refusal, TooLong, invalid, invalid_field
from quire.service.rpc import messages
from quire.service.rpc.answer_reading import check_tools
from quire.service.rpc.field_faults import Faults
from quire.service.rpc.served_model import ServedModel
from quire.service.text.chat_template import TemplateRefusal, TemplateTooLong
from quire.service.text.template_meter import RenderLimits
from quire.service.text.thinking import Thinking, thinking_of
from quire.service.text.workers import Wanted, check_wanted
from quire.v1 import inference_pb2 as pb

_TAIL = 32  # tokens, or characters, of a prompt's end in which thoughts may be opened


class Prompts:
    """Reads the prompts of one model. longest: tokens that a prompt may have, since one more must
    be generated."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self.longest = min(model.info.max_model_len, model.cache_tokens) - 1
        self._max_text_bytes = model.tokenizer.max_text_bytes(model.info.max_model_len)

    def check(self, request: pb.GenerateRequest) -> None:
        """Raise Refusal for faults that show without reading the prompt."""
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise invalid_field("prompt", "is missing: give text, token_ids or chat")
        if kind == "token_ids":
            if len(request.token_ids.ids) > self.longest:
                raise self._too_many(kind, len(request.token_ids.ids))
        elif (size := _size(request, kind)) > self._max_text_bytes:
            raise self._too_long(kind, size)

    def read(
        self, request: pb.GenerateRequest, wanted: Wanted, *, must_fit: bool = True
    ) -> tuple[tuple[int, ...], Thinking]:
        """The ids of a request that `check` has passed, and where the output begins; on any thread.
        must_fit: more than a request can run with are refused. Raises Refusal or NotWanted."""
        kind = request.WhichOneof("prompt")
        assert kind is not None  # as `check` has seen
        if kind == "token_ids":
            ids = tuple(request.token_ids.ids[:])  # a slice is made at once, not id by id
            faults = Faults()
            faults.ids("token_ids.ids", ids, self._model.info.vocab_size)
            faults.raise_if_any()
            thinking = thinking_of(self._end_of(ids)) if request.parse_output else Thinking.NONE
        elif kind == "chat":
            rendered, thinking = self._rendered(request, wanted)
            ids = self._encode(kind, rendered, wanted, must_fit=must_fit)
        else:
            ids = self._encode(kind, request.text, wanted, must_fit=must_fit)
            thinking = thinking_of(request.text[-_TAIL:])
        if not ids:
            raise invalid_field(kind, "is empty: at least one token is needed")
        return ids, thinking

    def _end_of(self, ids: Sequence[int]) -> str:
        """The last few tokens' text."""
        pieces = self._model.tokenizer.pieces
        return b"".join(pieces[i] for i in ids[-_TAIL:]).decode("utf-8", "replace")

    def _rendered(self, request: pb.GenerateRequest, wanted: Wanted) -> tuple[str, Thinking]:
        if self._model.chat is None:
            raise invalid_field("chat", "the model has no chat template; send text or token_ids")
        parts = _parts(request.chat)
        if parts > self.longest:
            raise _too_long(
                "chat",
                f"{parts} messages, calls and tools: more than the {self.longest} tokens "
                "that a prompt may have",
            )
        check_tools(request, self._model.family)
        conversation = messages.read(request.chat)
        check_wanted(wanted)
        limits = RenderLimits(max_bytes=self._max_text_bytes, wanted=wanted)
        try:
            rendered = self._model.chat.render(conversation, limits)
            messages.refuse_lost_arguments(conversation, rendered)
            return rendered, self._model.chat.thinking(conversation, rendered)
        except TemplateTooLong as refusal:
            raise _too_long(refusal.field, refusal.message) from refusal
        except TemplateRefusal as refusal:
            if refusal.field == "chat":  # it failed
                messages.refuse_lost_arguments(conversation, "")
            raise invalid_field(refusal.field, refusal.message) from refusal

    def _encode(self, kind: str, text: str, wanted: Wanted, *, must_fit: bool) -> tuple[int, ...]:
        check_wanted(wanted)
        encoding = self._model.tokenizer.encoding(text, add_special_tokens=kind == "text")
        if must_fit and len(encoding) > self.longest:
            raise self._too_many(kind, len(encoding))
        return tuple(encoding.ids)

    def _too_many(self, field_name: str, tokens: int) -> Refusal:
        return _too_long(
            field_name,
            f"{tokens} tokens: with one token to make, max_model_len = "
            f"{self._model.info.max_model_len} and the cache of {self._model.cache_tokens} "
            f"leave room for {self.longest}",
        )

    def _too_long(self, field_name: str, size: int) -> Refusal:
        return _too_long(
            field_name,
            f"{size} bytes: more than max_model_len = {self._model.info.max_model_len} tokens "
            f"can hold ({self._max_text_bytes})",
        )


def _too_long(field_name: str, size: str) -> Refusal:
    """size: beside what it may be."""
    return invalid([TooLong(field_name, f"the prompt is too long: {size}")])


def _size(request: pb.GenerateRequest, kind: str) -> int:
    """Bytes of a text or chat."""
    return request.chat.ByteSize() if kind == "chat" else len(request.text.encode())


def _parts(chat: pb.Chat) -> int:
    """Messages, calls and tools: each is at least one token of a prompt, however few its bytes."""
    calls = sum(len(message.tool_calls) for message in chat.messages)
    return len(chat.messages) + len(chat.tools) + calls
