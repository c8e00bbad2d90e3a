"""Faults in what a call may hold: places, work on prompts, text, bytes that wait to be read."""

from faults.fault import Fault

HOLDS = "tests/service/rpc/test_what_a_call_holds.py::test_"
ENDS = "tests/service/rpc/test_what_ends_a_call.py::test_"
WORKERS = "tests/service/text/test_prompt_workers.py::test_"
SAMPLED = "tests/service/rpc/test_sampling.py::test_"
LINEAR = "tests/service/text/test_linear_text.py::test_"

LETTING_IN = (
    Fault(
        "calls: what was refused is kept until garbage is collected",
        "service/errors.py",
        "        error.__traceback__ = None\n",
        "        pass\n",
        ("tests/service/test_frames.py::test_of_refused_requests",),
    ),
    Fault(
        "quire: a place is given only after the prompt was read",
        "service/admission/admission.py",
        "        if not at_once:\n            self._check_room(client, n, level, now)\n",
        "        if tokens is not None and not at_once:\n"
        "            self._check_room(client, n, level, now)\n",
        (HOLDS + "a_place_is_taken_before_any_work_on_the_prompt",),
    ),
    Fault(
        "quire: a drain that begins while a prompt is read is not seen",
        "service/rpc/call_admission.py",
        "            self._lifecycle.check()  # it may have changed while a prompt was read\n",
        "",
        (HOLDS + "a_drain_that_begins_while_the_prompt_is_read_refuses_the_call",),
    ),
    Fault(
        "quire: a passed deadline is taken for a client that left",
        "service/rpc/open_calls.py",
        "        return grpc.StatusCode.DEADLINE_EXCEEDED\n",
        "        return code\n",
        (HOLDS + "a_passed_deadline_is_told_from_a_cancelled_call",),
    ),
    Fault(
        "quire: the deadline is not looked at after a prompt was read",
        "service/rpc/call_admission.py",
        "    if remaining is not None and remaining <= 0:\n",
        "    if remaining is not None and remaining <= -86400:\n",
        (HOLDS + "a_passed_deadline_is_told_from_a_cancelled_call",),
    ),
    Fault(
        "quire: calls that nobody reads take no places",
        "service/admission/admission.py",
        "        if self._open < most or (self._open < 2",
        "        if self.waiting + self._running() < most or (self._open < 2",
        (ENDS + "calls_that_are_served_and_not_read_take_places",),
    ),
    Fault(
        "quire: what was delivered is charged, not what was sampled",
        "service/rpc/servicer.py",
        "prompt_tokens + resumed + call.output.sampled + unread)",
        "prompt_tokens + resumed + record.delivered)",
        (ENDS + "who_does_not_read_is_charged_for_what_was_sampled",),
    ),
    Fault(
        "calls: who is refused before anything is known is told to come back at once",
        "service/admission/admission.py",
        "if seconds else _UNKNOWN_RETRY",
        "if True else _UNKNOWN_RETRY",
        (
            "tests/service/admission/test_admission.py"
            "::test_who_is_refused_before_anything_is_known_is_not_told_to_come_back_at_once",
        ),
    ),
)

WORK = (
    Fault(
        "quire: jobs of calls that have ended stay in line",
        "service/text/workers.py",
        "            if self._lane_of(job).remove(job):\n",
        "            if not job.size and self._lane_of(job).remove(job):\n",
        (WORKERS + "a_job_whose_call_has_ended_is_gone_at_once",),
    ),
    Fault(
        "quire: the process's end waits for prompts",
        "service/text/workers.py",
        "name=name, daemon=True)",
        "name=name, daemon=False)",
        (WORKERS + "the_end_waits_for_no_job_and_every_call_hears_of_it",),
    ),
    Fault(
        "quire: large prompts take every thread",
        "service/text/workers.py",
        "lanes = (self._large, self._small) if any_size else (self._small,)",
        "lanes = (self._large, self._small)",
        (WORKERS + "large_prompts_leave_a_thread_to_the_others",),
    ),
    Fault(
        "quire: one client's prompts go before all others'",
        "service/text/workers.py",
        "            self._queues.move_to_end(client)\n",
        "            pass\n",
        (WORKERS + "clients_take_turns",),
    ),
    Fault(
        "quire: short prompts are tokenized on the event loop",
        "service/rpc/validation.py",
        "        if short and not grows:\n",
        "        if short or request.ByteSize() < 2048:\n",
        (HOLDS + "work_that_grows_with_a_request_is_never_the_loops",),
    ),
    Fault(
        "quire: ids are looked at however many there are",
        "service/rpc/field_faults.py",
        '    if len(ids) <= most:\n        faults.ids("resume',
        '    if ids:\n        faults.ids("resume',
        (HOLDS + "ids_are_counted_before_they_are_looked_at",),
    ),
    Fault(
        "quire: a chat may render to any size",
        "service/rpc/prompts.py",
        "RenderLimits(max_bytes=self._max_text_bytes, wanted=wanted)",
        "RenderLimits(wanted=wanted)",
        (HOLDS + "what_a_chat_may_become_is_bounded_before_it_is_rendered",),
    ),
    Fault(
        "quire: a call whose text a library panics at is never answered",
        "service/panics.py",
        "isinstance(error, Exception) and not isinstance(error, StopIteration)",
        "not isinstance(error, StopIteration)",
        (
            WORKERS + "a_library_that_panics_ends_its_call_and_no_other",
            WORKERS + "a_tokenizer_that_panics_while_it_is_read_is_named",
        ),
    ),
)

