"""Faults where OpenAI's clients send more than what they want, or want what is not here."""

from faults.fault import Fault

CLIENT = "tests/service/openai/test_openai_client.py::test_"
ENTRANCE = "tests/service/openai/test_openai_entrance.py::test_"
FIELDS = "tests/clients/openai/test_openai_fields.py::test_"
SENT = "tests/service/openai/test_what_clients_send.py::test_"
OTHERS = "tests/clients/openai/test_other_clients_fields.py::test_"
RENDERING = "tests/service/text/test_template_rendering.py::test_"
LINES = "tests/service/openai/test_request_lines.py::test_"

FAULTS = (
    Fault(
        "openai bodies: a bias may be of what can be no id",
        "clients/openai/sampling.py",
        "return token.isdecimal()",
        "return token == str(int(token)) or token.isdecimal()",
        ("tests/clients/openai/test_odd_bodies.py",),
    ),
    Fault(
        "openai bodies: null under a name that is not known is refused",
        "clients/openai/fields.py",
        " in self._rest.items() if value is not None)",
        " in self._rest.items())",
        (FIELDS + "null_is_absent_whatever_its_name_and_wherever_it_stands",),
    ),
    Fault(
        "openai bodies: a part of text may be without its text",
        "clients/openai/text_parts.py",
        'part.required_text("text")',
        'part.text("text") or ""',
        (FIELDS + "a_fault_names_its_field",),
    ),
    Fault(
        "openai bodies: a call may be required where there is nothing to call",
        "clients/openai/tools.py",
        'if choice == "required" and not has_tools:\n',
        "if not choice:\n",
        (FIELDS + "a_fault_names_its_field",),
    ),
    Fault(
        "openai bodies: a tool's answer must not repeat the function's name",
        "service/text/chat_template.py",
        '            if lost and not (name == "name" and message["name"] == known):\n',
        "            if lost:\n",
        (CLIENT + "what_clients_send_beside_the_question_is_no_fault",),
    ),
    Fault(
        "openai bodies: a tool's answer may name any function",
        "service/text/chat_template.py",
        'message["name"] == known)',
        'message["role"] == "tool")',
        (CLIENT + "what_clients_send_beside_the_question_is_no_fault",),
    ),
    Fault(
        "openai bodies: who asks for what is not stored is asked for no key",
        "service/openai/app.py",
        'guarded(_unstored, "responses")',
        "_unstored",
        (ENTRANCE + "a_key_is_asked_for_before_the_body_is_read",),
    ),
    Fault(
        "openai: prompts that can never begin together are told to ask again",
        "service/openai/generation.py",
        "parsed.prompts > most",
        "False",
        (
            "tests/service/openai/test_several_prompts.py"
            "::test_more_prompts_than_can_ever_begin_together_are_not_asked_for_again",
        ),
    ),
    Fault(
        "openai: a body in chunks of one byte holds up everybody",
        "service/openai/connection.py",
        "            if self._chunks > most:\n",
        "            if self._chunks < 0:\n",
        (LINES + "a_body_comes_in_as_many_chunks_as_its_bytes_need",),
    ),
    Fault(
        "openai: as many headers are read as come at once",
        "service/openai/connection.py",
        "range(0, len(data), MAX_HEADER_BYTES)",
        "range(0, len(data), 1 << 30)",
        (LINES + "headers_that_come_all_at_once_are_read_as_far_as_they_may_go",),
    ),
    Fault(
        "openai bodies: of nothing but faults all are looked for",
        "clients/openai/faults.py",
        "        if len(self.found) >= MAX_FAULTS:\n",
        "        if False:\n",
        (FIELDS + "of_very_many_faults_no_more_are_looked_for_than_are_told",),
    ),
    Fault(
        "openai bodies: each of a million texts is read before they are counted",
        "clients/openai/vectors.py",
        "    if len(texts) <= MAX_TEXTS:\n",
        "    if texts:\n",
        (
            "tests/clients/openai/test_counted_first.py::test_texts_are_counted_before_they_are_read",
        ),
    ),
    Fault(
        "openai bodies: two million ids are read one by one",
        "clients/large_json.py",
        "        while run := _RUN.match(text, end):\n",
        "        while run := _RUN.fullmatch(text, end):\n",
        ("tests/clients/test_large_json.py::test_ids_are_read_in_runs_of_bounded_length",),
    ),
    Fault(
        "openai bodies: names of texts are made on the event loop, of a million if there are",
        "service/openai/vectors.py",
        "        def told(refusal: Refusal) -> Refusal:\n",
        "        _ = getattr(parsed, 'names', None)\n\n"
        "        def told(refusal: Refusal) -> Refusal:\n",
        (
            "tests/service/openai/test_vectors.py::test_names_of_a_body_are_made_for_a_refusal_alone",
        ),
    ),
    Fault(
        "openai bodies: a HEAD with a chunk that is none is answered with content",
        "service/openai/connection.py",
        'if self._busy and self.scope["method"] == "HEAD" else',
        "if self.cycle is None and not body else",
        (LINES + "a_chunk_that_is_none_is_answered_whatever_the_method",),
    ),
    Fault(
        "openai bodies: a chunk that is none closes the connection without a word",
        "service/openai/connection.py",
        "        begun = self._busy and self.cycle.response_started\n",
        "        begun = self._busy\n",
        (LINES + "a_chunk_that_is_none_is_answered_and_its_request_ends",),
    ),
    Fault(
        "openai bodies: a name is refused where it tells nobody apart",
        "service/text/chat_template.py",
        'len(speakers[message["role"]]) == 1:\n',
        "False:\n",
        (RENDERING + "names_that_tell_nobody_apart_may_be_ignored",),
    ),
    Fault(
        "openai bodies: a name is ignored where it tells speakers apart",
        "service/text/chat_template.py",
        'len(speakers[message["role"]]) == 1:\n',
        "speakers:\n",
        (RENDERING + "names_that_tell_nobody_apart_may_be_ignored",),
    ),
    Fault(
        "openai bodies: no effort is as if unset",
        "clients/openai/template_kwargs.py",
        "    if effort is None:\n",
        '    if effort in (None, "none"):\n',
        (OTHERS + "an_effort_is_what_a_template_can_make_of_it",),
    ),
    Fault(
        "openai bodies: a template that knows efforts is not told of the usual one",
        "clients/openai/template_kwargs.py",
        "    if effort is None:\n",
        '    if effort in (None, "medium"):\n',
        (OTHERS + "an_effort_is_what_a_template_can_make_of_it",),
    ),
    Fault(
        "openai bodies: a template that knows no effort refuses the usual one",
        "service/text/chat_template.py",
        " and (key, value) != _USUAL_EFFORT:",
        ":",
        (
            "tests/service/text/test_chat_template.py"
            "::test_a_variable_that_a_template_does_not_mention_is_refused_but_the_usual_effort",
        ),
    ),
    Fault(
        "openai bodies: digits of any script are digits where a body is large",
        "clients/large_json.py",
        "        self.scan_once = _make_scanner(self)\n",
        "        self.scan_once = py_make_scanner(self)\n",
        ("tests/clients/test_large_json.py::test_what_is_refused_is_refused_with_the_same_words",),
    ),
    Fault(
        "openai bodies: a prompt that is too long is a fault like any other",
        "service/errors.py",
        'reason="CONTEXT_LENGTH_EXCEEDED" if too_long else "INVALID_FIELD"',
        'reason="INVALID_FIELD"',
        (SENT + "a_conversation_that_is_too_long_is_told_as_openai_tells_it",),
    ),
    Fault(
        "openai bodies: with max_tokens it is a fault like any other",
        "service/rpc/call_admission.py",
        "errors.TooLong if isinstance(error, TooLongError) else errors.Violation",
        "errors.Violation",
        (SENT + "a_conversation_that_is_too_long_is_told_as_openai_tells_it",),
    ),
    Fault(
        "openai bodies: arguments that no template shows are lost",
        "service/rpc/messages.py",
        "        if found < 0:\n            return False\n",
        "        if found < 0:\n            return True\n",
        (
            "tests/clients/test_strict_json.py"
            "::test_arguments_that_are_no_object_and_not_shown_are_refused",
        ),
    ),
    Fault(
        "openai bodies: in arguments that are no JSON a turn may be forged",
        "service/text/chat_template.py",
        '"user.content", arguments',
        '"call.value", ""',
        (
            "tests/clients/test_strict_json.py::test_no_turn_is_forged_in_arguments_that_are_no_object",
        ),
    ),
)
