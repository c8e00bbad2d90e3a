"""An OpenAI body, parsed: one `GenerateRequest` per prompt, and how to answer."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from quire.clients.openai.field_names import Names
from quire.clients.openai.fields import Fields
from quire.v1 import inference_pb2 as pb


class StreamUsage(enum.Enum):
    """Where a stream reports the token counts."""

    NONE = enum.auto()
    LAST = enum.auto()  # in a chunk of its own behind the others
    EACH = enum.auto()  # there, and so far in each chunk


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """requests: one per prompt, otherwise equal. given: fields of the contract by their names in
    the body. logprobs: include them in the answer. echo: the prompt before each choice.
    prompt_logprobs: include those of the prompt."""

    requests: tuple[pb.GenerateRequest, ...]
    given: Mapping[str, str] = field(default_factory=dict)
    stream: bool = False
    usage: StreamUsage = StreamUsage.NONE
    logprobs: bool = False
    echo: bool = False
    prompt_logprobs: bool = False

    @property
    def prompts(self) -> int:
        """The number of prompts."""
        return len(self.requests)

    @property
    def choices(self) -> int:
        """The number of choices of all prompts together."""
        return self.prompts * self.each

    @property
    def each(self) -> int:
        """The number of choices of one prompt."""
        return max(self.requests[0].sampling.n, 1)

    def names(self, place: int = 0) -> Names:
        """The body's names for the fields of one of the requests."""
        if self.prompts == 1:
            return self._names()
        prompt = f"prompt[{place}]"
        kinds = ("token_ids.ids", "token_ids", "text")
        return Names({**self.given, **dict.fromkeys(kinds, prompt)})

    def _names(self) -> Names:
        return Names(self.given)

    def name(self, name: str) -> None:
        """Set the calls' request ids; of several, each followed by its number."""
        for place, request in enumerate(self.requests):
            request.request_id = f"{name}-{place}" if self.prompts > 1 else name

    def place(self, message: pb.GenerateResponse, place: int, name: str) -> None:
        """Turn an event of one of several calls into an event of the whole request: choices are
        counted over the prompts, and the id is the request's."""
        if self.prompts == 1:
            return
        match message.WhichOneof("event"):
            case "started":
                message.started.request_id = name
            case "delta":
                message.delta.index += place * self.each
            case "finished":
                message.finished.index += place * self.each
            case "prompt_logprobs":
                message.prompt_logprobs.index += place * self.each


def read_stream(body: Fields) -> tuple[bool, Fields | None]:
    """Whether to stream; and options, of which the caller takes those that the path has."""
    stream = body.flag("stream") or False
    options = body.nested("stream_options")
    if options is not None:
        if not stream:
            body.fault("stream_options", {}, "goes with stream = true alone")
        options.passed_over("include_obfuscation")
    return stream, options


def read_streaming(body: Fields) -> tuple[bool, StreamUsage]:
    """Whether to stream, and what then follows of usage."""
    stream, options = read_stream(body)
    if options is None:
        return stream, StreamUsage.NONE
    last = options.flag("include_usage") or False
    each = options.flag("continuous_usage_stats") or False
    if each and not last:
        options.fault("continuous_usage_stats", True, "goes with include_usage = true alone")
    options.end()
    if not last:
        return stream, StreamUsage.NONE
    return stream, StreamUsage.EACH if each else StreamUsage.LAST


def check_prompt_logprobs(body: Fields, request: pb.GenerateRequest, *, stream: bool) -> bool:
    """Whether the prompt's log-probabilities are asked for by their own name; whole answers alone
    have a place for them."""
    if not request.HasField("prompt_logprobs"):
        return False
    if stream:
        body.fault("prompt_logprobs", request.prompt_logprobs, "goes with stream = false alone")
    return True
