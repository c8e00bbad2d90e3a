"""Requests to the engine and its outputs. Read this first.

A GenerationRequest goes in; for each of its n indices Outputs come back, the last one with its
FinishReason. All of it is plain data and may cross threads and processes. For the state of one
running index see `scheduling.request`.

Invariant: nobody changes a request. It and its sampling parameters are not frozen, as each call
makes them at both ends of a link: a frozen dataclass takes nine times as long.
"""

import enum
from dataclasses import dataclass, field

MAX_ENDING_IDS = 128  # EOS and stop ids that one request may have together


class FinishReason(enum.Enum):
    """Why one index ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(slots=True)
class SamplingParams:
    """How tokens are chosen and when generation ends. Every value is explicit.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 keep all tokens. `seed` has 64 bits.
    `logprobs` None: none; k: the chosen token's and the best k. EOS and stop ids are honoured once
    `min_tokens` outputs exist; EOS never with ignore_eos. `logit_bias`: (id, value added to its
    logit). Tokens are chosen from `allowed_token_ids` (empty: all) minus `banned_token_ids`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()

    @property
    def ending_ids(self) -> frozenset[int]:
        """Ids that end the request once there are min_tokens outputs."""
        eos = () if self.ignore_eos else self.eos_token_ids
        return frozenset(self.stop_token_ids).union(eos)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What matchers are built for: a serialized tokenizer (opaque to the engine), the number of ids
    of the model, and those that end an output."""

    tokenizer: str
    size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form an output must have. The engine passes it on to the builder of matchers.

    `kind`: json_schema, json_object, regex, grammar or choice (whose text is a JSON list). With
    `closes` it applies after the thoughts, which end with that text. With `opens` as well, there
    are thoughts only if the output begins with that text; without, they are already open.
    """

    kind: str
    text: str
    opens: str = ""
    closes: str = ""


@dataclass(frozen=True, slots=True)
class Pooling:
    """What to return for a prompt's last token instead of generating: its hidden state after the
    final norm or, with `token_ids`, the logits of those ids."""

    token_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class GenerationRequest:
    """What the service submits. `key` is chosen by the submitter and unique among live requests.

    `resume_token_ids` (n = 1) are outputs that the client already has: they count for positions,
    max and min tokens and penalties, and are not sent again. `client` is whose fair share is used,
    `user` one of that client's own users. With `pooling` (n = 1) the prompt is computed, nothing is
    sampled, and the only output is Output.pooled. `prompt_logprobs`: output the log-probabilities
    of the prompt's tokens from the second on, each with that many of the best; excludes resuming.
    """

    key: int
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    n: int = 1
    priority: int = 0
    cache_salt: bytes = b""
    resume_token_ids: tuple[int, ...] = ()
    client: str = ""
    constraint: Constraint | None = None
    user: str = ""
    pooling: Pooling | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one sampled token, from the raw logits. `top`: (id, logprob), best
    first."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Output:
    """The output of one step (or of the queue) for one index. Plain data; crosses threads.

    `started` marks the first time this index was scheduled; `cached_tokens` is its prefix hit.
    `finish` is set once, in the last output of the index. `stop_token_id`: the EOS or stop id that
    ended it (the last of token_ids). `pooled`: float32, little-endian, where requested.
    `prompt_logprobs`: those of the prompt's next tokens (see engine.prompt_logprobs), for index 0
    only and before its first token.

    Times are time.monotonic(): of scheduling for `started`, else of the end of the step. `time`
    belongs to the latest part; `started_at` and `first_token_at` to `started` and to the first of
    token_ids, whatever was joined since.
    """

    key: int
    index: int
    time: float = 0.0
    first_token_at: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    preemptions: int = 0
    peak_blocks: int = 0
    started: bool = False
    started_at: float = 0.0
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] | None = None
    finish: FinishReason | None = None
    stop_token_id: int | None = None
    error_id: str | None = None
    dead_end: str | None = None  # why no token is possible under the constraint; ended with ERROR
    pooled: bytes | None = None
    prompt_logprobs: bytes = b""

    def stamp(self, now: float) -> None:
        """Set all times to `now`."""
        self.time = self.first_token_at = self.started_at = now

    def join(self, later: "Output") -> None:
        """Append a later output of the same index to this one."""
        if later.started:
            self.started, self.started_at = True, later.started_at
        if not self.token_ids:
            self.first_token_at = later.first_token_at
        self.cached_tokens = max(self.cached_tokens, later.cached_tokens)
        self.token_ids.extend(later.token_ids)
        if later.logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs.extend(later.logprobs)
        self.time = later.time
        self.finish = later.finish
        self.stop_token_id = later.stop_token_id
        self.error_id = later.error_id
        self.dead_end = later.dead_end
        self.pooled = later.pooled
        self.prompt_logprobs += later.prompt_logprobs
        self.preemptions = max(self.preemptions, later.preemptions)
        self.peak_blocks = max(self.peak_blocks, later.peak_blocks)
