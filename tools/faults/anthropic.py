"""Faults in /v1/messages: what becomes of blocks, what answers say, and whose key it is."""

from faults.fault import Fault

INPUT = "tests/clients/openai/test_anthropic_input.py::test_"
FIELDS = "tests/clients/openai/test_anthropic_fields.py::test_"
EVENTS = "tests/service/openai/test_anthropic_events.py::test_"
CLIENT = "tests/service/openai/test_anthropic_client.py::test_"
_INPUT = "clients/openai/anthropic_input.py"
_BODY = "clients/openai/anthropic_body.py"
_ANSWER = "clients/openai/anthropic_answer.py"
_WRITER = "service/openai/anthropic_events.py"
_HEADERS = "service/openai/http_context.py"

FAULTS = (
    Fault(
        "anthropic: a failure of a tool's is told as its answer",
        _INPUT,
        "        message.content = _FAILED + text if failed else text\n",
        "        message.content = text\n",
        (INPUT + "a_tools_failure_is_shown_to_the_model",),
    ),
    Fault(
        "anthropic: thoughts that a template never shows are refused when they come back",
        _INPUT,
        "            self._chat.omit_unshown_reasoning = True",
        "            self._chat.omit_unshown_reasoning = False",
        (INPUT + "a_conversation_of_blocks_is_the_same_chat",),
    ),
    Fault(
        "anthropic: what the model has begun is answered anew",
        _INPUT,
        '    if chat.messages and chat.messages[-1].role == "assistant":\n',
        '    if chat.messages and chat.messages[-1].role == "model":\n',
        (INPUT + "a_last_message_of_the_assistants_is_continued",),
    ),
    Fault(
        "anthropic: an answer of a tool's behind text is put before it",
        _INPUT,
        "            if texts:\n",
        "            if not content:\n",
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "anthropic: a fault of a call names another block",
        "clients/openai/anthropic_names.py",
        "content[{self.calls[call]}]",
        "content[{call}]",
        (INPUT + "faults_of_the_contract_have_the_names_of_blocks",),
    ),
    Fault(
        "anthropic: a bound on thoughts is accepted and ignored",
        _BODY,
        "budget < most - 1:",
        "budget < 0:",
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "anthropic: an edit of the context is accepted and ignored",
        _BODY,
        '        given.only("edits", [], _KEPT,',
        '        given.passed_over("edits")\n        given.only("", [], _KEPT,',
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "anthropic: cached tokens are counted twice",
        _ANSWER,
        '            "input_tokens": told["prompt_tokens"] - cached,\n',
        '            "input_tokens": told["prompt_tokens"],\n',
        (EVENTS + "thoughts_text_and_calls_are_blocks_in_their_order",),
    ),
    Fault(
        "anthropic: a stop string is no reason of its own",
        _ANSWER,
        '        if self.finished.WhichOneof("matched") == "stop_string":\n',
        '        if self.finished.WhichOneof("matched") == "a string":\n',
        (EVENTS + "reasons_of_the_end",),
    ),
    Fault(
        "anthropic: arguments that broke off end the answer",
        _ANSWER,
        "    except BadJson:\n",
        "    except KeyError:\n",
        (EVENTS + "arguments_that_broke_off_are_no_input",),
    ),
    Fault(
        "anthropic: the beginning of a stream is a message that has ended",
        _ANSWER,
        '            return {"stop_reason": None, "stop_sequence": None}\n',
        '            return {"stop_reason": "end_turn", "stop_sequence": None}\n',
        (EVENTS + "a_stream_makes_the_whole_answer",),
    ),
    Fault(
        "anthropic: a stream that fails is ended",
        _WRITER,
        '        return _event("error", around(error, self._answer.items.name))\n',
        "        return self.ended()\n",
        (EVENTS + "a_stream_that_fails_ends_with_an_error",),
    ),
    Fault(
        "anthropic: what a fault cut off is told to be whole",
        "clients/openai/item_answer.py",
        '        elif event == "finished" and message.finished.reason in FINISH:\n',
        '        elif event == "finished":\n',
        (EVENTS + "a_stream_that_fails_ends_with_an_error",),
    ),
    Fault(
        "anthropic: the client's own loop ends where nothing is stored",
        "clients/openai/anthropic_errors.py",
        '    if param == "thread":\n',
        '    if param == "threads":\n',
        (CLIENT + "the_clients_own_loop_over_tools_needs_nothing_stored",),
    ),
    Fault(
        "anthropic: clients cannot tell how much less to ask for",
        "clients/openai/anthropic_names.py",
        "words=_ROOM.sub(_THEIR_ROOM, told.words)",
        "words=told.words",
        (CLIENT + "refusals_have_this_apis_form_and_names",),
    ),
    Fault(
        "anthropic: their clients cannot name a call",
        "service/openai/api.py",
        '    id_headers=(b"x-request-id", b"request-id"),\n',
        "",
        (CLIENT + "a_message_is_answered_whole_and_streamed_and_counted",),
    ),
    Fault(
        "anthropic: refusals have the form of another API",
        "service/openai/problems.py",
        "    return anthropic_errors.told if",
        "    return errors.told if",
        (CLIENT + "refusals_have_this_apis_form_and_names",),
    ),
    Fault(
        "anthropic: of two keys that differ one counts",
        _HEADERS,
        "    told = dict.fromkeys(_bearer(*header) for header in given)\n",
        "    told = {_bearer(*header): None for header in given[-1:]}\n",
        (CLIENT + "a_key_comes_in_either_header_and_only_one",),
    ),
    Fault(
        "anthropic: one key in both headers is two, where they write it otherwise",
        _HEADERS,
        'if scheme.lower() == "bearer" else value\n',
        'if scheme == "Bearer" else value\n',
        (CLIENT + "a_key_comes_in_either_header_and_only_one",),
    ),
    Fault(
        "anthropic: fields of OpenAI's alone are accepted and ignored",
        _BODY,
        '    for name in ("prompt_logprobs", *_OPENAIS):\n',
        '    for name in ("prompt_logprobs",):\n',
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "anthropic: one of two users is ignored",
        _BODY,
        "    if user and request.user:\n",
        "    if user and request.user == user:\n",
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "anthropic: an empty id is none",
        _INPUT,
        '    if told == "":',
        '    if told == " ":',
        (FIELDS + "what_cannot_be_is_refused_by_its_name",),
    ),
    Fault(
        "anthropic: a key in their header opens every path",
        _HEADERS,
        "    if not is_messages(path):\n",
        '    if not path.startswith("/"):\n',
        (CLIENT + "a_key_comes_in_either_header_and_only_one",),
    ),
)
