"""A CPU's runner that keeps graphs as a GPU's does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from support.small_engine import Outcome, Setup, build_core, load_model, model_config

from quire.engine.loop.core import EngineCore
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner.graphs import (
    Done,
    GraphKey,
    Key,
)

SETUP = Setup(max_num_seqs=7, max_num_batched_tokens=96, block_size=4)


GREEDY = SamplingParams(max_tokens=12)


SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": replace(GREEDY, temperature=0.9, seed=4),
    "filtered": replace(GREEDY, temperature=0.9, top_k=30, top_p=0.9, min_p=0.02, seed=4),
    "penalised": replace(GREEDY, repetition_penalty=1.4, frequency_penalty=0.3, min_tokens=4),
    "logprobs": replace(GREEDY, logprobs=3),
}


class Kept:
    """Steps kept as closures. `fails`: keys whose capture does not work."""

    def __init__(self, fails: Callable[[Key], bool] = lambda _key: False) -> None:
        self.steps: dict[Key, Callable[[], Done] | None] = {}
        self.replays: list[Key] = []
        self.tried: list[tuple[Key, bool]] = []
        self._fails = fails

    def __contains__(self, key: Key) -> bool:
        return key in self.steps

    def replay(self, key: Key) -> Done | None:
        step = self.steps.get(key)
        if step is None:
            return None
        self.replays.append(key)
        return step()

    def capture(self, key: Key, step: Callable[[], Done], *, ran: bool = True) -> None:
        assert key not in self.steps, "captured twice"
        self.tried.append((key, ran))
        if not self._fails(key):
            self.steps[key] = step
        elif ran:
            self.steps[key] = None

    @property
    def models(self) -> list[GraphKey]:
        """Of what was replayed, the steps and models' parts."""
        return [key for key in self.replays if isinstance(key, GraphKey)]


MODEL = load_model(model_config(), seed=2)


def core_with(kept: Kept | None, setup: Setup = SETUP) -> EngineCore:
    core = build_core(*MODEL, setup)
    core.runner._graphs = kept  # type: ignore[attr-defined]
    return core


def requests(params: SamplingParams, count: int = 7) -> list[GenerationRequest]:
    """Some of one token, some around block boundaries."""
    lengths = (1, 3, 4, 5, 9, 1, 16)
    return [
        GenerationRequest(key, tuple((key * 29 + i * 7) % 383 + 1 for i in range(lengths[key])), p)
        for key, p in enumerate([params] * count)
    ]


def staggered(core: EngineCore, specs: list[GenerationRequest]) -> dict[int, Any]:
    """Arrivals two turns apart, so that prompts ride beside decode rows."""
    waiting, tokens, turn = list(specs), {}, 0
    while waiting or core.scheduler.has_requests:
        if waiting and turn % 2 == 0:
            core.scheduler.submit(waiting.pop(0))
        for output in core.step():
            assert output.error_id is None
            tokens.setdefault(output.key, []).extend(output.token_ids)
            tokens.setdefault(("logprobs", output.key), []).extend(output.logprobs or [])
        turn += 1
    return tokens


# ---------------------------------------------------------------- padded = exact


def texts(outcomes: dict[tuple[int, int], Outcome]) -> dict[tuple[int, int], list[int]]:
    return {key: outcome.token_ids for key, outcome in outcomes.items()}
