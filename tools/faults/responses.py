"""Faults in /v1/responses: what becomes of items, what answers hold, and the order of events."""

from faults.fault import Fault

ITEMS = "tests/clients/openai/test_response_input.py::test_"
FIELDS = "tests/clients/openai/test_responses_fields.py::test_"
EVENTS = "tests/service/openai/test_response_events.py::test_"
CLIENT = "tests/service/openai/test_responses_client.py::test_"
_INPUT = "clients/openai/response_input.py"
_ITEMS = "clients/openai/response_items.py"
_WRITER = "service/openai/response_events.py"

FAULTS = (
    Fault(
        "responses: thoughts that a template never shows are refused when they come back",
        _INPUT,
        "self._chat.omit_unshown_reasoning = True",
        "self._chat.omit_unshown_reasoning = False",
        (CLIENT + "thoughts_go_back_unasked_to_a_template_that_shows_none",),
    ),
    Fault(
        "responses: a turn of many items is put together anew for each",
        _INPUT,
        "            self._texts[len(self._messages) - 1].append(content)\n",
        "            self._messages[-1].content += content\n",
        (
            "tests/clients/openai/test_turns_of_many_parts.py::test_a_turn_of_many_parts_is_put_together_once",
        ),
    ),
    Fault(
        "responses: a turn's calls are a message of their own",
        _INPUT,
        "            if calls or last.tool_calls or not self._spoken:\n",
        "            if not self._spoken:\n",
        (ITEMS + "a_conversation_of_items_is_the_same_chat",),
    ),
    Fault(
        "responses: two answers of the model's become one",
        _INPUT,
        "            if calls or last.tool_calls or not self._spoken:\n",
        "            if last:\n",
        (ITEMS + "what_a_turn_made_is_one_message_until_its_calls_are_answered",),
    ),
    Fault(
        "responses: thoughts that another server has encrypted are passed over",
        _INPUT,
        '        item.only("encrypted_content", "", why="cannot be read here: send content")\n',
        '        item.passed_over("encrypted_content")\n',
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "responses: a fault of an item has a message's number",
        "clients/openai/response_names.py",
        "        return first if other",
        "        return contract if other",
        (ITEMS + "faults_of_the_contract_have_the_names_of_items",),
    ),
    Fault(
        "responses: what repeats a format is of any type",
        "clients/openai/constraints.py",
        "            given.text(name, SHORT)\n",
        "            given.passed_over(name)\n",
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "responses: a conversation without messages is at fault under a chat's name",
        "clients/openai/response_names.py",
        r'r"chat(\.messages)?$"',
        'r"chat$"',
        (ITEMS + "faults_of_the_contract_have_the_names_of_items",),
    ),
    Fault(
        "responses: a fault of a text that several items made is one item's for certain",
        "clients/openai/response_names.py",
        'f"{first} (or a later one of its turn)"',
        "first",
        (ITEMS + "a_fault_of_a_text_of_several_items_names_the_first_and_says_so",),
    ),
    Fault(
        "responses: what repeats an effort is of any length",
        "clients/openai/responses.py",
        'given.text("effort", SHORT)',
        'given.text("effort")',
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "responses: text behind a call comes before it where both waited",
        "service/rpc/answer_stream.py",
        " or (called and Kind.TEXT in kinds)",
        "",
        (
            "tests/service/answers/test_answer_stream.py::"
            "test_text_behind_a_call_is_told_apart_from_text_before_it",
        ),
    ),
    Fault(
        "responses: to name one item all are looked at",
        "clients/openai/response_names.py",
        "            if self.places[number].message != message:\n                return\n",
        "            if self.places[number].message != message:\n                continue\n",
        (ITEMS + "names_are_looked_for_among_the_items_of_one_message",),
    ),
    Fault(
        "responses: an answer to be stored says that it is",
        "clients/openai/responses.py",
        '    "store": False,\n',
        '    "store": True,\n',
        (FIELDS + "the_answer_repeats_what_was_asked_for",),
    ),
    Fault(
        "responses: a call that is cut off by text is closed, and goes on",
        _ITEMS,
        "        if self._is(Kind.CALL) and delta.text:\n",
        "        if not self.all and delta.text:\n",
        (EVENTS + "text_behind_calls_waits_for_the_end",),
    ),
    Fault(
        "responses: an answer that says nothing has no items",
        _ITEMS,
        '        if status == "completed" and not',
        '        if status == "nothing" and not',
        (EVENTS + "an_answer_that_says_nothing_holds_an_empty_message",),
    ),
    Fault(
        "responses: an item is shown with what it will hold as it begins",
        _ITEMS,
        '        begun = self.status == "in_progress"\n',
        '        begun = self.status == "begun"\n',
        (EVENTS + "events_come_in_order_and_hold_what_the_whole_answer_does",),
    ),
    Fault(
        "responses: an answer that was cut is complete",
        "clients/openai/item_answer.py",
        "        short = self.finished.reason == pb.FINISH_REASON_LENGTH\n",
        "        short = False\n",
        (EVENTS + "an_answer_that_was_cut_is_incomplete_and_so_is_its_last_item",),
    ),
    Fault(
        "responses: a stream holds its log-probabilities",
        _WRITER,
        "keeps_logprobs=False",
        "keeps_logprobs=True",
        (EVENTS + "log_probabilities_are_in_whole_answers_and_in_deltas",),
    ),
    Fault(
        "responses: log-probabilities of tokens without text are lost where they come alone",
        _ITEMS,
        "            self._silent = [*self._silent, *delta.logprobs]",
        "            self._silent = []",
        (EVENTS + "log_probabilities_are_in_whole_answers_and_in_deltas",),
    ),
    Fault(
        "responses: thoughts have log-probabilities of the text that comes with them",
        _ITEMS,
        "    if not (delta.reasoning or delta.tool_calls):\n",
        "    if delta:\n",
        (EVENTS + "log_probabilities_of_a_delta_that_waited_are_those_of_its_text",),
    ),
    Fault(
        "responses: a stream holds log-probabilities of text behind a call",
        _ITEMS,
        "_of_text(delta) if self._keeps_logprobs else ()",
        "_of_text(delta)",
        (EVENTS + "a_stream_holds_few_log_probabilities_of_what_waits",),
    ),
    Fault(
        "responses: log-probabilities of tokens without text are kept, however many",
        _ITEMS,
        "[-_MAX_SILENT:]",
        "[0:]",
        (EVENTS + "a_stream_holds_few_log_probabilities_of_what_waits",),
    ),
    Fault(
        "responses: half a call is whole where text was before it",
        _ITEMS,
        '"completed" if _is_whole(self.all[-1].text) else status',
        '"completed"',
        (EVENTS + "a_call_that_was_cut_behind_text_is_incomplete",),
    ),
    Fault(
        "responses: the numbers of events have a gap behind the response's own",
        _WRITER,
        'f"response.{status}", next(self._numbers)\n',
        'f"response.{status}", next(self._numbers) + next(self._numbers)\n',
        (EVENTS + "events_come_in_order_and_hold_what_the_whole_answer_does",),
    ),
    Fault(
        "responses: a stream that fails says no more",
        _WRITER,
        'return b"".join((told, *self._of_response("failed")))\n',
        "return told\n",
        (EVENTS + "a_stream_that_fails_says_so_in_the_form_of_either_client",),
    ),
    Fault(
        "responses: a fault within a stream is told in a form of which clients make nothing",
        _WRITER,
        'fields | {"error": error}',
        "fields",
        (CLIENT + "a_failed_step_is_a_status_before_the_answer_and_an_event_within_it",),
    ),
)
