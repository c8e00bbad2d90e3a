"""A GenerateRequest of the foreign contract as one of our own.

Invariant: a function of the message alone. What it cannot say in ours is refused by its name there;
all else is checked where our own requests are. Fields that are plain numbers there have no unset:
their zero means what vLLM takes it for, and the model's recommendations are not applied (gateways
apply them, from GetModelInfo). Only ids are answered, so how ids become text
(`skip_special_tokens`, `spaces_between_special_tokens`) changes nothing.
"""

from typing import Any

from quire.service.errors import Violation, invalid, invalid_field
from quire.service.gateway import structural_tag
from quire.v1 import inference_pb2 as pb

_MEDIA = "media are not supported"
_TRANSFER = "keys and values are not taken from other servers"
_REFUSED = {
    "mm_inputs": _MEDIA,
    "extra_mm_inputs": _MEDIA,
    "media_refs": _MEDIA,
    "kv_transfer_params": _TRANSFER,
    "kv_transfer_params_json": _TRANSFER,
}
_SEEDS = 1 << 64


def to_generate_request(request: Any) -> pb.GenerateRequest:
    """Raises Refusal, naming the fields."""
    _check(request)
    ours = pb.GenerateRequest(request_id=request.request_id)
    kind = request.WhichOneof("input")
    if kind == "text":
        ours.text = request.text
    elif kind == "tokenized":
        ours.token_ids.ids.extend(request.tokenized.input_ids)
    else:
        raise invalid_field("input", "is missing: give tokenized or text")
    params = request.sampling_params
    _sample(params, ours.sampling)
    _end(params, ours)
    _constrain(params, ours)
    return ours


def _check(request: Any) -> None:
    given = {field.name for field, _ in request.ListFields()}
    found = [Violation(name, why) for name, why in _REFUSED.items() if name in given]
    if request.data_parallel_rank:
        rank = request.data_parallel_rank
        found.append(Violation("data_parallel_rank", f"{rank}: there is rank 0 alone"))
    params = request.sampling_params
    if params.HasField("logprobs") and params.logprobs < 0:
        why = f"{params.logprobs}: must be between 0 and 20"
        found.append(Violation("sampling_params.logprobs", why))
    for name in ("prompt_logprobs", "truncate_prompt_tokens"):
        if params.HasField(name):
            why = f"{getattr(params, name)}: is not supported"
            found.append(Violation(f"sampling_params.{name}", why))
    for token_id in params.logit_bias:
        if token_id < 0:
            field = f"sampling_params.logit_bias[{token_id}]"
            found.append(Violation(field, f"{token_id}: must be at least 0"))
    if found:
        raise invalid(found)


def _sample(params: Any, ours: pb.SamplingParams) -> None:
    ours.temperature = params.temperature if params.HasField("temperature") else 1.0
    ours.top_p = params.top_p or 1.0
    ours.repetition_penalty = params.repetition_penalty or 1.0
    ours.top_k = params.top_k
    ours.min_p = params.min_p
    ours.presence_penalty = params.presence_penalty
    ours.frequency_penalty = params.frequency_penalty
    ours.n = params.n or 1
    if params.HasField("seed"):
        ours.seed = params.seed % _SEEDS
    if params.HasField("logprobs"):
        ours.logprobs = params.logprobs
    for token_id, bias in params.logit_bias.items():
        ours.logit_bias[token_id] = bias


def _end(params: Any, ours: pb.GenerateRequest) -> None:
    sampling = ours.sampling
    if params.HasField("max_tokens"):
        sampling.max_tokens = params.max_tokens
    if params.min_tokens:
        sampling.min_tokens = params.min_tokens
    sampling.stop_token_ids.extend(params.stop_token_ids)
    sampling.ignore_eos = params.ignore_eos
    if params.stop:  # they are found in the text, which is made for that alone
        sampling.stop.extend(params.stop)
        sampling.include_stop_str_in_output = params.include_stop_str_in_output
    else:
        ours.ids_only = True


def _constrain(params: Any, ours: pb.GenerateRequest) -> None:
    kind = params.WhichOneof("constraint")
    if kind is None:
        return
    constraint = ours.constraint
    if kind == "choice":
        constraint.choice.options.extend(params.choice.choices)
    elif kind == "structural_tag":
        constraint.grammar = structural_tag.grammar_of(params.structural_tag)
    else:
        setattr(constraint, kind, getattr(params, kind))
    constraint.from_first_token = True  # of ids there is no template that opens a turn
