"""Messages that make little sense: structured ones by hypothesis, and bytes put over encoded ones.

Each is sent to a method as raw bytes, most to Generate. Whatever comes, the answer is a status of
the contract that blames the message; never INTERNAL, UNKNOWN or nothing.
"""

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from typing import Any

import grpc
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support.harness import Running
from support.patience import PATIENCE

from quire.v1 import inference_pb2 as pb

METHODS = (
    *("Generate", "Stats", "Tokenize", "Detokenize", "GetModelInfo", "FlushCache"),
    *("Embed", "Score"),
)
SERVICE = "/quire.v1.InferenceService"
FINE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
PARALLEL = 20
_METHOD_OF = {
    5: "Stats", 6: "Tokenize", 7: "Tokenize", 8: "Detokenize", 9: "Detokenize",
    10: "GetModelInfo", 11: "FlushCache", 12: "Embed", 13: "Score",
}  # fmt: skip
MAX_COMPLETIONS = 3  # of one message, where the number is allowed at all: time is short

Encoded = tuple[str, bytes]  # method, request

floats = st.floats(width=32) | st.sampled_from([0.0, 1.0, 0.5])
counts = st.integers(0, 2**32 - 1) | st.integers(0, 70)
words = st.text(max_size=20) | st.sampled_from(["user", "assistant", "tool", "<|im_start|>", "a b"])
ids = st.lists(st.integers(0, 5000) | st.integers(0, 2**32 - 1), max_size=20)
plain = st.lists(st.integers(0, 4095), min_size=1, max_size=20)


def maybe(kind: type[Message], *left_out: str, **fields: Any) -> Any:
    """Some fields of such a message. left_out: those that are set otherwise."""
    lacking = set(kind.DESCRIPTOR.fields_by_name) - {*fields, *left_out}
    assert not lacking, f"{kind.__name__}: say here what may stand in {', '.join(sorted(lacking))}"
    return st.fixed_dictionaries({}, optional=fields)


def some(kind: type[Message], **fields: Any) -> Any:
    """Such messages, with some of their fields."""
    return st.builds(lambda given: kind(**given), maybe(kind, **fields))


sampling = maybe(
    pb.SamplingParams,
    temperature=floats, top_p=floats, top_k=counts, min_p=floats, repetition_penalty=floats,
    presence_penalty=floats, frequency_penalty=floats, seed=st.integers(0, 2**64 - 1),
    n=counts, max_tokens=counts, min_tokens=counts, stop=st.lists(words, max_size=18),
    include_stop_str_in_output=st.booleans(), stop_token_ids=ids, ignore_eos=st.booleans(),
    logprobs=counts, logit_bias=st.dictionaries(counts, floats, max_size=3),
    allowed_token_ids=ids, banned_token_ids=ids,
)  # fmt: skip
objects = st.dictionaries(words, words | st.booleans() | st.lists(words, max_size=2), max_size=2)
json_texts = st.builds(json.dumps, objects) | words | st.sampled_from(["[" * 3000, '{"a": NaN}'])
calls = st.lists(some(pb.ToolCall, id=words, name=words, arguments_json=json_texts), max_size=2)
message = some(
    pb.ChatMessage, role=words, content=words, name=words, tool_calls=calls, tool_call_id=words,
    reasoning_content=words,
)  # fmt: skip
tool = some(
    pb.Tool, name=words, description=words, parameters_json=json_texts, strict=st.booleans()
)
choices = some(pb.ToolChoice, mode=st.integers(0, 5), name=words)
chats = some(
    pb.Chat, messages=st.lists(message, max_size=4), tools=st.lists(tool, max_size=2),
    add_generation_prompt=st.booleans(), continue_final_message=st.booleans(),
    allow_special_tokens=st.booleans(), chat_template_kwargs=json_texts, tool_choice=choices,
    parallel_tool_calls=st.booleans(), omit_unshown_reasoning=st.booleans(),
)  # fmt: skip
options = some(pb.Choice, options=st.lists(words, max_size=3))
constraints = some(
    pb.Constraint, json_schema=json_texts, json_object=st.booleans(), regex=words, grammar=words,
    choice=options, from_first_token=st.booleans(),
)  # fmt: skip


def _request(fields: dict[str, Any], prompt: Any, params: dict[str, Any]) -> pb.GenerateRequest:
    request = pb.GenerateRequest(**fields, sampling=pb.SamplingParams(**params))
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, list):
        request.token_ids.ids.extend(prompt)
    elif prompt is not None:
        request.chat.CopyFrom(prompt)
    return request


