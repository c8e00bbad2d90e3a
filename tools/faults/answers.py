"""Faults of reading answers: thoughts, text and calls of tools."""

from faults.fault import Fault

PARSER = "tests/service/answers/test_output_parser.py::test_"
SERVED = "tests/service/answers/test_answers_served.py::test_"
GRAMMAR = "tests/service/answers/test_tool_grammar.py::test_"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "answers: calls that are shown to nobody have to be counted",
        "service/rpc/answer_reading.py",
        "    elif not asked and shows_tools(request.chat) and not counted:\n",
        "    elif not asked and not counted:\n",
        (SERVED + "where_calls_are_not_read_what_asks_for_them_is_refused_by_its_own_name",),
    ),
    Fault(
        "answers: a strict tool that cannot be honoured is told as a choice",
        "service/rpc/tool_constraint.py",
        'if must_call(chat) else f"chat.tools[{strict}].strict"',
        'if chat.tools else f"chat.tools[{strict}].strict"',
        (SERVED + "where_calls_are_not_read_what_asks_for_them_is_refused_by_its_own_name",),
    ),
    Fault(
        "answers-held-text-is-copied-with-each-character",
        "service/answers/steps.py",
        "        self._held.append(text)\n",
        "        self._held = [self.held + text]\n",
        (PARSER + "what_is_held_is_not_copied_with_each_character",),
    ),
    Fault(
        "answers-tag-behind-a-broken-tag-lost",
        "service/answers/steps.py",
        "            if character != wanted:\n                self.unread(character)\n",
        "            if character != wanted:\n                self.hold(character)\n",
        (PARSER + "markup_that_is_none_is_text",),
    ),
    Fault(
        "answers-quotes-inside-strings-end-them",
        "service/answers/json_scanner.py",
        '        elif run == "\\\\":\n            self._escaped = True\n',
        "",
        (PARSER + "arguments_of_hermes_come_as_they_are_written",),
    ),
    Fault(
        "answers-cut-markup-is-swallowed",
        "service/answers/steps.py",
        '        """No more characters come."""\n        self.give_back()\n',
        '        """No more characters come."""\n        self.drop()\n',
        (PARSER + "markup_that_is_none_is_text",),
    ),
    Fault(
        "answers-tag-inside-a-value-ends-it",
        "service/answers/xml_calls.py",
        "        if tag is not None:\n            return\n",
        "        return\n",
        (PARSER + "a_tag_inside_a_value_does_not_end_it",),
    ),
    Fault(
        "answers-ids-leave-before-their-text",
        "service/rpc/answer_stream.py",
        "            if self._parser.certain:\n",
        "            if True:\n",
        (
            "tests/service/answers/test_answer_stream.py"
            "::test_no_id_leaves_while_its_text_may_yet_be_markup",
        ),
    ),
    Fault(
        "answers-resumed-without-the-parser",
        "service/rpc/answer_stream.py",
        "self._text.replay(token_ids, heard)",
        "self._text.replay(token_ids)",
        (SERVED + "resumed_behind_any_token_the_rest_comes_and_ids_repeat",),
    ),
    Fault(
        "answers-resumed-behind-a-stop-string-hear-what-it-cut-off",
        "service/text/text_stream.py",
        "                self._cut(match)\n                break\n",
        "                break\n",
        (SERVED + "resumed_behind_a_stop_string_what_it_cut_off_counts_for_nothing",),
    ),
    Fault(
        "answers-ids-of-calls-repeat-in-the-next-turn",
        "service/rpc/answer_stream.py",
        '        made.update(array("Q", self._generation.prompt_token_ids).tobytes())\n',
        '        array("Q")\n',
        (SERVED + "resumed_behind_any_token_the_rest_comes_and_ids_repeat",),
    ),
    Fault(
        "answers-cut-call-waits-for-its-answer",
        "service/rpc/answer_stream.py",
        "self._parser.calls > 0 and not self._parser.in_call",
        "self._parser.calls > 0",
        (SERVED + "stop_strings_cut_what_was_written",),
    ),
    Fault(
        "answers-strict-tools-take-anything",
        "service/answers/tool_grammar.py",
        "held = [tool.strict or (must_call and not loose)",
        "held = [must_call and not loose",
        (GRAMMAR + "invalid_calls_do_not_pass",),
    ),
    Fault(
        "answers-a-schema-in-a-circle-is-gone-round",
        "service/answers/schema_types.py",
        "        seen.add(id(part))\n",
        "        seen.add(len(seen))\n",
        (GRAMMAR + "a_schema_that_leads_back_to_itself_is_looked_at_once",),
    ),
)
