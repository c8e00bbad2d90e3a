"""What templates render, equal to transformers; what they ignore; and what rendering may cost."""

import contextlib
import gc
import weakref
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support.template_oracle import (
    TOKENS,
    TOOLS,
    call,
    chats,
    expected,
    fitting,
    random_chat,
    said,
    templates,
)

from quire.engine.errors import ModelError
from quire.service.text import template_traits
from quire.service.text.chat_template import ChatTemplate, Conversation, TemplateRefusal
from quire.service.text.template_meter import RenderLimits
from quire.service.text.workers import NotWanted

USER = said("user", "Hi <b> 'Köln'")
FILES = templates()
RANDOM_CHATS = 40  # of each template


@pytest.mark.skipif(not FILES, reason="no package with templates is here (TESTS_TEMPLATES)")
@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}/{p.name}" for p in FILES])
def test_public_templates_render_as_in_transformers(path: Path) -> None:
    source, seen = path.read_text(encoding="utf-8"), Counter[str]()
    template = ChatTemplate(source, TOKENS)
    traits = template.traits()
    for chat in (*chats(), *(random_chat(seed) for seed in range(RANDOM_CHATS))):
        fits = fitting(traits, chat)
        theirs = expected(source, fits)
        if isinstance(theirs, Exception):
            with pytest.raises(TemplateRefusal):
                template.render(Conversation(**fits))
        else:
            assert template.render(Conversation(**fits)) == theirs
        seen[type(theirs).__name__] += 1
    if not seen["str"]:  # what they want, no chat here has: a text of functions, say
        pytest.skip("transformers renders none of these chats either: all were refused by both")


SOURCES = [
    "a{% generation %}{{ messages[0].content }}{% endgeneration %}b",
    "{%- for m in messages %}{%- generation -%}\n {{ m.content }} {% endgeneration %}{% endfor %}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{{ messages[0] | tojson(indent=2) }}",
    "{{ messages[0] | tojson(ensure_ascii=true) }}",
    "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}",
    "{{ tools | tojson(indent=4) }}{{ tools is none }}",
    "{{ strftime_now('%Y') }}{{ documents is defined }}{{ documents is none }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}"
    "{% if i == 5 %}{% break %}{% endif %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ dict(a=1) }}{{ dict.fromkeys(['x']) }}",
    "{% macro f(obj, context='c') %}{{ obj ~ context }}{% endmacro %}{{ f(obj='o', context='d') }}",
    "{{ namespace(self=1).self }}{{ 'a' * 3 + 'b' }}{{ '%s!' % messages[0].role }}",
    "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}|{{ messages[0] }}",
    "{{ bos_token }}{{ messages[-1]['content'] | trim | upper }}{{ eos_token }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception('no') }}",
    "{% set _ = namespace(_x=1) %}",
    "{{ dict.__class__ }}",
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_tags_filters_and_names_do_what_they_do_in_transformers(
    source: str, tools: tuple[dict[str, Any], ...]
) -> None:
    template = ChatTemplate(source, TOKENS)
    thoughts = {"reasoning_content": "Hm"} if "thinking" in source else {}
    chat = {"messages": (said("assistant", "Wörter \n", **thoughts),)}
    if template.traits().shows_tools:
        chat |= {"tools": tools}
    theirs = expected(source, chat)
    if isinstance(theirs, Exception):
        with pytest.raises(TemplateRefusal):
            template.render(Conversation(**chat))
    else:
        assert template.render(Conversation(**chat)) == theirs


def test_the_time_is_this_machines() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {})
    before = datetime.now().strftime("%d %b %Y")
    text = template.render(Conversation((USER,)))
    assert text in (before, datetime.now().strftime("%d %b %Y"))


def test_a_template_for_tools_is_used_where_there_are_tools() -> None:
    named = {"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ tools | length }}"}
    template = ChatTemplate(named, {})
    assert template.render(Conversation((USER,))) == "plain " + USER["content"]
    assert template.render(Conversation((USER,), tools=TOOLS)) == "tools 2"
    with pytest.raises(TemplateRefusal, match="none is called default"):
        ChatTemplate({"rag": "x", "tool_use": "y"}, {}).render(Conversation((USER,)))


# ------------------------------------------------------------ what is ignored

STRICT = """
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}
    {%- if m.role == 'assistant' and not (m.content or m.tool_calls) %}
        {{- raise_exception('empty') }}
    {%- endif %}
    {%- if m.name is defined and m.name not in ('ann', 'bob') %}
        {{- raise_exception('who') }}
    {%- endif %}
    {{- m.role + (' ' + m.name if m.name else '') + ': ' + m.content }}
    {%- for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}
{%- endfor %}"""


