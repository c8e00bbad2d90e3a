"""The fields that chats and completions share: how tokens are chosen, and when it ends.

Invariant: ranges are the contract's, checked behind it; here only that a value can be written into
the contract's field at all. What a field means there, it means here; but for `priority`, which
runs the lower first, as vLLM has it.
"""

from quire.clients.openai.fields import SHORT, Fields, is_id, put_all
from quire.v1 import inference_pb2 as pb

PASSED_OVER = (  # accepted, and without effect: docs/openai.md says why
    "metadata",
    "prediction",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
    "store",
)
USERS = ("safety_identifier", "user", "prompt_cache_key")  # the first that is given counts
_INT32 = (1 << 31) - 1
_UINT64 = (1 << 64) - 1
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def read(body: Fields, request: pb.GenerateRequest) -> dict[str, str]:
    """Sets the request's sampling, and what else both kinds have. Returns the contract's fields
    under the names given."""
    sampling = request.sampling
    for name in _NUMBERS:
        number = body.number(name)
        if number is not None:
            setattr(sampling, name, number)
    prompt_logprobs = body.whole("prompt_logprobs")
    if prompt_logprobs is not None:
        request.prompt_logprobs = prompt_logprobs
    for name in ("n", "min_tokens"):
        count = body.whole(name)
        if count is not None:
            setattr(sampling, name, count)
    top_k = body.whole("top_k", low=-1)
    if top_k is not None:
        sampling.top_k = max(top_k, 0)  # -1 is 0: all
    seed = body.whole("seed", low=-(1 << 63), high=_UINT64)
    if seed is not None:
        sampling.seed = seed & _UINT64
    _read_ends(body, sampling)
    _read_ids(body, sampling)
    request.model = body.text("model") or ""
    request.cache_salt = body.text("cache_salt") or ""
    request.priority = -(body.whole("priority", low=-_INT32, high=_INT32) or 0)
    body.passed_over(*PASSED_OVER)
    body.only("skip_special_tokens", True)
    body.only("spaces_between_special_tokens", True)
    return _read_user(body, request)


def _read_user(body: Fields, request: pb.GenerateRequest) -> dict[str, str]:
    given = {name: body.text(name, SHORT) for name in USERS}
    for name, user in given.items():
        if user:
            request.user = user
            return {"user": name}
    return {}


def _read_ends(body: Fields, sampling: pb.SamplingParams) -> None:
    put_all(sampling.stop, body.text_or_texts("stop"))
    put_all(sampling.stop_token_ids, body.wholes("stop_token_ids"))
    sampling.ignore_eos = body.flag("ignore_eos") or False
    sampling.include_stop_str_in_output = body.flag("include_stop_str_in_output") or False


def _read_ids(body: Fields, sampling: pb.SamplingParams) -> None:
    put_all(sampling.allowed_token_ids, body.wholes("allowed_token_ids"))
    put_all(sampling.banned_token_ids, body.wholes("banned_token_ids"))
    bias = body.value("logit_bias")
    if bias is None:
        return
    if not isinstance(bias, dict):
        body.fault("logit_bias", bias, "must be an object")
        return
    for token, value in bias.items():
        if not _names_an_id(token):
            body.fault("logit_bias", token, "must be a token id")
            continue
        number = body.number_in(f"logit_bias[{token}]", value)
        if number is not None:
            sampling.logit_bias[int(token)] = number


def _names_an_id(token: str) -> bool:
    """In its one form: with 01 beside 1 two keys would be one token's, and one of them lost."""
    return token.isdecimal() and len(token) < 11 and token == str(int(token)) and is_id(int(token))