TEXT = (
    Fault(
        "quire: a stop string is looked for anew at each character",
        "service/text/stop_strings.py",
        "            fail = self.step(self._fail[parent], self._labels[node]) if parent else 0\n",
        "            fail = 0\n",
        (LINEAR + "a_stop_string_that_begins_within_one_that_breaks_is_found",),
    ),
    Fault(
        "quire: of stop strings that end together any one is told",
        "service/text/stop_strings.py",
        "            if not self._ends[node]:\n"
        "                self._ends[node] = self._ends[fail]\n",
        "            self._ends[node] = self._ends[fail] or self._ends[node]\n",
        (LINEAR + "of_those_that_end_together_the_longest_is_told",),
    ),
    Fault(
        "quire: the engine keeps a token more than a stop string does",
        "service/rpc/responses.py",
        "self._end_index(index, state.taken)",
        "self._end_index(index, state.taken + 1)",
        (ENDS + "the_engine_hears_how_many_tokens_a_stop_string_keeps",),
    ),
    Fault(
        "quire: a special token as stop string never matches",
        "service/rpc/sampling.py",
        '            values["stop_token_ids"] = (*ids, *stop_tokens)\n',
        '            values["stop_token_ids"] = ids\n',
        (ENDS + "a_special_token_as_stop_string_matches_as_its_id",),
    ),
    Fault(
        "quire: a stop string that holds a special token is taken and never matches",
        "service/rpc/field_faults.py",
        "        if inside is not None:\n",
        "        if inside is not None and stop == inside:\n",
        (ENDS + "a_stop_string_that_could_never_match_is_refused_with_the_way_out",),
    ),
)

SAMPLING = (
    Fault(
        "sampling: one that has a fault is taken when it comes again",
        "service/rpc/sampling.py",
        "        if len(faults.found) == before:\n",
        "        if len(faults.found) >= before:\n",
        (SAMPLED + "what_has_a_fault_is_refused_each_time",),
    ),
    Fault(
        "sampling: lists are kept, and with them the requests that they are of",
        "service/rpc/sampling.py",
        "        if all(isinstance(value, int | float) for value in asked.given.values()):\n",
        "        if asked.given:\n",
        (SAMPLED + "what_has_lists_is_read_each_time",),
    ),
    Fault(
        "sampling: who asks for the same gets the same seed",
        "service/rpc/sampling.py",
        "values = dict(asked.values or self._values(given))",
        "values = asked.values or self._values(given)",
        (SAMPLED + "each_request_has_its_own_seed_and_as_many_tokens_as_its_prompt_leaves",),
    ),
)

SENDING = (
    Fault(
        "quire: whatever has come is one message",
        "service/rpc/responses.py",
        "        parts = piece.parts(self._options.delta_tokens)\n",
        "        parts = piece.parts(1 << 40)\n",
        (ENDS + "no_message_is_larger_than_a_mebibyte_whatever_has_come",),
    ),
    Fault(
        "quire: a write may stall for ever",
        "service/rpc/write_watch.py",
        "if self._seconds and writes.stalled(now, self._seconds):",
        "if self._seconds and writes.stalled(now, 1e9):",
        (ENDS + "a_write_that_stalls_ends_the_call_and_gives_back_all_it_held",),
    ),
    Fault(
        "quire: what waits for its readers is bounded by nothing",
        "service/rpc/write_watch.py",
        "            if total <= self._max_unread:\n",
        "            if total >= 0:\n",
        (HOLDS + "what_waits_to_be_read_is_bounded_in_all",),
    ),
    Fault(
        "quire: a refusal tells every fault, beyond the limit of trailers",
        "service/errors.py",
        "        if told == _MAX_VIOLATIONS or room < 0:\n",
        "        if told == _MAX_VIOLATIONS:\n",
        (ENDS + "a_refusal_fits_the_limit_of_trailers_however_many_faults_it_tells",),
    ),
    Fault(
        "quire: a message is measured before it is written as %XX",
        "service/errors.py",
        "    return 1 if plain else 3 * len(",
        "    return 1 if plain else len(",
        (ENDS + "a_refusal_fits_the_limit_of_trailers_however_many_faults_it_tells",),
    ),
    Fault(
        "quire: a client that leaves in the middle of an answer is an error in the log",
        "service/telemetry/logs.py",
        "    return not (left or ",
        "    return not (",
        (ENDS + "who_leaves_while_an_answer_is_written_is_no_error_of_the_server",),
    ),
)

FAULTS = (*LETTING_IN, *WORK, *TEXT, *SAMPLING, *SENDING)
