"""Whatever is passed, an argument that cannot be right is an OptionError that names it; nothing is
sent, and no TypeError, AttributeError, OverflowError or UnicodeEncodeError gets out."""

import asyncio
import decimal
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.clients import (
    TLS,
    AsyncClient,
    Client,
    Message,
    OptionError,
    RetryPolicy,
    Tool,
    ToolCall,
)
from quire.clients.client import is_serving
from quire.clients.prompts import Options, build_request
from quire.v1 import inference_pb2 as pb

LONE = "\ud800"  # half of a surrogate pair
NAN, INF = float("nan"), float("inf")
HUGE = 10**5000  # more digits than Python prints
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]
ROUND: dict[str, Any] = {}
ROUND["itself"] = ROUND
HI = {"role": "user", "content": "hi"}


class Odd:
    """Neither prints nor counts."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __index__(self) -> int:
        raise RuntimeError("no")


class Word(enum.StrEnum):
    HI = "hi"


PROMPTS: list[tuple[Any, str]] = [
    (b"hi", "prompt"), (bytearray(b"hi"), "prompt"), (memoryview(b"hi"), "prompt"),
    (LONE, "prompt"), (None, "prompt"), (7, "prompt"), (1.5, "prompt"), (True, "prompt"),
    ({1, 2}, "prompt"), (iter([1]), "prompt"), (Odd(), "prompt"), (HI, "one message"),
    (Message("user", "x"), "one message"), ({"a": 1}, "one message"),
    ([1.0], r"ids\[0\]"), ([1, "2"], r"ids\[1\]"), ([True], r"ids\[0\]"), ([None], r"ids\[0\]"),
    ([-1], r"ids\[0\]"), ([1 << 32], r"ids\[0\]"), ([HUGE], r"ids\[0\]"), ([[1]], r"ids\[0\]"),
    ([Odd()], r"ids\[0\]"), (["hi"], r"ids\[0\]"), ([b"hi"], r"ids\[0\]"),
    ([HI, 5], "prompt"), ([HI, "hi"], "prompt"), ([HI, None], "prompt"),
    ([{"role": "user"}], r"messages\[0\]\.content"), ([{"content": "x"}], r"messages\[0\]\.role"),
    ([{}], r"messages\[0\]\.role"), ([{**HI, "x": 1}], "x"), ([{**HI, 5: 1}], "5"),
    ([{**HI, "role": 5}], r"messages\[0\]\.role"), ([{**HI, "role": LONE}], "role"),
    ([HI, {**HI, "content": b"x"}], r"messages\[1\]\.content"),
    ([{**HI, "content": 5}], "content"), ([{**HI, "content": LONE}], "content"),
    ([{**HI, "content": {"type": "text", "text": "x"}}], "content"),
    ([{**HI, "content": ["x"]}], r"content\[0\]"),
    ([{**HI, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "image_url"),
    ([{**HI, "content": [{"type": "text"}]}], r"content\[0\]\.text"),
    ([{**HI, "content": [{"type": "text", "text": 5}]}], r"content\[0\]\.text"),
    ([{**HI, "content": [{"type": "text", "text": "x", "y": 1}]}], "y"),
    ([{**HI, "name": 5}], r"messages\[0\]\.name"), ([{**HI, "tool_call_id": 5}], "tool_call_id"),
    ([{**HI, "reasoning_content": b"x"}], "reasoning_content"),
    ([{**HI, "tool_calls": "f"}], "tool_calls"), ([{**HI, "tool_calls": {"f": 1}}], "tool_calls"),
    ([{**HI, "tool_calls": [5]}], r"tool_calls\[0\]"),
    ([{**HI, "tool_calls": [{"arguments": {}}]}], r"tool_calls\[0\]\.name"),
    ([{**HI, "tool_calls": [{"name": "f", "arguments": 5}]}], "arguments"),
    ([{**HI, "tool_calls": [{"name": "f", "arguments": {"a": NAN}}]}], "arguments"),
    ([{**HI, "tool_calls": [{"name": "f", "arguments": {5: 1}}]}], "arguments"),
    ([{**HI, "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}], "type"),
    ([{**HI, "tool_calls": [{"type": "function", "function": 5}]}], "function"),
]  # fmt: skip

OPTIONS: list[tuple[str, Any]] = [
    ("tempreature", 1), (LONE, 1),
    ("temperature", "hot"), ("temperature", NAN), ("temperature", INF), ("temperature", True),
    ("temperature", 1e39), ("temperature", HUGE), ("temperature", 1j), ("temperature", [1]),
    ("temperature", decimal.Decimal(1)), ("top_p", b"1"), ("min_p", {}), ("top_k", 1.0),
    ("top_k", -1), ("top_k", "5"), ("top_k", True), ("seed", 1 << 64), ("seed", -1),
    ("seed", HUGE), ("n", 1.5), ("n", False), ("max_tokens", -1), ("max_tokens", 1 << 32),
    ("max_tokens", Odd()), ("min_tokens", NAN), ("logprobs", True), ("logprobs", "5"),
    ("presence_penalty", Odd()), ("frequency_penalty", object()), ("repetition_penalty", "1"),
    ("stop", b"x"), ("stop", 5), ("stop", LONE), ("stop", [5]), ("stop", ["x", None]),
    ("stop", {"x"}), ("stop", {"x": 1}), ("stop", iter("x")), ("stop", [LONE]),
    ("stop_token_ids", 5), ("stop_token_ids", "5"), ("stop_token_ids", [1.5]),
    ("stop_token_ids", [-1]), ("stop_token_ids", [True]), ("stop_token_ids", b"5"),
    ("include_stop_str_in_output", 1), ("include_stop_str_in_output", "yes"),
    ("ignore_eos", 0), ("ids_only", "no"), ("ids_only", []),
    ("request_id", 5), ("request_id", b"r"), ("request_id", LONE), ("cache_salt", 5),
    ("cache_salt", LONE), ("model", 5), ("model", Path("m")), ("model", LONE),
    ("priority", 1.5), ("priority", 1 << 31), ("priority", "high"), ("priority", True),
    ("resume_token_ids", 5), ("resume_token_ids", ["5"]), ("resume_token_ids", [1 << 32]),
    ("tools", {}), ("tools", "f"), ("tools", [5]), ("tools", [{}]), ("tools", [{"name": 5}]),
    ("tools", [{"name": "f", "x": 1}]), ("tools", [{"name": "f", "description": 5}]),
    ("tools", [{"name": "f", "parameters": 5}]), ("tools", [{"name": "f", "parameters": [1]}]),
    ("tools", [{"name": "f", "parameters": {"a": object()}}]), ("tools", [{"name": LONE}]),
    ("tools", [{"name": "f", "parameters": ROUND}]), ("tools", [{"name": "f", "parameters": LONE}]),
    ("tools", [{"type": "retrieval", "function": {"name": "f"}}]),
    ("chat_template_kwargs", 5), ("chat_template_kwargs", [1]), ("chat_template_kwargs", b"{}"),
    ("chat_template_kwargs", {"a": LONE}), ("chat_template_kwargs", {"a": HUGE}),
    ("chat_template_kwargs", {"a": DEEP}), ("chat_template_kwargs", {"a": {1}}),
    ("chat_template_kwargs", {LONE: {1}}), ("chat_template_kwargs", {"a": INF}),
    ("chat_template_kwargs", {"a": b"x"}),
    ("add_generation_prompt", 1), ("continue_final_message", "x"), ("allow_special_tokens", 1),
    ("timeout", 0), ("timeout", -1), ("timeout", NAN), ("timeout", INF), ("timeout", "5"),
    ("timeout", True), ("timeout", HUGE), ("timeout", 1e300), ("timeout", [5]),
]  # fmt: skip

PLACE = "no-such-file.pem"
MADE: list[tuple[Callable[[], Any], str]] = [
    (lambda: Client(5), "address"), (lambda: Client(b"h:1"), "address"),
    (lambda: Client(None), "address"), (lambda: Client([]), "address"),
    (lambda: Client(["h:1", 5]), "address"), (lambda: Client({"h:1": 1}), "address"),
    (lambda: Client(LONE), "address"), (lambda: Client("h:99999"), "address"),
    (lambda: Client("h:" + "9" * 5000), "address"), (lambda: Client("h:x"), "address"),
    (lambda: Client("h:-1"), "address"), (lambda: Client(""), "address"),
    (lambda: Client("a b:1"), "address"), (lambda: Client("h:1,g:2"), "address"),
    (lambda: Client("http://h:1"), "address"), (lambda: Client("bücher.de:1"), "address"),
    (lambda: Client("a..b:1"), "address"), (lambda: Client("x" * 64 + ":1"), "address"),
    (lambda: Client("h:١"), "address"), (lambda: Client("h\n:1"), "address"),
    (lambda: Client(["a..b:1", "c:2"]), "address"),
    (lambda: Client(api_key=5), "api_key"), (lambda: Client(api_key=b"k"), "api_key"),
    (lambda: Client(api_key=""), "api_key"), (lambda: Client(api_key=LONE), "api_key"),
    (lambda: Client(api_key=True), "api_key"), (lambda: Client(api_key=["k"]), "api_key"),
    (lambda: Client(tls="yes"), "tls"), (lambda: Client(tls=1), "tls"),
    (lambda: Client(tls={"root": "x"}), "tls"), (lambda: Client(tls=TLS), "tls"),
    (lambda: Client(timeout=0), "timeout"), (lambda: Client(timeout="1"), "timeout"),
    (lambda: Client(timeout=NAN), "timeout"), (lambda: Client(timeout=True), "timeout"),
    (lambda: Client(retry=3), "retry"), (lambda: Client(retry="no"), "retry"),
    (lambda: TLS(root=5), r"tls\.root"), (lambda: TLS(root=b"x"), r"tls\.root"),
    (lambda: TLS(cert="x"), r"tls\.key"), (lambda: TLS(key="x"), r"tls\.cert"),
    (lambda: TLS(cert=5, key="x"), r"tls\.cert"), (lambda: TLS(server_name=5), "server_name"),
    (lambda: TLS(server_name=LONE), "server_name"), (lambda: TLS(server_name=""), "server_name"),
    (lambda: Client(tls=TLS(root=PLACE)), PLACE), (lambda: Client(tls=TLS(root="a\0b")), "root"),
    (lambda: Client(tls=TLS(root=LONE)), "root"), (lambda: Client(tls=TLS(root="")), "root"),
    (lambda: Client(tls=TLS(root=__file__)), "PEM"),
    (lambda: RetryPolicy(attempts=0), "attempts"), (lambda: RetryPolicy(attempts="3"), "attempts"),
    (lambda: RetryPolicy(attempts=1.5), "attempts"),
    (lambda: RetryPolicy(attempts=HUGE), "attempts"),
    (lambda: RetryPolicy(attempts=True), "attempts"),
    (lambda: RetryPolicy(first_backoff=NAN), "first_backoff"),
    (lambda: RetryPolicy(first_backoff=None), "first_backoff"),
    (lambda: RetryPolicy(max_backoff=-1), "max_backoff"),
    (lambda: RetryPolicy(max_backoff="1"), "max_backoff"),
    (lambda: RetryPolicy(max_pushback=INF), "max_pushback"),
    (lambda: RetryPolicy(max_pushback=HUGE), "max_pushback"),
    (lambda: Message(5, "x"), r"Message\.role"), (lambda: Message("user", 5), r"Message\.content"),
    (lambda: Message("user", b"x"), r"Message\.content"), (lambda: Message("user", "x", 5), "name"),
    (lambda: Message("user", "x", tool_calls=5), "tool_calls"),
    (lambda: Tool(5), r"Tool\.name"), (lambda: Tool("f", 5), r"Tool\.description"),
    (lambda: Tool("f", None, 5), r"Tool\.parameters"), (lambda: Tool(None), r"Tool\.name"),
    (lambda: ToolCall(5), r"ToolCall\.name"), (lambda: ToolCall("f", 5), r"ToolCall\.arguments"),
    (lambda: ToolCall("f", {}, 5), r"ToolCall\.id"), (lambda: is_serving(5), "client"),
]  # fmt: skip


def refused(call: Callable[[], Any], names: str) -> None:
    with pytest.raises(OptionError, match=names) as caught:
        call()
    message = str(caught.value)
    assert len(message) < 500 and message.encode()  # can be printed anywhere


def test_there_are_many() -> None:
    assert len(PROMPTS) + len(OPTIONS) + len(MADE) > 200


@pytest.mark.parametrize(("prompt", "names"), PROMPTS, ids=range(len(PROMPTS)))
def test_odd_prompts(prompt: Any, names: str) -> None:
    with Client() as client:
        refused(lambda: client.generate(prompt), names)


@pytest.mark.parametrize(("name", "value"), OPTIONS, ids=range(len(OPTIONS)))
def test_odd_options(name: str, value: Any) -> None:
    with Client() as client:
        named = "unknown option" if name not in {*Options.__annotations__, "timeout"} else name
        refused(lambda: client.generate([HI], **{name: value}), named)


@pytest.mark.parametrize(("make", "names"), MADE, ids=range(len(MADE)))
def test_odd_things_to_make(make: Callable[[], Any], names: str) -> None:
    refused(make, names)


def test_odd_calls() -> None:
    with Client() as client:
        refused(lambda: client.send("hi"), "request")  # type: ignore[arg-type]
        refused(lambda: client.send(pb.GenerateRequest(), timeout=-1), "timeout")
        refused(lambda: client.stats(include_block_map=1), "include_block_map")  # type: ignore[arg-type]
        refused(lambda: client.stats(timeout="x"), "timeout")  # type: ignore[arg-type]
        refused(lambda: client.health(5), "service")  # type: ignore[arg-type]
        refused(lambda: client.health(LONE), "service")
        refused(lambda: client.generate("x", ids_only=True).text_stream(), "ids_only")


def test_odd_calls_of_the_other_colour() -> None:
    async def run() -> None:
        async with AsyncClient() as client:
            refused(lambda: client.generate(b"x"), "prompt")  # type: ignore[arg-type]
            refused(lambda: client.generate("x", timeout=0), "timeout")
            refused(lambda: client.send(5), "request")  # type: ignore[arg-type]
            refused(lambda: client.generate("x", ids_only=True).text_stream(), "ids_only")
            for odd in (client.stats(timeout=0), client.health(5)):  # type: ignore[arg-type]
                with pytest.raises(OptionError):
                    await odd
        for odd in ({"address": 5}, {"timeout": 0}, {"retry": 1}, {"tls": 5}, {"api_key": 5}):
            refused(lambda odd=odd: AsyncClient(**odd), next(iter(odd)))  # type: ignore[misc]

    asyncio.run(run())


def test_a_key_is_not_repeated() -> None:
    with pytest.raises(OptionError) as caught:
        Client(api_key="se cret\n")
    assert "se cret" not in str(caught.value)


def test_what_is_odd_but_right() -> None:
    """Types that merely look unusual, and OpenAI's shapes."""

    class Whole(int):
        pass

    built = build_request(
        [
            {**HI, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant", "content": None, "refusal": None,
                "tool_calls": [
                    {
                        "id": "c1", "type": "function",
                        "function": {"name": "f", "arguments": '{"z": 1e22,  "a": 25.0}'},
                    }
                ],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
        {
            "temperature": 1, "max_tokens": Whole(5), "model": Word.HI, "stop": ("a", Word.HI),
            "seed": (1 << 64) - 1, "priority": -(1 << 31), "stop_token_ids": range(3),
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f", "description": "", "parameters": {"z": 2**53 + 1, "a": -0.0}
                    },
                },
                Tool("g", parameters={"e": 1e22, "l": (1, None, True)}),
                ToolLike,
            ],
        },
    )  # fmt: skip
    chat = built.chat
    assert chat.messages[0].content == "ab"
    assert chat.messages[1].tool_calls[0].arguments_json == '{"z": 1e22,  "a": 25.0}'
    assert (chat.messages[1].tool_calls[0].id, chat.messages[2].tool_call_id) == ("c1", "c1")
    assert chat.tools[0].parameters_json == '{"z": 9007199254740993, "a": -0.0}'
    assert chat.tools[0].HasField("description")
    assert chat.tools[1].parameters_json == '{"e": 1e+22, "l": [1, null, true]}'
    assert not chat.tools[1].HasField("description")
    assert chat.tools[2] == pb.Tool(name="bare")
    assert (built.model, list(built.sampling.stop)) == ("hi", ["a", "hi"])


