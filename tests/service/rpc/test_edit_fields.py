"""What is refused of logit_bias, allowed_token_ids and banned_token_ids, and what they do."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from support.fake_engine import EOS, VOCAB_SIZE
from support.harness import ask, generate, run, serving

MANY = list(range(1025))
REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"logit_bias": {5: 100.5}}, "sampling.logit_bias[5]", "100.5: must be between -100 and 100"),
    ({"logit_bias": {5: float("nan")}}, "sampling.logit_bias[5]", "nan: must be between"),
    ({"logit_bias": {VOCAB_SIZE: 1.0}}, f"sampling.logit_bias[{VOCAB_SIZE}]", "has 4096 ids"),
    ({"logit_bias": dict.fromkeys(MANY, 1.0)}, "sampling.logit_bias", "1025: at most 1024"),
    ({"allowed_token_ids": MANY}, "sampling.allowed_token_ids", "1025: at most 1024 token ids"),
    ({"allowed_token_ids": [3, VOCAB_SIZE]}, "sampling.allowed_token_ids[1]", "has 4096 ids"),
    ({"banned_token_ids": MANY}, "sampling.banned_token_ids", "1025: at most 1024 token ids"),
    ({"banned_token_ids": [VOCAB_SIZE]}, "sampling.banned_token_ids[0]", "has 4096 ids"),
    (
        {"allowed_token_ids": [3, 4], "banned_token_ids": [4, 3, 9]},
        "sampling.allowed_token_ids",
        "all of them are in banned_token_ids",
    ),
    (
        {"allowed_token_ids": [EOS], "min_tokens": 4},
        "sampling.allowed_token_ids",
        "all of them end the output, which min_tokens = 4 forbids",
    ),
)


@pytest.mark.parametrize(("sampling", "field", "words"), REFUSED)
def test_it_is_refused_with_field_value_and_limit(
    sampling: dict[str, Any], field: str, words: str
) -> None:
    async def test() -> None:
        async with serving() as running:
            request = ask(max_tokens=8, **sampling)
            request.token_ids.ids[:] = [5, 6]
            answer = await generate(running, request)
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            (violation,) = answer.rich(error_details_pb2.BadRequest).field_violations
            assert violation.field == field
            assert words in violation.description

    run(test)
