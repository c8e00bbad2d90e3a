"""Each field of SamplingParams goes the whole way: what the contract takes is honoured, and refused
where it cannot be, over every API. `docs/extending.md` tells of the way.

They would catch a field that was added to the contract and left out further on: it would be
accepted, and ignored.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from quire.clients.openai import chat
from quire.clients.prompts import SAMPLING_FIELDS, Options, build_request
from quire.engine.request import SamplingParams
from quire.service.rpc.field_faults import OPEN_RANGES, RANGES
from quire.service.rpc.sampling import OUR_OWN
from quire.v1 import inference_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
FIELDS = sorted(SAMPLING_FIELDS)
# Whole numbers of which any will do: 0 is all, and what is too many the model's length says.
WITHOUT_RANGE = {"top_k", "seed", "min_tokens", "max_tokens"}
BODIES: dict[
    str, dict[str, Any]
] = {  # OpenAI's bodies, where a field has no single one of its name
    "logprobs": {"logprobs": True, "top_logprobs": 2},
}


def value_of(name: str) -> Any:
    """Something that such a field can hold, and that is not what an unset one holds."""
    empty = getattr(pb.SamplingParams(), name)
    if name == "logit_bias":
        return {7: 0.5}
    if isinstance(empty, bool | int | float):
        return {bool: True, int: 1, float: 0.5}[type(empty)]
    return ["x"] if name == "stop" else [7]


def test_the_engine_takes_what_the_service_does_not_see_to() -> None:
    known = {field.name for field in dataclasses.fields(SamplingParams)} - {"eos_token_ids"}
    assert set(FIELDS) - OUR_OWN == known, "engine/request.py and service/rpc/sampling.py"


def test_every_number_has_a_range() -> None:
    empty = pb.SamplingParams()
    numbers = {name for name in FIELDS if type(getattr(empty, name)) in (int, float)}
    ranges = {*RANGES, *OPEN_RANGES, *WITHOUT_RANGE}
    assert numbers == ranges, "service/rpc/field_faults.py says each number's range"


def test_the_client_s_keywords_are_the_contract_s() -> None:
    """So that an editor and mypy know them."""
    keywords = {
        *SAMPLING_FIELDS,
        *pb.Chat.DESCRIPTOR.fields_by_name,
        *pb.GenerateRequest.DESCRIPTOR.fields_by_name,
    } - {"text", "token_ids", "chat", "messages", "sampling"}
    assert keywords == set(Options.__annotations__), "Options, in clients/prompts.py"


@pytest.mark.parametrize("name", FIELDS)
def test_the_client_sends_it(name: str) -> None:
    sent = build_request("a", {name: value_of(name)}).sampling
    assert [field.name for field, _ in sent.ListFields()] == [name]


@pytest.mark.parametrize("name", FIELDS)
def test_openai_s_api_takes_it(name: str) -> None:
    body = BODIES.get(name, {name: value_of(name)})
    if name == "logit_bias":
        body = {name: {"7": 0.5}}
    [request] = chat.read({"messages": [{"role": "user", "content": "a"}], **body}).requests
    given = {field.name for field, _ in request.sampling.ListFields()}
    assert name in given, "clients/openai/sampling.py"


def test_documents_name_it() -> None:
    page = (ROOT / "docs" / "openai.md").read_text(encoding="utf-8")
    assert not [name for name in FIELDS if f"`{name}`" not in page], "docs/openai.md"
