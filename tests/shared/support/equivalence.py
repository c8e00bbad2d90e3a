"""What tests of equivalence compare: models, requests, and what each request gets alone.

The reference is a request alone, whole, uncached, in the plain loop, in fp32. Sums of other shapes
round differently, so a difference is allowed where the reference itself hung by less than MARGIN
(noise and temperature included); BOOKS counts such places.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from support.small_engine import (
    FAMILIES,
    Outcome,
    Setup,
    WatchedOps,
    build_core,
    load_model,
    model_config,
    run,
)

from quire.engine.loop.core import EngineCore
from quire.engine.model.base import CausalModel
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams

MARGIN = 1e-4
FP8_MARGIN = 0.02  # a rounding of fp32 may move an activation, or a key, by a whole step of e4m3
MAX_TOKENS = 17
MODELS = {
    "grouped, tied": model_config(),
    "untied, yarn": model_config(q_heads=6, kv_heads=1, head_dim=8, tied=False, yarn=True),
}
SAMPLINGS = {
    "greedy": SamplingParams(max_tokens=MAX_TOKENS),
    "penalised": SamplingParams(
        max_tokens=MAX_TOKENS,
        repetition_penalty=1.3,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        min_tokens=5,
        stop_token_ids=(7,),
    ),
    "seeded": SamplingParams(max_tokens=MAX_TOKENS, temperature=0.9, seed=11),
    "filtered": SamplingParams(
        max_tokens=MAX_TOKENS, temperature=1.2, top_k=40, top_p=0.9, min_p=0.01, seed=5
    ),
}
LENGTHS = (1, 4, 5, 17, 23, 32)
CHUNKS = (1, 4, 7, 17)  # a token, a block, what divides no length, more than most prompts


def long(case: object) -> Any:
    """A case that the shorter run leaves out."""
    return pytest.param(case, marks=pytest.mark.long)


@dataclass(slots=True)
class Books:
    """What all comparisons of the module add up to."""

    compared: int = 0
    excused: int = 0
    smallest: float = float("inf")
    notes: list[str] = field(default_factory=list)


BOOKS = Books()


def prompts() -> list[tuple[int, ...]]:
    """Prompts of the lengths around block boundaries; the later ones share the first ones' text."""
    text = [(37 * i * i + 11 * i) % 383 + 1 for i in range(64)]
    whole = [tuple(text[:length]) for length in LENGTHS]
    return [*whole, (*text[:16], 3, 1, 4), (*text[:16], 1, 5)]


def requests(sampling: SamplingParams) -> list[GenerationRequest]:
    return [GenerationRequest(key, prompt, sampling) for key, prompt in enumerate(prompts())]


@cache
def model_of(name: str) -> tuple[CausalModel, WatchedOps]:
    return load_model((MODELS | FAMILIES)[name], seed=3)


def core_of(name: str, setup: Setup) -> EngineCore:
    """An engine over a model, with the cache that its name says."""
    if name.startswith("fp8 cache"):
        setup = replace(setup, cache_dtype=torch.float8_e4m3fn)
    return build_core(*model_of(name), setup)


@cache
def reference(name: str, kind: str) -> dict[int, tuple[list[int], list[float]]]:
    """Of each request alone: its tokens, and by how much each was chosen."""
    _, ops = model_of(name)
    alone = {}
    for request in requests(SAMPLINGS[kind]):
        with ops.watched() as margins:
            outcome = run(core_of(name, Setup()), [request])[request.key, 0]
        assert len(margins) == len(outcome.token_ids)
        alone[request.key] = outcome.token_ids, margins
        BOOKS.smallest = min(BOOKS.smallest, *margins)
    return alone


def serve(
    name: str, specs: Sequence[GenerationRequest], setup: Setup
) -> dict[tuple[int, int], Outcome]:
    return run(core_of(name, setup), specs)


def compare(tokens: list[int], expected: list[int], margins: list[float], what: str) -> None:
    """Equal, token for token, up to the first place where the reference itself hung by a hair."""
    for place, (token, wanted) in enumerate(zip(tokens, expected, strict=False)):
        if token != wanted:
            most = FP8_MARGIN if what.startswith("fp8") else MARGIN
            assert margins[place] < most, f"{what}: token {place} is {token}, not {wanted}"
            BOOKS.excused += 1
            BOOKS.notes.append(what)
            return
        BOOKS.compared += 1
    assert len(tokens) == len(expected), what


def check_all(name: str, kind: str, outcomes: dict[tuple[int, int], Outcome], what: str) -> None:
    for key, (expected, margins) in reference(name, kind).items():
        outcome = outcomes[key, 0]
        assert outcome.finish in (FinishReason.LENGTH, FinishReason.STOP)
        compare(outcome.token_ids, expected, margins, f"{name}, {kind}, {what}, request {key}")


LENGTHS_OF_CHUNKS = [n if n in CHUNKS else long(n) for n in range(1, 18)]
every_model = pytest.mark.parametrize("name", MODELS)
every_sampling = pytest.mark.parametrize("kind", SAMPLINGS)


def spread(names: str, *axes: Iterable[Any]) -> pytest.MarkDecorator:
    """All cases of several axes, of which the shorter run takes every second one that is not
    `long` anyway. Of three axes or more, each two values still meet."""
    cases = []
    for places in product(*(enumerate(axis) for axis in axes)):
        values = [getattr(value, "values", (value,))[0] for _, value in places]
        brief = all(value in values for _, value in places)  # none of them is long
        even = sum(place for place, _ in places) % 2 == 0
        cases.append(pytest.param(*values, marks=() if brief and even else pytest.mark.long))
    return pytest.mark.parametrize(names, cases)