ToolLike = {"name": "bare", "description": None, "parameters": None}

UNPRINTABLE = (LONE, HUGE, -HUGE, 1 << 64, object(), Odd(), DEEP, ROUND, int, HI)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.binary(max_size=5) | st.complex_numbers() | st.decimals()
    | st.integers(0, 9).map(lambda i: UNPRINTABLE[i])  # hypothesis prints what it samples from
)  # fmt: skip
keys = st.text(max_size=5) | st.binary(max_size=2) | st.integers() | st.none() | st.just(LONE)
known = ("role", "content", "tool_calls", "name", "arguments", "parameters", "function", "type",
         "text", "id", "description")  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(keys, max_size=2)
        | st.fixed_dictionaries({}, optional=dict.fromkeys(known, inner))
    ),
    max_leaves=6,
)


@settings(
    max_examples=300, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    st.sampled_from(["hi", [1, 2], [HI]]) | values,
    st.dictionaries(st.sampled_from(sorted(Options.__annotations__)), values, max_size=3),
)
def test_anything_at_all_is_sent_or_refused(prompt: Any, options: dict[str, Any]) -> None:
    try:
        request = build_request(prompt, options)
    except OptionError as error:
        assert str(error).encode()
        return
    assert pb.GenerateRequest.FromString(request.SerializeToString()) == request


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("address", "api_key", "tls", "timeout", "retry"), values)
    )
)
def test_any_client_at_all_is_made_or_refused(options: dict[str, Any]) -> None:
    try:
        Client(**options).close()
    except OptionError as error:
        assert str(error).encode()


@pytest.mark.parametrize("value", [1e-300, -1e-300, 5e-324])
def test_a_number_next_to_zero_is_not_sent_as_zero(value: float) -> None:
    sent = build_request("Hi", {"top_p": value}).sampling.top_p
    assert sent and (sent < 0) == (value < 0)
