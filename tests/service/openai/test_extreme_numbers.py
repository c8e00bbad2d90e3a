"""Finite numbers at the end of what JSON and floats hold: refused by name, in both APIs."""

from typing import Any

import openai
import pytest
from support.harness import ask, generate, run, serving

HUGE32 = 3.0e38  # the contract's field is a float; a client of ours refuses what it cannot hold
FIELDS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
          "frequency_penalty")  # fmt: skip
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ROUNDED = {"temperature": 100.00001, "top_p": 1.0000001, "frequency_penalty": -2.0000002}
TINY = {"temperature": 1e-308, "top_p": 1e-308, "min_p": 1e-308, "repetition_penalty": 1e-308}


def test_huge_numbers_are_refused_over_grpc() -> None:
    async def test() -> None:
        async with serving() as running:
            for name in FIELDS:
                for value in (HUGE32, -HUGE32):
                    answer = await generate(running, ask(text="Hi", **{name: value}))
                    assert answer.violations.keys() == {f"sampling.{name}"}, answer

    run(test)


def test_what_is_just_out_of_range_is_not_told_as_its_end() -> None:
    async def test() -> None:
        async with serving() as running:
            for name, value in ROUNDED.items():
                answer = await generate(running, ask(text="Hi", **{name: value}))
                told = float(answer.violations[f"sampling.{name}"].partition(":")[0])
                assert told == pytest.approx(value, rel=1e-6) and told not in (100.0, 1.0, -2.0)

    run(test)


def test_huge_numbers_are_refused_over_http() -> None:
    async def test() -> None:
        async with (
            serving(http=True) as running,
            openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as api,
        ):
            for name in (*FIELDS, "logit_bias[7]"):
                for value in (1e308, -1e308, 3.5e38, HUGE32, 10**39):
                    body = {"logit_bias": {"7": value}} if "[" in name else {name: value}
                    with pytest.raises(openai.BadRequestError) as caught:
                        await api.chat.completions.create(
                            model="fake", messages=HELLO, extra_body=body
                        )
                    assert caught.value.param == name, (name, value, caught.value.body)
                    assert f"{name}: {value}" in caught.value.message
            told = await api.chat.completions.create(
                model="fake", messages=HELLO, max_tokens=3, extra_body=TINY
            )
            assert told.choices[0].finish_reason == "length"

    run(test)
