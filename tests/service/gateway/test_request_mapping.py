"""Requests of the foreign contract as our own: what maps, and what is refused by name."""

import json
from typing import Any

import pytest

from quire.service.errors import Refusal
from quire.service.gateway import request_mapping, structural_tag
from quire.service.gateway.protos import Protos

pytest.importorskip("smg_grpc_proto", reason="the extra `gateway` is not installed")
ENGINE = Protos().engine


def made(**sampling: Any) -> Any:
    request = ENGINE.GenerateRequest(request_id="id")
    request.tokenized.input_ids.extend([5, 6])
    request.sampling_params.CopyFrom(ENGINE.SamplingParams(**sampling))
    return request


def refused(request: Any) -> set[str]:
    with pytest.raises(Refusal) as caught:
        request_mapping.to_generate_request(request)
    return {violation.field for violation in caught.value.violations}


def test_all_that_can_be_said_in_both_arrives() -> None:
    ours = request_mapping.to_generate_request(
        made(
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            frequency_penalty=0.25,
            presence_penalty=0.5,
            repetition_penalty=1.5,
            max_tokens=7,
            min_tokens=2,
            stop_token_ids=[9],
            ignore_eos=True,
            n=3,
            logprobs=2,
            seed=-1,
            logit_bias={4: 1.5},
        )
    )
    assert ours.request_id == "id" and list(ours.token_ids.ids) == [5, 6] and ours.ids_only
    sampling = ours.sampling
    assert (sampling.temperature, sampling.top_k, sampling.n) == (0.5, 40, 3)
    assert sampling.top_p == pytest.approx(0.9) and sampling.min_p == pytest.approx(0.1)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.25, 0.5)
    assert (sampling.repetition_penalty, sampling.max_tokens, sampling.min_tokens) == (1.5, 7, 2)
    assert list(sampling.stop_token_ids) == [9] and sampling.ignore_eos
    assert (sampling.logprobs, sampling.seed) == (2, 2**64 - 1)
    assert dict(sampling.logit_bias) == {4: 1.5}


def test_what_is_not_given_is_what_vllm_takes_it_for() -> None:
    sampling = request_mapping.to_generate_request(made()).sampling
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (1.0, 1.0, 1.0)
    assert (sampling.HasField("top_k"), sampling.top_k, sampling.n) == (True, 0, 1)
    assert not sampling.HasField("seed") and not sampling.HasField("max_tokens")
    assert request_mapping.to_generate_request(made(temperature=0.0)).sampling.temperature == 0.0


def test_stop_strings_are_looked_for_in_text() -> None:
    ours = request_mapping.to_generate_request(made(stop=["end"], include_stop_str_in_output=True))
    assert list(ours.sampling.stop) == ["end"] and not ours.ids_only
    assert ours.sampling.include_stop_str_in_output


@pytest.mark.parametrize(
    "given",
    [
        {"mm_inputs": {"mm_hashes": ["x"]}},
        {"extra_mm_inputs": [{}]},
        {"media_refs": {}},
        {"kv_transfer_params": {"remote_host": "x"}},
        {"kv_transfer_params_json": "{}"},
        {"data_parallel_rank": 1},
    ],
)
def test_media_transfer_and_ranks_are_refused_by_name(given: dict[str, Any]) -> None:
    request = ENGINE.GenerateRequest(**given)
    request.tokenized.input_ids.extend([5])
    assert refused(request) == set(given)


def test_what_is_not_supported_is_refused_and_told_together() -> None:
    wrong = made(logprobs=-1, prompt_logprobs=0, truncate_prompt_tokens=3, logit_bias={-4: 1.0})
    names = ("logprobs", "prompt_logprobs", "truncate_prompt_tokens", "logit_bias[-4]")
    assert refused(wrong) == {f"sampling_params.{name}" for name in names}
    assert refused(ENGINE.GenerateRequest(request_id="id")) == {"input"}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json_schema", '{"type": "object"}'),
        ("json_object", True),
        ("regex", "a+"),
        ("grammar", 'start: "a"'),
    ],
)
def test_constraints_begin_with_the_first_id(kind: str, value: Any) -> None:
    constraint = request_mapping.to_generate_request(made(**{kind: value})).constraint
    assert getattr(constraint, kind) == value and constraint.from_first_token


def test_choices_and_structural_tags_are_constraints() -> None:
    choice = ENGINE.ChoiceConstraint(choices=["a", "b"])
    assert list(
        request_mapping.to_generate_request(made(choice=choice)).constraint.choice.options
    ) == ["a", "b"]
    text = json.dumps({"format": {"type": "const_string", "value": "a"}})
    assert (
        request_mapping.to_generate_request(made(structural_tag=text)).constraint.grammar
        == 'start: ("a")\n'
    )


TAGS = {
    "type": "tags_with_separator",
    "separator": ",",
    "at_least_one": True,
    "tags": [
        {
            "type": "tag",
            "begin": "<f>",
            "content": {"type": "json_schema", "json_schema": {"type": "integer"}},
            "end": "</f>",
        },
        {
            "type": "sequence",
            "elements": [
                {"type": "regex", "pattern": "a/b"},
                {"type": "or", "elements": [{"type": "const_string", "value": 'say "x"\n\x7f'}]},
            ],
        },
    ],
}


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("<f>12</f>", True),
        ('<f>-3</f>,a/bsay "x"\n\x7f', True),
        ("<f>x</f>", False),
        ("<f>12</f>,", False),
    ],
)
def test_a_structural_tag_takes_what_it_says(text: str, takes: bool) -> None:
    llguidance = pytest.importorskip("llguidance")
    grammar = structural_tag.grammar_of(json.dumps({"type": "structural_tag", "format": TAGS}))
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, llguidance.grammar_from("lark", grammar))
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.tokenize_str(text)
    accepted = matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
    assert accepted is takes


@pytest.mark.parametrize(
    ("tag", "field"),
    [
        ("{", ""),
        ("[]", ""),
        (json.dumps({"format": {"type": "const_string", "value": "a" * (256 << 10)}}), ""),
        ('{"structures": [], "triggers": []}', ""),
        ('{"format": {"type": "any_text"}}', ".format.type"),
        ('{"format": {"type": "triggered_tags"}}', ".format.type"),
        ('{"format": {"type": "or", "elements": []}}', ".format.elements"),
        ('{"format": {"type": "tag", "begin": 3}}', ".format.begin"),
        ('{"format": {"type": "const_string", "value": "\\ud800"}}', ""),
        ('{"format": {"type": "const_string", "value": "a", "value": "b"}}', ""),
        ('{"format": {"type": "json_schema", "json_schema": {"const": NaN}}}', ""),
        ('{"format": {"type": "const_string", "value": "a"}, "triggers": []}', ".triggers"),
        ('{"type": "x", "format": {"type": "const_string", "value": "a"}}', ".type"),
        ('{"format": {"type": "const_string", "value": "a", "more": 1}}', ".format.more"),
        (json.dumps({"format": {**TAGS, "at_least_one": "no"}}), ".format.at_least_one"),
        (
            '{"format": {"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}}',
            ".format.style",
        ),
    ],
)
def test_a_structural_tag_that_cannot_be_is_refused_by_name(tag: str, field: str) -> None:
    assert refused(made(structural_tag=tag)) == {structural_tag.FIELD + field}
