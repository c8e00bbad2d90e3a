"""Small requests over a scheduler, and what its plans say."""

from collections.abc import Sequence
from dataclasses import replace

from support.simulation import Shape
from support.simulator import Simulator
from support.toy_device import EOS, Oracle

from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.plan import StepPlan

PROMPT = (1, 2, 1, 1, 2, 2, 1, 2, 1, 2)


def spec(
    key: int,
    prompt: Sequence[int] = PROMPT,
    max_tokens: int = 4,
    *,
    n: int = 1,
    priority: int = 0,
    client: str = "",
    resume: Sequence[int] = (),
    salt: bytes = b"",
    **sampling: object,
) -> GenerationRequest:
    params = SamplingParams(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return GenerationRequest(key, tuple(prompt), params, n, priority, salt, tuple(resume), client)


def build(**shape: object) -> Simulator:
    return Simulator(replace(Shape(depth=0), **shape))  # type: ignore[arg-type]


def last_plan(simulator: Simulator) -> StepPlan:
    return simulator.in_flight[-1][0]


def stopping_spec(key: int, outputs: int, **more: object) -> tuple[GenerationRequest, int]:
    """A request that meets EOS after at least `outputs` tokens, well before max_tokens."""
    for seed in range(1000):
        candidate = spec(key, max_tokens=24, seed=seed, eos_token_ids=(EOS,), **more)  # type: ignore[arg-type]
        length = len(Oracle(candidate, 0, Shape().vocab).expected)
        if outputs <= length <= 12:
            return candidate, length
    raise AssertionError("no seed found")
