"""The scheduler's state of one index of a request.

Its life is one number chasing another: `num_computed_tokens` (tokens whose keys and values are in
the cache) chases `num_tokens` (prompt, outputs, and a placeholder for each token that a step in
flight will sample). There is no prefill phase and no decode phase.

    token_ids        [ prompt ........ | outputs known .... ]
    num_tokens       [ prompt ........ | outputs known .... | placeholders ]
    num_computed     planned so far, steps in flight included
    num_applied      computed by steps whose results have been applied, or copied by them; only
                     what lies below it is ever known to the prefix cache

A request with n > 1 becomes n `Request`s with one key and different indices. Only the engine's
thread touches them; a runner gets numbers taken from them (`admission_row`) and nothing else.
"""

import enum
from array import array
from dataclasses import dataclass, field

from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.matching import Constrained
from quire.engine.scheduling.plan import Admission, PlanRow, SamplingNumbers, new_row
from quire.engine.scheduling.token_bytes import as_array

_SEED_STEP = 0x9E3779B97F4A7C15  # splitmix64's increment: siblings' seeds lie far apart


class Status(enum.Enum):
    """The state of a request."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """The state of one index of a submitted request."""

    spec: GenerationRequest
    index: int
    arrival: int
    constrained: Constrained | None = None

    # Derived from the spec.
    plain: bool = field(init=False)  # neither under a constraint nor pooled
    key: int = field(init=False)
    sampling: SamplingParams = field(init=False)
    ending_ids: frozenset[int] = field(init=False)
    priority: int = field(init=False)
    num_prompt_tokens: int = field(init=False)
    max_total_tokens: int = field(init=False)  # never more

    status: Status = Status.WAITING
    token_ids: "array[int]" = field(init=False)
    num_placeholders: int = 0
    num_computed_tokens: int = 0
    num_applied_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, as they are asked
    num_registered_blocks: int = 0  # of block_table, known to the prefix cache
    window_table: list[int] = field(default_factory=list)  # of windowed layers beside others
    num_passed_blocks: int = 0  # which no window sees any more: 0 stands in their columns
    prompt_logprobs_left: int = field(init=False)  # prompt tokens without one so far
    slot: int = -1
    epoch: int = 0  # raised by preemption: results planned under an older one are dropped
    in_flight: int = 0  # steps planned and not yet applied that hold this request, any epoch
    admission: int = -1  # order of the last admission; victims are the last admitted
    cached_tokens: int = -1  # prefix hit when first scheduled; -1 before
    preemptions: int = 0
    peak_blocks: int = 0
    emitted: int = 0  # outputs handed out
    leader: "Request | None" = None  # the sibling whose prompt blocks this one may fork

    def __post_init__(self) -> None:
        spec = self.spec
        self.plain = self.constrained is None and spec.pooling is None
        self.key = spec.key
        self.sampling = spec.sampling
        self.ending_ids = spec.sampling.ending_ids
        self.priority = spec.priority
        self.token_ids = as_array(spec.prompt_token_ids + spec.resume_token_ids)
        self.num_prompt_tokens = len(spec.prompt_token_ids)
        most = self.sampling.max_tokens if spec.pooling is None else 1  # which is never sampled
        self.max_total_tokens = self.num_prompt_tokens + most
        wants_logprobs = spec.prompt_logprobs is not None and self.index == 0
        self.prompt_logprobs_left = self.num_prompt_tokens - 1 if wants_logprobs else 0

    @property
    def num_tokens(self) -> int:
        """Known tokens and placeholders."""
        return len(self.token_ids) + self.num_placeholders

    @property
    def num_outputs(self) -> int:
        """Known outputs, resumed ones included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def resumes(self) -> bool:
        """Whether it goes on from outputs that its client holds already."""
        return bool(self.spec.resume_token_ids)

    @property
    def remaining(self) -> int:
        """Tokens that may be planned: the very last one is sampled, but never computed."""
        known = len(self.token_ids) + self.num_placeholders
        target = known if known < self.max_total_tokens else self.max_total_tokens - 1
        return target - self.num_computed_tokens

    def plan_next(self) -> PlanRow:
        """The decode row of its one uncomputed token, which follows the prompt."""
        start = self.num_computed_tokens
        self.num_computed_tokens = start + 1
        self.num_placeholders += 1
        self.in_flight += 1
        return new_row((self.key, self.index, self.epoch, self.slot, start, 1, True, b""))

    @property
    def num_held_blocks(self) -> int:
        """Blocks of both tables that have not been released."""
        return len(self.block_table) + len(self.window_table) - self.num_passed_blocks

    def holds_window(self, window: int, block_size: int) -> bool:
        """Whether it still has the blocks of all that its prompt's last token sees."""
        last = self.num_prompt_tokens - 1
        first = max(last + 1 - window, 0) // block_size
        return all((self.window_table or self.block_table)[first : last // block_size + 1])

    def admission_row(self) -> Admission:
        """What to write into the slot that this request has just been given."""
        known, prompt = self.token_ids, self.num_prompt_tokens
        sampling = self._sampling_numbers()
        counted = tuple(known) if sampling.has_penalties else ()
        return Admission(
            self.key,
            self.index,
            self.slot,
            known[-1],
            self.num_computed_tokens,
            sampling,
            counted[:prompt],
            counted[prompt:],
        )

    def _sampling_numbers(self) -> SamplingNumbers:
        params = self.sampling
        seed = (params.seed + self.index * _SEED_STEP) % (1 << 64)
        return SamplingNumbers.of(
            params,
            seed=seed - (1 << 64) if seed >= 1 << 63 else seed,
            min_position=self.num_prompt_tokens + params.min_tokens - 1,
            ending_ids=tuple(sorted(self.ending_ids)) if params.min_tokens > 1 else (),
        )
