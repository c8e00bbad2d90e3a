"""Answers under constraints, by the embedded model over a real channel."""

import asyncio
import json
import random
import re
from typing import Any

import grpc
import jsonschema
import pytest
from support.harness import Answer, ask, generate, run
from support.pocket_server import pocket

from quire.service.constraints import grammars
from quire.v1 import inference_pb2 as pb

STOP, LENGTH = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH


def constrained(seed: int = 0, **fields: Any) -> pb.GenerateRequest:
    """A chat whose answer has a constraint: given by its kind."""
    names = ("json_schema", "json_object", "regex", "grammar", "choice")
    kind = {name: fields.pop(name) for name in names if name in fields}
    if "choice" in kind:
        kind["choice"] = pb.Choice(options=kind["choice"])
    defaults = {"temperature": 0.8, "max_tokens": 120}
    request = ask(constraint=pb.Constraint(**kind), seed=seed, **{**defaults, **fields})
    request.chat.messages.add(role="user", content=f"Tell me a short story about cat {seed}.")
    return request


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Of bounded answers, so that most of them end."""
    leaves: list[dict[str, Any]] = [
        {"type": "integer", "minimum": 0, "maximum": rng.choice([9, 99, 1000])},
        {"type": "boolean"},
        {"type": "string", "maxLength": rng.randint(1, 8)},
        {"type": "string", "pattern": f"^[a-c]{{1,{rng.randint(1, 5)}}}$"},
        {"enum": ["red", "green", 7, None, True][: rng.randint(1, 5)]},
        {"const": {"a": [1, 2]}},
    ]
    if depth == 2 or rng.random() < 0.4:
        return rng.choice(leaves)
    if rng.random() < 0.3:
        items = random_schema(rng, depth + 1)
        return {"type": "array", "items": items, "minItems": 1, "maxItems": rng.randint(1, 3)}
    if rng.random() < 0.2:
        return {"anyOf": [random_schema(rng, depth + 1), random_schema(rng, depth + 1)]}
    names = [f"key{i}" for i in range(rng.randint(1, 3))]
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": names[: rng.randint(1, len(names))],
        "additionalProperties": False,
    }


def test_the_vocabulary_is_read_before_anyone_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server and by the engine, and by neither when the first constraint comes."""
    read, reader = [], grammars._Tokens
    monkeypatch.setattr(grammars, "_Tokens", lambda given: read.append(given) or reader(given))

    async def test() -> None:
        async with pocket() as running:
            await generate(running, ask(text="Hi", max_tokens=1))  # which the engine hears of later
            assert len(read) == 2
            answer = await generate(running, constrained(choice=["yes", "no"]))
            assert answer.text() in ("yes", "no") and len(read) == 2

    run(test)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_what_ends_under_a_random_schema_is_valid_for_it(count: int) -> None:
    schemas = [random_schema(random.Random(seed)) for seed in range(count)]

    async def test() -> None:
        async with pocket() as running:
            requests = [
                constrained(seed, json_schema=json.dumps(schema))
                for seed, schema in enumerate(schemas)
            ]
            answers = await asyncio.gather(*(generate(running, one) for one in requests))
        ended = 0
        for schema, answer in zip(schemas, answers, strict=True):
            assert answer.code is grpc.StatusCode.OK, answer.details
            if answer.finished[0].reason == STOP:
                ended += 1
                jsonschema.validate(json.loads(answer.text()), schema)
        assert ended >= 0.95 * count

    run(test)


KINDS: dict[str, dict[str, Any]] = {
    "regex": {"regex": r"[a-z]{3,8}@[a-z]{2,5}\.(com|org)"},
    "choice": {"choice": ["yes, by all means", "no", 'ünsure "quoted"\n']},
    "grammar": {
        "grammar": 'start: greeting " " NAME\ngreeting: "hi" | "hello"\nNAME: /[A-Z][a-z]+/'
    },
    "json_object": {"json_object": True},
    "json_schema": {
        "json_schema": '{"type": "array", "items": {"enum": [3, 40]}, "minItems": 2, "maxItems": 9}'
    },
}


def check(kind: str, text: str) -> None:
    if kind == "regex":
        assert re.fullmatch(KINDS[kind]["regex"], text)
    elif kind == "choice":
        assert text in KINDS[kind]["choice"]
    elif kind == "grammar":
        assert re.fullmatch("(hi|hello) [A-Z][a-z]+", text)
    elif kind == "json_object":
        assert isinstance(json.loads(text), dict)
    else:
        assert all(isinstance(one, int) for one in json.loads(text))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_holds(kind: str) -> None:
    async def test() -> None:
        async with pocket() as running:
            request = constrained(3, n=4, max_tokens=200, **KINDS[kind])
            answer = await generate(running, request)
            assert answer.code is grpc.StatusCode.OK, answer.details
            ends = {one.index: one.reason for one in answer.finished}
            assert len(ends) == 4 and set(ends.values()) <= {STOP, LENGTH}
            ended = [index for index, reason in ends.items() if reason == STOP]
            assert ended or kind == "json_object"
            for index in ended:
                check(kind, answer.text(index))

    run(test)


MIXED: list[dict[str, Any]] = [
    {**kind, **more}
    for kind in KINDS.values()
    for more in ({}, {"repetition_penalty": 1.2, "logprobs": 2, "top_p": 0.9})
]


def said(answer: Answer) -> tuple[Any, ...]:
    return answer.code, answer.ids(), answer.text(), [one.reason for one in answer.finished]