def test_only_the_clients_own_chat_is_judged() -> None:
    template = ChatTemplate(STRICT, {})
    messages = (
        said("user", "x", name="ann"),
        said("assistant", "", tool_calls=[call("f")]),
        said("user", "y", name="bob"),
    )
    assert template.render(Conversation(messages)) == "user ann: xassistant: fuser bob: y"
    with pytest.raises(TemplateRefusal, match="who"):
        template.render(Conversation((said("user", "x", name="eve"),)))


IGNORED = [
    ("{{ messages[0].content }}", "user", {"name": "ann"}),
    ("{% if messages[0].name %}{% endif %}{{ messages[0].content }}", "user", {"name": "ann"}),
    (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'tool' %}{{ m.name }}{% endif %}"
        "{% endfor %}",
        "user",
        {"name": "ann"},
    ),
    (
        "{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}",
        "assistant",
        {"tool_calls": [call("f")]},
    ),
    ("{{ messages[0].content }}", "assistant", {"reasoning_content": "Hm"}),
]


@pytest.mark.parametrize(("source", "role", "fields"), IGNORED)
def test_what_a_template_never_shows_is_refused(
    source: str, role: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(TemplateRefusal, match="ignore") as caught:
        ChatTemplate(source, {}).render(Conversation((said(role, "x", **fields), said(role, "y"))))
    assert caught.value.field == f"chat.messages[0].{next(iter(fields))}"


def test_thoughts_alone_may_be_left_out_if_that_is_asked_for() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    thinking = said("assistant", "b", reasoning_content="Hm")
    chat = Conversation((USER, thinking), omit_unshown_reasoning=True)
    assert template.render(chat) == USER["content"] + "b"
    with pytest.raises(TemplateRefusal, match="ignore"):
        template.render(replace(chat, messages=(USER, thinking | {"tool_calls": [call("f")]})))


def test_names_that_tell_nobody_apart_may_be_ignored() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    system, user = said("system", "a", name="Helper"), said("user", "b", name="ann")
    alone = (system, user, said("assistant", "c", name="Helper"), user)
    assert template.render(Conversation(alone)) == "abcb"
    for other in (said("user", "b"), said("user", "b", name="bob")):
        with pytest.raises(
            TemplateRefusal, match=r"messages\[1\]\.name: .* ignore it; its content may say"
        ):
            template.render(Conversation((*alone, other)))
    with pytest.raises(TemplateRefusal, match=r"messages\[2\]\.name"):  # a function's is no speaker
        template.render(Conversation((user, said("assistant", ""), said("tool", "3", name="add"))))


@pytest.mark.parametrize("source", ["{{ messages | tojson }}", "{{ messages[0] }}"])
def test_a_template_that_writes_messages_as_a_whole_shows_all(source: str) -> None:
    message = said("assistant", "x", name="ann", tool_calls=[call("f")], reasoning_content="Hm")
    text = ChatTemplate(source, {}).render(Conversation((message,)))
    assert all(word in text for word in ("ann", "function", "Hm"))


def test_thoughts_that_a_template_leaves_out_of_earlier_turns_are_taken() -> None:
    source = (
        "{% for m in messages %}{% if loop.last %}{{ m.reasoning_content }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    thinking = said("assistant", "b", reasoning_content="Hm")
    assert ChatTemplate(source, {}).render(Conversation((thinking, said("user", "c")))) == "bc"


def test_a_name_of_the_environment_cannot_be_replaced() -> None:
    template = ChatTemplate("{{ raise_exception('no') if colour else 'yes' }}", {})
    assert template.render(Conversation((USER,), chat_template_kwargs={"colour": 0})) == "yes"
    for key in ("raise_exception", "namespace", "messages", "size"):
        with pytest.raises(TemplateRefusal) as caught:
            template.render(Conversation((USER,), chat_template_kwargs={key: 1}))
        assert caught.value.field == f"chat.chat_template_kwargs.{key}"


# ------------------------------------------------------------ what it costs


def test_a_chat_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(STRICT, {})
    calls, rendered = [call("f")], 0
    turns = [said("user", "x", name="ann"), said("assistant", "", tool_calls=calls)]
    environment = type(template._compiled["default"].environment)
    render = environment.render

    def counting(*arguments: Any) -> str:
        nonlocal rendered
        rendered += 1
        return render(*arguments)

    monkeypatch.setattr(environment, "render", counting)
    template.render(Conversation((*turns,) * 200))
    assert rendered == 1


def test_steps_grow_with_the_turns_alone() -> None:
    template = ChatTemplate(STRICT, {})
    turns = (said("user", "x", name="ann"), said("assistant", "", tool_calls=[call("f")]))
    template.render(Conversation(turns * 1000), RenderLimits(max_steps=40_000))


NESTED: Any = 0
for _ in range(200):
    NESTED = [NESTED]
BOMBS = [
    ("{% for m in messages %}{{ 'x' * 100 }}{% endfor %}", {}),
    ("{% set t %}{% for m in messages %}{{ 'x' * 100 }}{% endfor %}{% endset %}", {}),
    ("{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}"
     "{% endfor %}", {}),
    ("{{ 'x' * n }}", {"n": 10**12}),
    ("{{ n | tojson(indent=1000) }}", {"n": [NESTED] * 50}),
    ("{{ messages | tojson(indent=n) }}", {"n": 10**12}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "kwargs"), BOMBS)
def test_a_text_is_bounded_while_it_is_made(source: str, kwargs: dict[str, Any]) -> None:
    chat = Conversation((said("user", "abcdefgh"),) * 500, chat_template_kwargs=kwargs)
    with pytest.raises(TemplateRefusal, match="more than 4096 bytes"):
        ChatTemplate(source, {}).render(chat, RenderLimits(max_bytes=4096))


DOUBLED = "{% for i in range(30) %}{% set ns.x = DOUBLE %}{% endfor %}"
TUPLES = "{% set ns = namespace(x=()) %}" + DOUBLED.replace("DOUBLE", "(ns.x, ns.x)")
MUCH = [  # each makes, or goes through, more than 16 million characters, digits, places or rounds
    "{{ '%20000000d' % 1 }}",
    "{{ '%*d' % (20000000, 1) }}",
    "{{ '%-.*f' % (20000000, 1) }}",
    "{{ '%20000000d'.encode() % 1 }}",
    "{{ '%.20000000f' % 1 }}",
    "{{ '%(a)20000000s' % {'a': 1} }}",
    "{{ '%(a(b))20000000s' % {'a(b)': 1} }}",
    "{{ '{0!r:20000000}'.format(1) }}",
    "{{ '{0[}]:{1}}'.format({'}': 'x'}, 20000000) }}",
    "{{ ('a' * 5000) | replace(new='a' * 5000, old='a') }}",
    "{{ none | center(20000000) }}",
    "{{ '%20000000d' | format(1) }}",
    "{{ '{:20000000d}'.format(1) }}",
    "{{ '{:{}}'.format(1, 20000000) }}",
    "{{ 'a'.center(20000000) }}",
    "{{ 'a' | center(20000000) }}",
    "{{ 'a\n' | indent(20000000) }}",
    "{{ 'a'.zfill(20000000) }}",
    "{{ (5).to_bytes(20000000, 'big') | length }}",
    "{{ ('a' * 5000) | replace('a', 'a' * 5000) }}",
    "{{ ('a' * 5000).translate({97: 'a' * 5000}) }}",
    "{{ ('a' * 1000).join(range(20000) | map('string')) }}",
    "{{ range(20000) | map('string') | join('a' * 1000) }}",
    "{{ ('a ' * 5000) | wordwrap(1, wrapstring='a' * 5000) }}",
    "{{ ('<!-- -->' * 1000) | striptags }}",
    "{{ 5 | round(-20000000) }}",
    "{{ 10 ** 20000 > 1 }}",
    "{% set ns = namespace(x=7) %}" + DOUBLED.replace("DOUBLE", "ns.x * ns.x"),
    "{% set ns = namespace(x='a') %}" + DOUBLED.replace("DOUBLE", "ns.x ~ ns.x"),
    TUPLES + "{{ ns.x }}",
    TUPLES + "{{ {ns.x: 1} }}",
    "{% set t %}{% for i in range(9000) %}{{ messages[0].content[1:] }}{% endfor %}{% endset %}",
    "{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}",
    "{% for i in range(9000) %}{% for j in range(9000) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(9000) recursive %}{{ loop([i]) if loop.depth < 3 }}{% endfor %}",
    "{{ range(90000) | map('upper') | list }}",
    "{{ ('%s' * 30000) % messages[0].role }}",
    "{{ ('%s' * 30000) | format(messages[0].role) }}",
    "{{ ('{}' * 30000).format(messages[0].role) }}",
]


@pytest.mark.parametrize("source", MUCH)
def test_a_template_that_makes_much_of_nothing_is_refused_at_load(source: str) -> None:
    with pytest.raises(ModelError, match=r"^some/where\.jinja: a chat of a few words .*more than"):
        ChatTemplate(source, {}, origin="some/where.jinja")


@pytest.mark.parametrize("source", MUCH)
def test_and_at_a_call(source: str) -> None:
    template = ChatTemplate(
        "{% if messages[0].content.startswith('now') %}" + source + "{% endif %}", {}
    )
    chat = Conversation((said("user", "now" * 2000),))
    with pytest.raises(TemplateRefusal, match="more than"):
        template.render(chat, RenderLimits(max_bytes=1 << 18, max_steps=20_000))


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f(x, y=0) %}{{ x }} {{ y }}{% endmacro %}{{ f(n, y=n) }}",
        "{% macro f() %}{{ caller(n) }}{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}",
        "{{ namespace(x=n).x }}{{ dict(x=n) }}{{ dict.fromkeys([n], n) }}",
        "{% for i in [1, n] %}{{ loop.changed(n) }}{{ loop.cycle(n, i) }}{% endfor %}",
        "{% for i in [[n]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}",
        "{{ '* %s of *%d*' % (n, n) }}{{ '** %s' | format(n) }}{{ '*{}'.format(n) }}",
        "{{ '99999999999 %s' % n }}{{ '{0} of 99999999999'.format(n) }}{{ '1.5' | float(n) }}",
        '{{ \'{"type": {"name": "%s"}}\' % n }}{{ \'{"a": {"b": "%s"}}\' | format(n) }}',
        "{{ '%(a)s %%' % {'a': n} }}{{ '{:>3}{a[:]}'.format(n, a={':': n}) }}",
    ],
)
def test_a_large_number_is_repeated_by_what_repeats_alone(source: str) -> None:
    """A time in milliseconds among a call's arguments is no length of anything."""
    chat: dict[str, Any] = {"messages": (USER,), "chat_template_kwargs": {"n": 1_795_000_000_000}}
    rendered = expected(source, chat)
    assert isinstance(rendered, str) and "1795000000000" in rendered
    assert ChatTemplate(source, {}).render(Conversation(**chat)) == rendered