requests = st.builds(
    _request,
    maybe(
        pb.GenerateRequest,
        *("text", "token_ids", "chat", "sampling"),
        request_id=words, priority=st.integers(-(2**31), 2**31 - 1), cache_salt=words,
        model=st.sampled_from(["", "fake", "other"]), ids_only=st.booleans(), resume_token_ids=ids,
        parse_output=st.booleans(), user=words, prompt_logprobs=counts, constraint=constraints,
    ),
    st.none() | words | ids | plain | chats,
    sampling,
)  # fmt: skip


texts = st.one_of(
    st.builds(lambda text: pb.EmbedInput(text=text), words),
    st.builds(lambda chosen: pb.EmbedInput(token_ids=pb.TokenIds(ids=chosen)), ids | plain),
)
of_all = {
    **dict.fromkeys(("instruction", "request_id", "cache_salt", "user"), words),
    "truncate": st.booleans(),
    "priority": st.integers(-2000, 2000),
    "model": st.sampled_from(["", "fake", "other"]),
}
read = st.tuples(
    some(pb.EmbedRequest, inputs=st.lists(texts, max_size=4), dimensions=counts, **of_all),
    some(pb.ScoreRequest, query=words, documents=st.lists(words, max_size=4),
         allow_special_tokens=st.booleans(), **of_all),
)  # fmt: skip


def fuzzed(count: int, hypothesis_seed: int) -> list[Encoded]:
    """At least so many messages; the same for the same seed."""
    made: list[Encoded] = []
    kinds = itertools.count()

    @seed(hypothesis_seed)
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(requests, read, plain, st.binary(max_size=12), st.integers(0, 200))
    def collect(
        request: pb.GenerateRequest,
        read: tuple[pb.EmbedRequest, pb.ScoreRequest],
        fine: list[int],
        noise: bytes,
        at: int,
    ) -> None:
        kind = next(kinds) % 16  # in turn: what is drawn depends on constants in anybody's source
        if MAX_COMPLETIONS < request.sampling.n <= 64:
            request.sampling.n = MAX_COMPLETIONS
        raw = request.SerializeToString()
        match kind:
            case 0 | 1 | 2:
                raw = raw[:at] + noise + raw[at + len(noise) :]
            case 3:
                raw = noise
            case 4:
                raw = raw[:at]
            case 6:
                raw = pb.TokenizeRequest(text=request.text or None).SerializeToString()
            case 7 if request.HasField("chat"):
                raw = pb.TokenizeRequest(chat=request.chat).SerializeToString()
            case 8:
                raw = pb.DetokenizeRequest(token_ids=request.token_ids.ids).SerializeToString()
            case 14:  # one that is right, beside all those: of chance alone it may be none
                sense = pb.GenerateRequest(
                    token_ids=pb.TokenIds(ids=fine), sampling=pb.SamplingParams(max_tokens=3)
                )
                raw = sense.SerializeToString()
            case 12 | 13:
                raw = read[kind - 12].SerializeToString()
        made.append((_METHOD_OF.get(kind, "Generate"), raw))

    collect()
    assert len(made) >= count
    return made[:count]


class Fuzz:
    """Sends messages, and counts the statuses. `wrong`: answers that no message may get."""

    def __init__(self, running: Running) -> None:
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []
        channel = running.channel
        self._calls = {
            "Generate": channel.unary_stream(f"{SERVICE}/Generate"),
            **{name: channel.unary_unary(f"{SERVICE}/{name}") for name in METHODS[1:]},
        }

    async def send_all(self, messages: list[Encoded]) -> None:
        """PARALLEL at a time."""
        queue = iter(messages)

        async def work() -> None:
            for method, raw in queue:
                await self._send(method, raw)

        await asyncio.gather(*(work() for _ in range(PARALLEL)))

    async def _send(self, method: str, raw: bytes) -> None:
        call: Any = self._calls[method](raw, timeout=PATIENCE)
        with contextlib.suppress(grpc.aio.AioRpcError):
            if method == "Generate":
                async for _ in call:
                    pass
            else:
                await call
        code = (await call.code()).name
        self.codes[f"{method} {code}"] += 1
        if code not in FINE:
            self.wrong.append(f"{method} {code} {await call.details()}: {raw.hex()}")