@pytest.fixture(scope="module")
def alone() -> list[Answer]:
    """Each answer on an idle engine without overlap."""
    answers: list[Answer] = []

    async def test() -> None:
        async with pocket(overlap=False, enable_prefix_caching=False) as running:
            for seed, fields in enumerate(MIXED):
                answers.append(await generate(running, constrained(seed, max_tokens=48, **fields)))

    run(test)
    return answers


def test_in_a_crowd_and_preempted_each_gets_what_it_gets_alone(alone: list[Answer]) -> None:
    async def test() -> None:
        async with pocket(num_blocks=14, max_num_batched_tokens=64) as running:
            free = [ask(text=f"Once {i}", max_tokens=100, temperature=1, seed=i) for i in range(6)]
            crowd = [
                constrained(seed, max_tokens=48, **fields) for seed, fields in enumerate(MIXED)
            ]
            answers = await asyncio.gather(*(generate(running, one) for one in (*crowd, *free)))
            assert [said(one) for one in answers[: len(crowd)]] == [said(one) for one in alone]
            stats = await running.idle()
            assert stats.cache.preemptions > 0

    run(test)


def test_resumed_anywhere_it_goes_on_as_if_unbroken(alone: list[Answer]) -> None:
    async def test() -> None:
        async with pocket() as running:
            for seed, (fields, whole) in enumerate(zip(MIXED, alone, strict=True)):
                ids = whole.ids()
                cuts = sorted({1, 2, len(ids) // 2, len(ids) - 1} - {0})
                asked = [
                    constrained(seed, max_tokens=48, resume_token_ids=ids[:cut], **fields)
                    for cut in cuts
                ]
                rests = await asyncio.gather(*(generate(running, one) for one in asked))
                for cut, rest in zip(cuts, rests, strict=True):
                    assert rest.code is grpc.StatusCode.OK, rest.details
                    assert ids[:cut] + rest.ids() == ids
                    assert rest.finished[0].reason == whole.finished[0].reason

    run(test)


def test_ids_that_do_not_fit_cannot_be_resumed() -> None:
    async def test() -> None:
        async with pocket() as running:
            request = constrained(regex="[0-9]+", resume_token_ids=[60, 61, 62])
            answer = await generate(running, request)
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "do not fit the constraint" in answer.violations["resume_token_ids"]

    run(test)


def test_an_end_is_made_only_where_the_text_may_end_and_min_tokens_have_come() -> None:
    async def test() -> None:
        async with pocket() as running:
            for seed in range(6):
                answer = await generate(
                    running, constrained(seed, regex="(ab)*", min_tokens=9, max_tokens=40)
                )
                assert re.fullmatch("(ab)*a?", answer.text())
                if answer.finished[0].reason == STOP:
                    assert re.fullmatch("(ab)*", answer.text())
                    assert len(answer.ids()) >= 9

    run(test)


def test_where_nothing_may_follow_it_ends_whatever_min_tokens_says() -> None:
    async def test() -> None:
        async with pocket() as running:
            answer = await generate(running, constrained(choice=["no"], min_tokens=30))
            assert answer.text() == "no"
            assert answer.finished[0].reason == STOP
            assert answer.finished[0].WhichOneof("matched") is None
            answer = await generate(running, constrained(regex="[ab]{4}", ignore_eos=True))
            assert re.fullmatch("[ab]{4}", answer.text())
            assert answer.finished[0].reason == STOP

    run(test)


def test_a_row_that_can_neither_go_on_nor_end_ends_alone_with_an_error() -> None:
    async def test() -> None:
        async with pocket() as running:
            digits = [
                i for i, p in enumerate(tokens(running)) if p and set(p) <= set(b"0123456789")
            ]
            doomed = constrained(regex="[0-9]{3}x", banned_token_ids=ids_with(running, b"x"))
            doomed.sampling.logit_bias[digits[0]] = 0.0
            other = constrained(regex="[0-9]{30}")
            first, second = await asyncio.gather(
                generate(running, doomed), generate(running, other)
            )
            assert first.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "no token that the request allows" in first.violations["constraint.regex"]
            assert first.finished[0].reason == pb.FINISH_REASON_ERROR
            assert second.code is grpc.StatusCode.OK
            assert re.fullmatch("[0-9]{30}", second.text())
            await running.idle()

    run(test)


def test_in_a_process_of_its_own_the_engine_says_the_same(alone: list[Answer]) -> None:
    async def test() -> None:
        async with pocket(own_process=True) as running:
            requests = [
                constrained(seed, max_tokens=48, **fields) for seed, fields in enumerate(MIXED)
            ]
            answers = await asyncio.gather(*(generate(running, one) for one in requests))
            assert [said(one) for one in answers] == [said(one) for one in alone]

    run(test)


def tokens(running: Any) -> Any:
    return running.server._servicer.serving.model.tokenizer.pieces


def ids_with(running: Any, part: bytes) -> list[int]:
    """Ids that could write a part where it stands first."""
    return [i for i, piece in enumerate(tokens(running)) if piece.startswith(part)]


def test_logprobs_are_raw_under_a_constraint() -> None:
    async def test() -> None:
        async with pocket() as running:
            free = constrained(5, json_object=True, max_tokens=1, logprobs=3)
            free.ClearField("constraint")
            bound = constrained(5, json_object=True, max_tokens=1, logprobs=3)
            answers = [await generate(running, one) for one in (free, bound)]
            first, second = (one.deltas[0].logprobs[0] for one in answers)
            assert [one.token_id for one in first.top] == [one.token_id for one in second.top]
            for one, other in zip(first.top, second.top, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert second.rank > 1 and second.bytes.startswith(b"{")

    run(test)
