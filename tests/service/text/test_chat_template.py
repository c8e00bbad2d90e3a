"""What a template renders, equal to transformers, and what is refused because it would be lost."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from quire.engine.errors import ModelError
from quire.service.models import pocket
from quire.service.text.chat_template import ChatTemplate, Conversation, TemplateRefusal
from quire.service.text.tokenizer import load

TEMPLATE = """
{%- if tools %}
    {{- 'TOOLS:\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n' }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'nobody' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role }}
    {%- if message.role == 'tool' and message.name %}{{ ' of ' + message.name }}{% endif %}
    {{- '\\n' + message.content }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '\\ncall ' + call.function.name + call.function.arguments | tojson }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}
"""
TOOLS = (
    {
        "type": "function",
        "function": {"name": "weather", "description": "Würde sagen", "parameters": {"a": 1}},
    },
)
CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"place": "Köln"}}}]


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    tokenizer = load(pocket.directory(), 4096)
    return ChatTemplate(TEMPLATE, tokenizer.template_tokens, tokenizer.special_tokens)


def user(content: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


ASSISTANT = {"role": "assistant", "content": "", "tool_calls": CALL}
CHATS: list[dict[str, Any]] = [
    {"messages": (user(),)},
    {"messages": ({"role": "system", "content": "Be brief."}, user("Zwölf\n\n <b>"))},
    {"messages": (user(),), "add_generation_prompt": False},
    {"messages": (user(),), "chat_template_kwargs": {"enable_thinking": False}},
    {
        "messages": (user(), {"role": "assistant", "content": "", "tool_calls": CALL}),
        "tools": TOOLS,
    },
    {"messages": (user(), {"role": "tool", "content": "12", "name": "weather"}), "tools": TOOLS},
]


@pytest.mark.parametrize("chat", CHATS)
def test_it_renders_as_transformers_does(template: ChatTemplate, chat: dict[str, Any]) -> None:
    oracle = PreTrainedTokenizerFast.from_pretrained(str(pocket.directory()))
    expected = oracle.apply_chat_template(
        list(chat["messages"]),
        tools=list(chat.get("tools", ())) or None,
        chat_template=TEMPLATE,
        add_generation_prompt=chat.get("add_generation_prompt", True),
        tokenize=False,
        **chat.get("chat_template_kwargs", {}),
    )
    assert template.render(Conversation(**chat)) == expected


def test_the_embedded_model_encodes_as_transformers_does() -> None:
    oracle = PreTrainedTokenizerFast.from_pretrained(str(pocket.directory()))
    tokenizer = load(pocket.directory(), 4096)
    for text in ("Hello, world", "  <|im_start|>user\n naïve 日本 👍🏽", "a\r\n\tb"):
        assert tokenizer.encode(text, add_special_tokens=True) == oracle.encode(text)
    ours = ChatTemplate.of(tokenizer)
    assert ours is not None
    messages = (user("What is a cat?"),)
    theirs = oracle.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    assert ours.render(Conversation(messages)) == theirs
    assert set(tokenizer.eos_token_ids) == {oracle.eos_token_id}


LOST: list[tuple[str, dict[str, Any]]] = [
    ("chat.messages", {"messages": ()}),
    ("chat.messages[0].name", {"messages": (user(name="bob"), user())}),
    ("chat.messages[1].content", {"messages": (user(), user("x<|im_end|>"))}),
    ("chat.messages[0].tool_calls", {"messages": (user(tool_calls=[{"a": "<|im_start|>"}]),)}),
    ("chat.tools[0]", {"messages": (user(),), "tools": ({"name": "<|im_end|>"},)}),
    (
        "chat.chat_template_kwargs.enable_thinking",
        {"messages": (user(),), "chat_template_kwargs": {"enable_thinking": "<|im_end|>"}},
    ),
    (
        "chat.chat_template_kwargs.colour",
        {"messages": (user(),), "chat_template_kwargs": {"colour": 1}},
    ),
    (
        "chat.chat_template_kwargs.eos_token",
        {"messages": (user(),), "chat_template_kwargs": {"eos_token": "x"}},
    ),
    ("chat", {"messages": (user(), {"role": "assistant", "content": None})}),
    (
        "chat.continue_final_message",
        {
            "messages": (user(), {"role": "assistant", "content": "So", "tool_calls": CALL}),
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
    ),
]


@pytest.mark.parametrize(("field", "chat"), LOST)
def test_nothing_is_lost_without_a_word(
    template: ChatTemplate, field: str, chat: dict[str, Any]
) -> None:
    with pytest.raises(TemplateRefusal) as caught:
        template.render(Conversation(**chat))
    assert caught.value.field == field


def test_the_last_message_is_left_open_as_it_was_written(template: ChatTemplate) -> None:
    messages = (user(), {"role": "assistant", "content": "Well,  "})
    chat = Conversation(messages, add_generation_prompt=False, continue_final_message=True)
    assert template.render(chat).endswith("<|im_start|>assistant\nWell,  ")
    silent = ChatTemplate("{{ messages[0].content }}", {})
    with pytest.raises(TemplateRefusal, match="last message"):
        silent.render(chat)


class Searched(str):
    """A text that counts how often something is looked for in it."""

    searches = 0

    def __contains__(self, part: object) -> bool:
        self.searches += 1
        return str(self).__contains__(part)


def test_what_marks_the_end_of_an_open_message_is_not_looked_for_again_and_again(
    template: ChatTemplate,
) -> None:
    """Whatever a client writes: each mark in a row of them would be longer than the last."""
    content = Searched("QUIRE-END-OF-MESSAGE" + "-X" * 100)
    messages = (user(), {"role": "assistant", "content": content})
    chat = Conversation(messages, add_generation_prompt=False, continue_final_message=True)
    assert template.render(chat).endswith(content)
    assert content.searches <= 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].missing.deeper }}",
    ],
)
def test_a_template_can_do_no_harm(source: str) -> None:
    hostile = ChatTemplate(source, {})
    try:
        assert hostile.render(Conversation((user(),))) == ""  # the sandbox gives nothing
    except TemplateRefusal as refusal:
        assert refusal.field == "chat"


def test_a_broken_template_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate("{% for %}", {})


def test_a_variable_that_a_template_does_not_mention_is_refused_but_the_usual_effort() -> None:
    """Medium is what a template that knows no effort does; one that does is told of it too."""

    def told(source: str, **kwargs: Any) -> str:
        chat = Conversation(({"role": "user", "content": "x"},), chat_template_kwargs=kwargs)
        return ChatTemplate(source, {}).render(chat)

    effort = "{{ reasoning_effort or 'high' }}"
    plain = "{{ messages[0].content }}"
    assert told(plain, reasoning_effort="medium") == told(plain) == "x"
    assert told(plain + effort) == "xhigh"
    assert told(plain + effort, reasoning_effort="medium") == "xmedium"
    for kwargs in ({"reasoning_effort": "low"}, {"reasoning_effort": None}, {"effort": "medium"}):
        with pytest.raises(TemplateRefusal, match="does not mention it"):
            told(plain, **kwargs)
