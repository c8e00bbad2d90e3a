"""JSON text reaches the template as the client wrote it, or is refused by its field."""

import json
from typing import Any

import pytest

from quire.clients.strict_json import MAX_DEPTH, BadJson, read_object
from quire.service.errors import Refusal
from quire.service.models import pocket
from quire.service.rpc import messages
from quire.service.text.chat_template import ChatTemplate, Conversation, TemplateRefusal
from quire.v1 import inference_pb2 as pb

TEMPLATE = """
{%- for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}
{%- for message in messages %}
    {{- message.role + ': ' }}
    {%- set thought = message.reasoning_content %}
    {%- if thought is string %}{{ '(' + thought + ')' }}{% endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- call.function.name + (call.function.arguments | tojson) }}
    {%- endfor %}
    {{- '\\n' }}
{%- endfor %}
{%- if thoughts is defined %}{{ thoughts | tojson }}{% endif %}
"""
ODD_NUMBERS = (
    '{"zeta": 9007199254740993, "alpha": 25.0, "m": -0.0, "e": 1e+22, "tiny": 5e-324,'
    ' "big": 123456789012345678901234567890, "b": [true, null, {"y": 1, "x": "é\\u2028"}]}'
)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE, {})


def user(content: str = "Hi", **fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role="user", content=content, **fields)


def assistant(**fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role="assistant", **fields)


def call(arguments_json: str = "", **fields: Any) -> pb.ToolCall:
    return pb.ToolCall(name="f", arguments_json=arguments_json, **fields)


def test_tools_and_calls_are_rendered_as_transformers_renders_dicts(template: ChatTemplate) -> None:
    written = json.loads(ODD_NUMBERS)
    chat = pb.Chat(
        messages=[user(), assistant(tool_calls=[call(ODD_NUMBERS)])],
        tools=[pb.Tool(name="f", description="does", parameters_json=ODD_NUMBERS)],
        chat_template_kwargs='{"thoughts": {"b": 1.50, "a": 2}}',
        add_generation_prompt=False,
    )
    transformers = pytest.importorskip("transformers", exc_type=ImportError)  # oldest libraries
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(str(pocket.directory()))
    function = {"name": "f", "arguments": written}
    expected = oracle.apply_chat_template(
        [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": function}],
            },
        ],
        tools=[
            {
                "type": "function",
                "function": {"name": "f", "description": "does", "parameters": written},
            }
        ],
        chat_template=TEMPLATE,
        tokenize=False,
        thoughts={"b": 1.5, "a": 2},
    )
    rendered = template.render(messages.read(chat))
    assert rendered == expected
    assert '"zeta": 9007199254740993, "alpha": 25.0, "m": -0.0, "e": 1e+22' in rendered


def test_a_tool_says_only_what_was_given() -> None:
    tools = [pb.Tool(name="f"), pb.Tool(name="g", description="", parameters_json="{}")]
    read = messages.read(pb.Chat(messages=[user()], tools=tools)).tools
    assert read[0] == {"type": "function", "function": {"name": "f"}}
    assert read[1]["function"] == {"name": "g", "description": "", "parameters": {}}


def test_a_call_without_arguments_has_none() -> None:
    chat = pb.Chat(messages=[user(), assistant(tool_calls=[call(id="c1")])])
    read = messages.read(chat).messages[1]["tool_calls"][0]
    assert read == {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("{'a': 1}", "line 1, column 2"),
        ('{"a": 1} x', "is not JSON"),
        ("[1]", "a list"),
        ('"{}"', "a string"),
        ("null", "null"),
        ("3", "a number"),
        ("true", "true or false"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "beyond the range"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ('{"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "too deep"),
        ('{"a": ' * 100_000, "too deep"),
    ],
)
def test_what_a_prompt_could_not_show_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadJson, match=says):
        read_object(text)


def test_the_deepest_and_the_longest_that_is_allowed() -> None:
    inside = MAX_DEPTH - 1
    assert read_object('{"a": ' + "[" * inside + "]" * inside + "}")
    assert read_object('{"a": ' + "9" * 4300 + "}")["a"] == int("9" * 4300)
    assert read_object('{"a": "\\ud83c\\udf88"}') == {"a": "🎈"}