def test_a_namespace_that_holds_others_is_written_without_them() -> None:
    source = "{% set a = namespace(x=1) %}{% set b = namespace(x=a, y=a) %}{{ b }}"
    assert ChatTemplate(source, {}).render(Conversation((USER,))) == "<Namespace>"


def test_a_rendering_takes_so_much_time_and_no_more() -> None:
    template = ChatTemplate("{% for i in range(16) %}{% endfor %}", {})
    with pytest.raises(TemplateRefusal, match="more than 0 s"):
        template.render(Conversation((USER,)), RenderLimits(max_seconds=0))


@pytest.mark.parametrize("source", ["{% for i in range(99) %}{% endfor %}", "<a></a>" * 99])
def test_a_template_is_loaded_in_so_much_time_and_no_more(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_traits, "_MAX_SECONDS", 0.0)
    with pytest.raises(ModelError, match=r"where\.jinja: .* takes the chat template more than 0 s"):
        ChatTemplate(source + "{{ messages[0].content }}</b>", {}, origin="where.jinja")


def test_a_template_too_long_to_compile_is_refused() -> None:
    with pytest.raises(ModelError, match=r"where\.jinja: .* 300000 characters: at most 262144"):
        ChatTemplate("x" * 300_000, {}, origin="where.jinja")


