"""What is asked of the engine, and what it answers. Read this first.

A GenerationRequest goes in; for each of its n indices Outputs come back, the last one with its
FinishReason. All of it is plain data and may cross threads and processes. How one index is kept
while it runs: `scheduling.request`.
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


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when generation ends; complete, nothing is left to a default.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 keep all. `seed` is 64 bits wide.
    `logprobs` None: none; k: the chosen token's and the best k. EOS and stop ids are honoured from
    `min_tokens` outputs on; EOS not at all with ignore_eos. `logit_bias`: (id, what is added to its
    logit). Of `allowed_token_ids` (empty: all) less `banned_token_ids` the tokens are chosen.
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
        """Ids that end the request once min_tokens have come."""
        eos = () if self.ignore_eos else self.eos_token_ids
        return frozenset(self.stop_token_ids).union(eos)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What matchers are made for: a tokenizer as text (the engine does not read it), how many ids
    the model has, and which of them end an output."""

    tokenizer: str
    size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an output must look like. The engine passes it on to whatever makes matchers of it.

    `kind`: json_schema, json_object, regex, grammar or choice (whose text is a JSON list). With
    `closes` it begins behind thoughts, which end in that text; with `opens` as well there are
    thoughts only if the output begins with that one, without they are open already.
    """

    kind: str
    text: str
    opens: str = ""
    closes: str = ""


@dataclass(frozen=True, slots=True)
class Pooling:
    """What is wanted of a prompt's last token where nothing is to be generated: its hidden state
    behind the final norm or, with `token_ids`, the logits of those ids."""

    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What the service submits. `key` is the submitter's own and unique among live requests.

    `resume_token_ids` (n = 1) are outputs that the client already holds: they count for positions,
    max and min tokens and penalties, and are not sent again. `client` names whose share it uses,
    `user` for whom of its own. With `pooling` (n = 1) the prompt is computed, nothing is sampled,
    and the only thing said is Output.pooled. `prompt_logprobs`: the log-probabilities of the
    prompt's tokens from the second on are said, each with the best so many; nothing is resumed
    then.
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
    """Of one sampled token, from the raw logits. `top`: (id, logprob), best first."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Output:
    """What one step (or the queue) has to say of one index. Plain data; crosses threads.

    `started` marks the first time this index was scheduled; `cached_tokens` are its prefix hit.
    `finish` is set once, in the last output of the index. `stop_token_id`: the EOS or stop id that
    ended it (it is the last of token_ids). `pooled`: float32, little-endian, where that was asked
    for. `prompt_logprobs`: of the prompt's next tokens (see engine.prompt_logprobs), by index 0
    alone and before its first token.

    Times are time.monotonic(): of scheduling for `started`, else of the end of the step. `time` is
    that of the last thing said; `started_at` and `first_token_at` those of `started` and of the
    first of token_ids, whatever was joined to them since.
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
    dead_end: str | None = None  # why nothing may follow under the constraint; ended with ERROR
    pooled: bytes | None = None
    prompt_logprobs: bytes = b""

    def stamp(self, now: float) -> None:
        """All that it says, it says now."""
        self.time = self.first_token_at = self.started_at = now

    def join(self, later: "Output") -> None:
        """Put a later output of the same index behind this one."""
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