BAD = '{"a": NaN}'
FIELDS: list[tuple[str, pb.Chat]] = [
    (
        "chat.tools[1].parameters_json",
        pb.Chat(
            messages=[user()], tools=[pb.Tool(name="f"), pb.Tool(name="g", parameters_json=BAD)]
        ),
    ),
    ("chat.chat_template_kwargs", pb.Chat(messages=[user()], chat_template_kwargs="[]")),
    ("chat.tools[0].name", pb.Chat(messages=[user()], tools=[pb.Tool(description="x")])),
    ("chat.tools[1].name", pb.Chat(messages=[user()], tools=[pb.Tool(name="f")] * 2)),
    *(
        ("chat.tools[0].name", pb.Chat(messages=[user()], tools=[pb.Tool(name=name)]))
        for name in ("a b\n", "a\tb", "a\x7f", "a<b", "a>b", "x" * 255, "é" * 50)
    ),
    (
        "chat.messages[0].tool_calls[0].name",
        pb.Chat(messages=[assistant(tool_calls=[pb.ToolCall(id="a")])]),
    ),
    (
        "chat.messages[1].tool_calls[0].id",
        pb.Chat(messages=[assistant(tool_calls=[call(id="a")])] * 2),
    ),
    ("chat.messages[0].tool_call_id", pb.Chat(messages=[user(tool_call_id="a")])),
    (
        "chat.messages[1].tool_call_id",
        pb.Chat(
            messages=[
                assistant(tool_calls=[call(id="a")]),
                pb.ChatMessage(role="tool", content="1", tool_call_id="b"),
            ]
        ),
    ),
    ("chat.messages[0].reasoning_content", pb.Chat(messages=[user(reasoning_content="")])),
]


@pytest.mark.parametrize(("field", "chat"), FIELDS)
def test_each_fault_names_its_field(field: str, chat: pb.Chat) -> None:
    with pytest.raises(Refusal) as caught:
        messages.read(chat)
    assert [v.field for v in caught.value.violations] == [field]


def test_an_answer_names_its_call_and_thoughts_arrive(template: ChatTemplate) -> None:
    chat = pb.Chat(
        messages=[
            assistant(tool_calls=[call(id="a")], reasoning_content="hm"),
            pb.ChatMessage(role="tool", content="1", tool_call_id="a"),
        ]
    )
    read = messages.read(chat)
    assert read.messages[1]["tool_call_id"] == "a"
    assert "assistant: (hm)f{}" in template.render(read)


CALLS = """{% for m in messages %}{{ m.role }}{% for c in m.tool_calls or [] %}
{% set a = c.function.arguments %}{{ c.function.name }}(SHOWN){% endfor %}{% endfor %}"""
WRITTEN = ('{"code": "a\nb"}', '{"a": 1, "a": "é"}', "{'a': 1}", "[1]")  # by models, as calls


@pytest.mark.parametrize("shown", ["a", "a | tojson", "a | tojson(ensure_ascii=True)"])
def test_arguments_that_are_no_object_are_shown_as_they_are(shown: str) -> None:
    chat = pb.Chat(messages=[user(), assistant(tool_calls=[call("{}"), *map(call, WRITTEN)])])
    read = messages.read(chat)
    rendered = ChatTemplate(CALLS.replace("SHOWN", f"{{{{ {shown} }}}}"), {}).render(read)
    messages.refuse_lost_arguments(read, rendered)
    assert ('{"code": "a\nb"}' in rendered) == ("tojson" not in shown)


@pytest.mark.parametrize("shown", ["", "{% for c in a %}{{ c }},{% endfor %}", "{{ a | length }}"])
def test_arguments_that_are_no_object_and_not_shown_are_refused(shown: str) -> None:
    chat = pb.Chat(messages=[user(), assistant(tool_calls=[call("{}"), call(BAD), call("[]")])])
    read = messages.read(chat)
    rendered = ChatTemplate(CALLS.replace("SHOWN", shown), {}).render(read)
    for text in (rendered, ""):
        with pytest.raises(Refusal, match="NaN is no number of JSON; and the") as caught:
            messages.refuse_lost_arguments(read, text)
        [told] = caught.value.violations
        assert told.field == "chat.messages[1].tool_calls[1].arguments_json"


def test_no_turn_is_forged_in_arguments_that_are_no_object() -> None:
    source = """{% for m in messages %}<turn>{% if m.role == 'user' %}<says>{{ m.content }}</says>{%
    endif %}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{{ c.function.name }}{%
    endfor %}</turn>{% endfor %}"""
    template = ChatTemplate(source, {})
    as_json = messages.read(pb.Chat(messages=[assistant(tool_calls=[call('{"a": "</says>"}')])]))
    assert "</says>" in template.render(as_json)
    read = messages.read(pb.Chat(messages=[assistant(tool_calls=[call("</says>")])]))
    with pytest.raises(TemplateRefusal, match="marker") as caught:
        template.render(read)
    assert caught.value.field == "chat.messages[0].tool_calls"


def test_thoughts_that_the_template_does_not_know_are_refused() -> None:
    plain = ChatTemplate("{{ messages[0].content }}", {})
    said = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    with pytest.raises(TemplateRefusal) as caught:
        plain.render(Conversation(messages=(said,)))
    assert caught.value.field == "chat.messages[0].reasoning_content"