def test_bytes_are_counted_and_not_characters() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    chat = Conversation((said("user", "日本"),))
    assert template.render(chat, RenderLimits(max_bytes=6)) == "日本"
    with pytest.raises(TemplateRefusal, match="more than 5 bytes"):
        template.render(chat, RenderLimits(max_bytes=5))


def test_a_template_that_compares_all_with_all_is_stopped() -> None:
    source = "{% for a in messages %}{% for b in messages %}{% if a.x == b.x %}{% endif %}{% endfor %}{% endfor %}"  # noqa: E501
    chat = Conversation((USER,) * 1000)
    with pytest.raises(TemplateRefusal, match="steps"):
        ChatTemplate(source, {}).render(chat, RenderLimits(max_steps=10_000))


def test_rendering_ends_when_nobody_waits() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    answers = iter([True, True, False])
    limits = RenderLimits(wanted=lambda: next(answers))
    with pytest.raises(NotWanted):
        ChatTemplate(source, {}).render(Conversation((USER,) * 5000), limits)
    assert next(answers, None) is None


def test_values_nested_deeply_are_refused_and_nothing_breaks() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    template = ChatTemplate("{{ n | tojson }}", {})
    with pytest.raises(TemplateRefusal):
        template.render(Conversation((USER,), chat_template_kwargs={"n": deep}))


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'x' | nofilter }}", "{% generation %}"])
def test_a_template_that_cannot_be_compiled_names_its_file(source: str) -> None:
    with pytest.raises(ModelError, match=r"some/where\.jinja"):
        ChatTemplate(source, {}, origin="some/where.jinja")


@pytest.mark.parametrize("source", ["{{ messages }}", "{{ raise_exception('no') }}"])
def test_nothing_of_a_call_is_kept_until_its_thread_renders_again(source: str) -> None:
    """Who asks whether it is wanted knows the call, and so its prompt."""

    def wanted() -> bool:
        return True

    template = ChatTemplate(source, {})
    known, limits = weakref.ref(wanted), RenderLimits(wanted=wanted)
    with contextlib.suppress(TemplateRefusal):
        template.render(Conversation((USER,)), limits)
    del wanted, limits
    gc.collect()
    assert known() is None
