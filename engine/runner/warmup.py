"""The steps that are run before an engine serves: no kernel is compiled while requests wait.

Invariant: each kernel of any step that a scheduler may plan, however padded, is launched by one of
`warm_steps` too. `kernels/launches.py` tells a step's kernels from its sizes alone. It is asked
here about every size at which its answer may change, and a step is kept if it brings a kernel that
no step before it did. Steps run on null rows, so that no slot moves.

The list is plain data: what it warms, another process can compile from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from quire.engine.config import EngineConfig
from quire.engine.model.base import CausalModel
from quire.engine.model.load_config import resolve_max_model_len
from quire.engine.runner.graphs import PROMPT_TOKENS, most_rows
from quire.engine.runner.inputs import MixedShape, stage_rows
from quire.engine.runner.sampler import Needs
from quire.engine.runner.staging import Staging
from quire.engine.scheduling.token_bytes import packed

if TYPE_CHECKING:  # kernels need triton, which a machine without a GPU may lack
    from quire.kernels.attention.decode_launch import Heads
    from quire.kernels.launches import Card, Mixture, Name

_EVERY_SIZE = 512  # tokens, up to which each number is asked about; beyond, each _STRIDE-th
_STRIDE = 64
_SHORT_CONTEXT = 256  # tokens, up to which attention never splits a context
_NEEDS = (
    Needs(),
    Needs(draws=True),
    Needs(draws=True, filters=True),
    Needs(adjusts=True),
    Needs(logprobs=True),
    Needs(True, True, True, True),
    Needs(masks=True),
)


@dataclass(frozen=True)
class Bounds:
    """What steps may be: the engine's options, and this rank's heads. qk_norm, mixture, ranks,
    exact: see `of_model`."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    heads: "Heads"
    card: "Card"
    qk_norm: bool = True
    mixture: "Mixture | None" = None
    ranks: int = 1
    exact: bool = False


class WarmStep(NamedTuple):
    """One step on null rows. longer: tokens of each row that is no decode row."""

    decode_rows: int
    longer: tuple[int, ...]
    max_context_len: int
    needs: Needs = Needs()

    @classmethod
    def of(cls, shape: MixedShape) -> "WarmStep":
        """One of this shape, its longer rows about as long as one another."""
        longer = _spread(shape.prefill_tokens, shape.prefill_rows)
        return cls(shape.decode_rows, longer, max(longer))

    @property
    def shape(self) -> MixedShape:
        return MixedShape(self.decode_rows, len(self.longer), sum(self.longer))


def warm_steps(bounds: Bounds) -> tuple[WarmStep, ...]:
    """The steps to run, few, that launch whatever can be launched."""
    kept: list[WarmStep] = []
    known: set[Name] = set()
    for step in _candidates(bounds):
        names = names_of(step, bounds)
        if not names <= known:
            known |= names
            kept.append(step)
    return tuple(kept)


def names_of(step: WarmStep, bounds: Bounds) -> "set[Name]":
    """Every kernel of a step: the model's, the sampler's, and what moves the slots on."""
    from quire.kernels import launches

    size = launches.StepSize(step.decode_rows, step.longer, step.max_context_len)
    names = launches.of_model(
        size,
        bounds.heads,
        bounds.card,
        qk_norm=bounds.qk_norm,
        mixture=bounds.mixture,
        ranks=bounds.ranks,
        exact=bounds.exact,
    )
    needs = step.needs
    names.add(("sample",) if needs.draws else ("greedy",))
    names.add(("advance", bool(step.longer), needs.adjusts))
    asked = {"filters": needs.filters, "adjusts": needs.adjusts, "logprobs": needs.logprobs}
    return names | {(name,) for name, wanted in asked.items() if wanted}


def bounds_of(
    config: EngineConfig,
    model: CausalModel,
    card: "Card",
    *,
    exact: bool = False,
) -> Bounds:
    """What steps of an engine may be."""
    from quire.kernels.attention.decode_launch import Heads
    from quire.kernels.launches import Mixture

    shape, experts, ranks = model.config, model.config.experts, config.tensor_parallel_size
    q_heads, kv_heads = shape.num_q_heads // ranks, model.num_kv_heads
    held = model.dtype, config.block_size, config.fp8_cache
    heads = Heads(q_heads, kv_heads, shape.head_dim, *held)
    longest = resolve_max_model_len(config, shape)
    most = config.max_num_seqs, config.step_tokens(), longest
    mixture = None if experts is None else Mixture(experts.count, experts.per_token)
    return Bounds(*most, heads, card, model.qk_norm, mixture, ranks, exact)


def upload_null(staging: Staging, step: WarmStep, null_slot: int) -> None:
    """Upload a step of null rows that all sample."""
    lens = [1] * step.decode_rows + list(step.longer)
    every, tokens = range(len(lens)), packed([0] * sum(lens))
    staging.begin()
    stage_rows(staging, step.decode_rows, [null_slot] * len(lens), lens, tokens, every, every)
    staging.upload()


def _candidates(bounds: Bounds) -> Iterator[WarmStep]:
    """Steps at every size where a kernel may change, the plainest first."""
    longest = bounds.max_model_len
    for rows in range(1, bounds.max_num_seqs + 1):
        yield WarmStep(rows, (), longest)
    for needs in _NEEDS:
        yield WarmStep(1, (), longest, needs)
    for longer in _longer_rows(bounds):
        yield WarmStep(0, longer, longest)
        if max(longer) <= _SHORT_CONTEXT:
            yield WarmStep(0, longer, max(longer))
    yield WarmStep(0, (1,), longest, Needs(adjusts=True))
    for rows in range(1, bounds.max_num_seqs + 1):
        yield WarmStep(rows, (1,), longest)


def _longer_rows(bounds: Bounds) -> Iterator[tuple[int, ...]]:
    """Prompts beside one another: each number of tokens in as few rows as hold it, in short ones
    and others; and each number of rows."""
    from quire.kernels.attention.prefill_launch import FEW_ROWS

    most = max(bounds.max_num_batched_tokens, bounds.max_num_seqs + PROMPT_TOKENS[-1])  # padded
    for tokens in _sizes(most):
        rows = -(-tokens // bounds.max_model_len)
        yield _spread(tokens, rows)
        left = tokens - FEW_ROWS
        if left > 0:  # beside so many, short ones are launched apart
            yield (1,) * FEW_ROWS + _spread(left, -(-left // bounds.max_model_len))
    for rows in _sizes(most_rows(bounds.max_num_seqs)):
        yield (1,) * rows


def _sizes(most: int) -> Iterator[int]:
    yield from range(1, min(most, _EVERY_SIZE) + 1)
    yield from range(_EVERY_SIZE + _STRIDE, most, _STRIDE)
    yield most


def _spread(tokens: int, rows: int) -> tuple[int, ...]:
    """So many tokens over so many rows, the longest first."""
    return tuple(tokens // rows + (row < tokens % rows) for row in range(rows))
