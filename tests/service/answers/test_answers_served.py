"""Thoughts and calls over the wire: from a device that says given ids."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from support.answer_reference import Whole
from support.harness import Answer, generate, run
from support.scripted import TOKENIZER, ScriptedDevice, ids_of, serving_template
from support.tool_templates import HERMES, OTHER, PLAIN, XML

from quire.v1 import inference_pb2 as pb

TOOL = pb.Tool(
    name="weather",
    description="Tells it.",
    parameters_json='{"type": "object", "properties": {"city": {"type": "string"}, '
    '"days": {"type": "integer"}}}',
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln 🎉", "days": 2}}\n</tool_call>'
XML_CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nKöln 🎉\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
)
ARGUMENTS = '{"city": "Köln 🎉", "days": 2}'
THOUGHT = "<think>\nhm, 1 < 2\n</think>\n\n"


def chat(tools: bool = True, **fields: Any) -> pb.Chat:
    user = pb.ChatMessage(role="user", content="How is it?")
    return pb.Chat(messages=[user], tools=[TOOL] if tools else [], **fields)


def ask(asked: pb.Chat, **fields: Any) -> pb.GenerateRequest:
    names = pb.SamplingParams.DESCRIPTOR.fields_by_name
    sampling = {k: fields.pop(k) for k in list(fields) if k in names}
    return pb.GenerateRequest(
        chat=asked, sampling=pb.SamplingParams(**{"seed": 5, **sampling}), **fields
    )


ANY_OBJECT = pb.Constraint(json_object=True)


def said(answer: Answer, index: int = 0) -> Whole:
    deltas = [d for d in answer.deltas if d.index == index]
    whole = Whole("".join(d.reasoning for d in deltas), "".join(d.text for d in deltas))
    for piece in (piece for d in deltas for piece in d.tool_calls):
        if piece.index == len(whole.calls):
            assert piece.id and piece.name
            whole.calls.append((piece.name, ""))
        else:
            assert not piece.id and not piece.name
        name, arguments = whole.calls[piece.index]
        whole.calls[piece.index] = (name, arguments + piece.arguments_json)
    return whole


def call_ids(answer: Answer, index: int = 0) -> list[str]:
    pieces = (p for d in answer.deltas if d.index == index for p in d.tool_calls)
    return [p.id for p in pieces if p.id]


@pytest.mark.parametrize(
    ("template", "call"), [(HERMES, CALL), (XML, XML_CALL)], ids=["hermes", "xml"]
)
def test_thoughts_text_and_calls_are_told_apart(template: str, call: str, tmp_path: Path) -> None:
    script = f"{THOUGHT}Let me see.\n{call}\n{call}"

    async def test() -> None:
        async with serving_template(template, tmp_path, ScriptedDevice(script)) as running:
            answer = await generate(running, ask(chat(), n=2, logprobs=1))
            for index in (0, 1):
                calls = [("weather", ARGUMENTS)] * 2
                assert said(answer, index) == Whole("hm, 1 < 2", "Let me see.", calls)
                assert answer.ids(index)[:-1] == ids_of(script)
            for delta in answer.deltas:
                assert [p.token_id for p in delta.logprobs] == list(delta.token_ids)
            assert len({*call_ids(answer, 0), *call_ids(answer, 1)}) == 4
            for finished in answer.finished:
                assert finished.reason == pb.FINISH_REASON_TOOL_CALLS
                assert finished.WhichOneof("matched") is None
                assert finished.usage.completion_tokens == len(ids_of(script)) + 1
                assert finished.usage.reasoning_tokens == len(ids_of(THOUGHT.rstrip("\n")))

    run(test)


def test_resumed_behind_any_token_the_rest_comes_and_ids_repeat(tmp_path: Path) -> None:
    script = ids_of(f"{THOUGHT}So <tool_call> it is.\n{CALL}\n{CALL}")

    async def test() -> None:
        async with serving_template(HERMES, tmp_path, ScriptedDevice(script)) as running:
            whole = await generate(running, ask(chat()))
            calls = call_ids(whole)
            held, at = list[pb.Delta](), 0
            for delta in whole.deltas[:-1]:
                held.append(delta)
                at += len(delta.token_ids)
                rest = await generate(running, ask(chat(), resume_token_ids=script[:at]))
                both = Answer(rest.code, "", deltas=[*held, *rest.deltas])
                assert said(both) == said(whole)
                assert call_ids(both) == calls
                assert rest.finished[0].reason == pb.FINISH_REASON_TOOL_CALLS
                usage = rest.finished[0].usage
                thoughts = usage.reasoning_tokens + usage.resumed_reasoning_tokens
                assert thoughts == whole.finished[0].usage.reasoning_tokens
            again = await generate(running, ask(chat(), resume_token_ids=script))
            assert said(again) == Whole()
            other = await generate(running, ask(chat(), seed=6))
            assert not {*call_ids(other)} & {*calls}
            longer = chat()
            longer.messages.add(role="user", content="And now?")
            assert not {*call_ids(await generate(running, ask(longer)))} & {*calls}

    run(test)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("stop", ["</tool", "</tool_call>", "}}\n</tool", "<thi", "think>", "hm"])
def test_resumed_behind_a_stop_string_what_it_cut_off_counts_for_nothing(
    stop: str, kept: bool, tmp_path: Path
) -> None:
    """The token that completes a stop string may hold a whole tag, of which a part stays."""
    script = ids_of(f"{THOUGHT}{CALL}")

    async def test() -> None:
        async with serving_template(HERMES, tmp_path, ScriptedDevice(script)) as running:
            options = {"stop": [stop], "include_stop_str_in_output": kept}
            whole = await generate(running, ask(chat(), **options))
            held = [i for d in whole.deltas if not d.closing for i in d.token_ids]
            rest = await generate(running, ask(chat(), resume_token_ids=held, **options))
            ended, again = whole.finished[0], rest.finished[0]
            assert ended.usage.completion_tokens == len(held)
            assert (again.reason, again.stop_string) == (ended.reason, ended.stop_string)
            assert again.usage.resumed_reasoning_tokens == ended.usage.reasoning_tokens

    run(test)


@pytest.mark.parametrize("parsed", [False, True])
def test_what_was_held_back_until_the_end_says_so(parsed: bool, tmp_path: Path) -> None:
    """So whoever loses the stream behind it leaves it out, and the text is as if unbroken."""
    script = ids_of("one two <tool_call" if parsed else "one two STO")

    async def test() -> None:
        async with serving_template(HERMES, tmp_path, ScriptedDevice(script)) as running:
            options = {"stop": ["STOP"], "max_tokens": len(script), "parse_output": parsed}
            answer = await generate(running, ask(chat(), **options))
            closing = [delta.closing for delta in answer.deltas]
            assert closing == [False] * (len(closing) - 1) + [True]
            held = [i for d in answer.deltas[:-1] for i in d.token_ids]
            assert held != script
            rest = await generate(running, ask(chat(), resume_token_ids=held, **options))
            text = "".join(d.text for d in [*answer.deltas[:-1], *rest.deltas])
            assert text == answer.text() == ("one two <tool_call" if parsed else "one two STO")

    run(test)


def test_a_delta_holds_what_its_ids_made(tmp_path: Path) -> None:
    """Ids wait while their text may be markup: no text is told before its ids, or after."""
    script = "one <tool two\n\n<tool_call>no\n" + CALL

    async def test() -> None:
        async with serving_template(HERMES, tmp_path, ScriptedDevice(script)) as running:
            answer = await generate(running, ask(chat()))
            pieces = TOKENIZER.text_pieces
            for delta in answer.deltas:
                made = b"".join(pieces[i] for i in delta.token_ids).decode()
                assert delta.text in made
                if not delta.tool_calls and "tool_call>" not in made:
                    assert delta.text.strip("\n") == made.strip("\n")

    run(test)


def test_thoughts_that_the_template_opened(tmp_path: Path) -> None:
    async def test() -> None:
        device = ScriptedDevice("thinking\n</think>\n\nanswer")
        async with serving_template(HERMES, tmp_path, device) as running:
            kwargs = '{"enable_thinking": true}'
            answer = await generate(running, ask(chat(False, chat_template_kwargs=kwargs)))
            assert said(answer) == Whole("thinking", "answer")
            assert answer.finished[0].reason == pb.FINISH_REASON_STOP
            cut = await generate(
                running, ask(chat(False, chat_template_kwargs=kwargs), max_tokens=1)
            )
            assert said(cut).text == "" and said(cut).reasoning
            usage = cut.finished[0].usage
            assert usage.reasoning_tokens == usage.completion_tokens == 1
            unopened = await generate(running, ask(chat(False)))
            assert said(unopened) == Whole(text="thinking\n</think>\n\nanswer")

    run(test)


def test_stop_strings_cut_what_was_written(tmp_path: Path) -> None:
    async def test() -> None:
        device = ScriptedDevice(f"{THOUGHT}text {CALL} more")
        async with serving_template(HERMES, tmp_path, device) as running:
            answer = await generate(running, ask(chat(), stop=["</tool_call>"]))
            assert said(answer) == Whole("hm, 1 < 2", "text ", [("weather", ARGUMENTS)])
            assert answer.finished[0].reason == pb.FINISH_REASON_TOOL_CALLS
            half = await generate(running, ask(chat(), stop=["days"]))
            assert said(half).calls == [("weather", '{"city": "Köln 🎉", "')]
            assert half.finished[0].reason == pb.FINISH_REASON_STOP
            assert half.finished[0].stop_string == "days"
            kept = await generate(
                running, ask(chat(), stop=["days"], include_stop_str_in_output=True)
            )
            assert said(kept).calls == [("weather", '{"city": "Köln 🎉", "days')]

    run(test)


def test_an_answer_cut_in_a_call_ends_with_length(tmp_path: Path) -> None:
    async def test() -> None:
        script = ids_of(CALL)
        async with serving_template(HERMES, tmp_path, ScriptedDevice(script)) as running:
            for most in range(1, len(script)):
                answer = await generate(running, ask(chat(), max_tokens=most))
                assert answer.finished[0].reason == pb.FINISH_REASON_LENGTH
                assert answer.ids() == script[:most]
                whole = said(answer)
                if not whole.calls:
                    assert CALL.startswith(whole.text.rstrip("\ufffd"))
                else:
                    arguments = whole.calls[0][1].rstrip("\ufffd")
                    assert not whole.text and ARGUMENTS.startswith(arguments)

    run(test)


def test_who_asks_for_text_gets_it(tmp_path: Path) -> None:
    script = THOUGHT + CALL

    async def test() -> None:
        async with serving_template(HERMES, tmp_path, ScriptedDevice(script)) as running:
            raw = await generate(running, ask(chat(), parse_output=False))
            assert said(raw) == Whole(text=script)
            assert raw.finished[0].reason == pb.FINISH_REASON_STOP
            assert raw.finished[0].usage.reasoning_tokens == 0
            toolless = await generate(running, ask(chat(False)))
            assert said(toolless) == Whole("hm, 1 < 2", CALL)
            none = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE)
            hidden = await generate(running, ask(chat(tool_choice=none)))
            assert said(hidden) == said(toolless)
            assert hidden.started[0].prompt_tokens == toolless.started[0].prompt_tokens
            text = await generate(running, pb.GenerateRequest(text="x"))
            assert said(text) == Whole(text=script)
            asked = await generate(running, pb.GenerateRequest(text="x", parse_output=True))
            assert said(asked) == Whole("hm, 1 < 2", "", [("weather", ARGUMENTS)])
            ids = await generate(running, ask(chat(), ids_only=True))
            assert ids.ids()[:-1] == ids_of(script)

    run(test)


def test_one_call_alone_where_no_more_is_wanted(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving_template(HERMES, tmp_path, ScriptedDevice(CALL + CALL)) as running:
            answer = await generate(running, ask(chat(parallel_tool_calls=False)))
            assert said(answer) == Whole(text=CALL, calls=[("weather", ARGUMENTS)])

    run(test)


def strict() -> pb.Chat:
    asked = chat()
    asked.tools[0].strict = True
    return asked


REQUIRED = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ask(chat(), parse_output=True, ids_only=True), "parse_output"),
        (ask(chat(tool_choice=pb.ToolChoice(name="other"))), "chat.tool_choice.name"),
        (ask(chat(tool_choice=pb.ToolChoice(mode=9))), "chat.tool_choice.mode"),
        (ask(chat(False, tool_choice=REQUIRED)), "chat.tool_choice.mode"),
        (ask(chat(False, parallel_tool_calls=True)), "chat.parallel_tool_calls"),
        (ask(chat(parallel_tool_calls=False), parse_output=False), "chat.parallel_tool_calls"),
        (ask(chat(tool_choice=REQUIRED), constraint=ANY_OBJECT), "constraint"),
        (ask(strict(), constraint=ANY_OBJECT), "constraint"),
    ],
)
def test_what_cannot_be_read_is_refused(
    request_: pb.GenerateRequest, field: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving_template(HERMES, tmp_path, ScriptedDevice("x")) as running:
            answer = await generate(running, request_)
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert field in answer.violations

    run(test)


def test_parsing_where_the_family_is_not_known_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving_template(PLAIN, tmp_path, ScriptedDevice(CALL)) as running:
            answer = await generate(running, ask(chat(False), parse_output=True))
            assert list(answer.violations) == ["parse_output"]
            assert said(await generate(running, ask(chat(False)))) == Whole(text=CALL)

    run(test)


def test_where_calls_are_not_read_what_asks_for_them_is_refused_by_its_own_name(
    tmp_path: Path,
) -> None:
    none = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE)

    async def test() -> None:
        async with serving_template(OTHER, tmp_path, ScriptedDevice("x")) as running:
            for asked, field in (
                (chat(tool_choice=REQUIRED), "chat.tool_choice"),
                (strict(), "chat.tools[0].strict"),
                (chat(parallel_tool_calls=False), "chat.parallel_tool_calls"),
            ):
                assert list((await generate(running, ask(asked))).violations) == [field]
            uncalled = chat(tool_choice=none, parallel_tool_calls=False)
            assert said(await generate(running, ask(uncalled))) == Whole(text="x")

    run(test)


def test_the_option_names_a_parser_or_turns_it_off(tmp_path: Path) -> None:
    async def test() -> None:
        device = ScriptedDevice(THOUGHT + CALL)
        async with serving_template(HERMES, tmp_path, device, output_parser="none") as running:
            assert said(await generate(running, ask(chat()))) == Whole(text=THOUGHT + CALL)
        device.tell(XML_CALL)
        async with serving_template(
            HERMES, tmp_path, device, output_parser="qwen3-coder"
        ) as running:
            answer = await generate(running, ask(chat()))
            assert said(answer).calls == [("weather", ARGUMENTS)]

    run(test)
