"""Sampling that is asked for again is not read again, and what has faults or lists always is."""

from typing import Any

import pytest
from support.fake_engine import VOCAB_SIZE
from support.harness import run, serving

from quire.service.rpc import sampling as sampling_module
from quire.service.rpc.field_faults import Faults
from quire.service.rpc.sampling import Sampling
from quire.v1 import inference_pb2 as pb


def looked(test: Any) -> None:
    """Run `test` with the Sampling of a server."""

    async def with_server() -> None:
        async with serving() as running:
            now = running.server._servicer.serving
            assert now is not None
            test(now.validator._sampling)

    run(with_server)


def faults_of(sampling: Sampling, **asked: Any) -> list[str]:
    faults = Faults()
    sampling.check(sampling.asked(pb.SamplingParams(**asked)), faults)
    return [fault.field for fault in faults.found]


def is_known(sampling: Sampling, **asked: Any) -> bool:
    return sampling.asked(pb.SamplingParams(**asked)).values is not None


def test_what_is_asked_for_again_is_the_same() -> None:
    plain = {"temperature": 0.5, "top_k": VOCAB_SIZE, "n": 2, "logprobs": 3, "ignore_eos": True}

    def test(sampling: Sampling) -> None:
        first = sampling.asked(pb.SamplingParams(**plain))
        made, _ = sampling.params(first, 8)
        assert faults_of(sampling, **plain) == [] and not is_known(sampling, temperature=0.25)
        again = sampling.asked(pb.SamplingParams(**plain))
        assert again.values is not None and again.given == first.given
        known, _ = sampling.params(again, 8)
        assert known.top_k == 0 and known.max_tokens == made.max_tokens
        known.seed = made.seed
        assert known == made

    looked(test)


def test_each_request_has_its_own_seed_and_as_many_tokens_as_its_prompt_leaves() -> None:
    def test(sampling: Sampling) -> None:
        seeds, most = set(), []
        for prompt in (8, 9, 8):
            assert faults_of(sampling, top_p=0.5) == []
            params, _ = sampling.params(sampling.asked(pb.SamplingParams(top_p=0.5)), prompt)
            seeds.add(params.seed)
            most.append(params.max_tokens)
        assert len(seeds) == 3 and most == [most[0], most[0] - 1, most[0]]

    looked(test)


def test_what_has_a_fault_is_refused_each_time() -> None:
    def test(sampling: Sampling) -> None:
        for _ in range(3):
            assert faults_of(sampling, temperature=-1, n=65) == [
                "sampling.temperature",
                "sampling.n",
            ]

    looked(test)


@pytest.mark.parametrize(
    "asked",
    [
        {"stop": ["x"]},
        {"stop_token_ids": [3]},
        {"logit_bias": {3: 1.0}},
        {"allowed_token_ids": [3]},
        {"banned_token_ids": [3], "temperature": 1.0},
    ],
)
def test_what_has_lists_is_read_each_time(asked: dict[str, Any]) -> None:
    def test(sampling: Sampling) -> None:
        assert faults_of(sampling, **asked) == []
        assert not is_known(sampling, **asked)

    looked(test)


def test_few_are_kept_and_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "_MOST_KNOWN", 2)

    def test(sampling: Sampling) -> None:
        sampling._known.clear()
        for seed in (1, 2, 3):
            assert faults_of(sampling, seed=seed) == []
        assert [is_known(sampling, seed=seed) for seed in (1, 2, 3)] == [False, True, True]

    looked(test)
