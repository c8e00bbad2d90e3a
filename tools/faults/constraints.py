"""Faults of outputs under constraints, and of ids that are preferred or left out."""

from faults.fault import Fault

ENGINE = "tests/engine/loop/test_constraints.py::test_"
STEPS = "tests/engine/loop/test_constraint_steps.py::test_"
HELPER = "tests/engine/loop/test_side_thread.py::test_"
EDITS = "tests/engine/runner/test_logit_edits.py::test_"
THOUGHTS = "tests/service/constraints/test_thoughts.py::test_"
DEEP = "tests/service/constraints/test_deep_threads.py::test_"
TOGETHER = "tests/service/constraints/test_matcher_batch.py::test_"
RUNNER_GRAPHS = "tests/engine/runner/test_runner_graphs.py::test_"
MASKS = "tests/engine/runner/test_masks.py::test_"
TOOLS = "tests/service/answers/test_tool_grammar.py::test_"
HOSTILE = "tests/service/constraints/test_hostile_constraints.py::test_"
SERVED = "tests/service/constraints/test_constrained_answers.py::test_"
SUITE = "tests/service/constraints/test_schema_suite.py::test_"

FAULTS = (
    Fault(
        "constraint: the first one of a server reads the vocabulary",
        "service/constraints/grammars.py",
        "            self._known_tokens()\n",
        "            pass\n",
        (SERVED + "the_vocabulary_is_read_before_anyone_is_served",),
    ),
    Fault(
        "constraint: masks are made before the token ahead is known",
        "engine/loop/core.py",
        "        pending = None if plan is None else self.runner.execute(plan)\n",
        "        pending = None if plan is None else self.runner.execute(plan)\n"
        "        if plan is not None and pending is None:\n"
        "            pending = self.runner.sample(self.scheduler.masks(plan))\n",
        (ENGINE + "overlapped_in_chunks_and_preempted_each_gets_what_it_gets_alone",),
    ),
    Fault(
        "constraint: a row waits for its token before its model runs",
        "engine/scheduling/scheduler.py",
        "            remaining = request.remaining\n            if remaining <= 0",
        "            if request.constrained is not None and request.num_placeholders:\n"
        "                continue\n"
        "            remaining = request.remaining\n            if remaining <= 0",
        (STEPS + "a_constrained_row_is_in_every_step_and_masks_come_while_the_model_is_at_work",),
    ),
    Fault(
        "constraint: a mask falls on another row beside one that does not sample yet",
        "engine/runner/logit_edits.py",
        "for row in plan.rows if row.samples",
        "for row in plan.rows",
        (ENGINE + "one_mask_is_for_the_logits_of_one_row",),
    ),
    Fault(
        "constraint: an end is allowed where the text may not end",
        "engine/scheduling/matching.py",
        "            elif self.matcher.may_end():\n",
        "            else:\n",
        (ENGINE + "an_end_that_is_wanted_most_comes_once_it_is_allowed",),
    ),
    Fault(
        "constraint: resumed outputs are not taken in",
        "engine/scheduling/matching.py",
        "        matcher.accept(token_id)\n    return",
        "        pass\n    return",
        (ENGINE + "resumed_at_every_token_it_goes_on_as_if_unbroken",),
    ),
    Fault(
        "constraint: a step's matchers are asked one after another",
        "engine/loop/core.py",
        "            scheduler.completion.advance = matchers.advance\n",
        "            pass\n",
        (ENGINE + "a_steps_tokens_are_taken_in_together",),
    ),
    Fault(
        "constraint: the mask of another row, behind a matcher that took no token",
        "service/constraints/matcher_batch.py",
        "            fine = taken and not text.backend.is_error()\n",
        "            fine = taken and not text.backend.is_error()\n"
        "            mask = masks[masks.index(mask) - (not all(took))]\n",
        (TOGETHER + "what_many_take_together_is_what_each_takes_alone",),
    ),
    Fault(
        "constraint: many together may end anywhere",
        "service/constraints/matcher_batch.py",
        "            octets[:, i >> 3] &= ~(1 << (i & 7)) & 0xFF\n",
        "            octets[:, i >> 3] |= 1 << (i & 7)\n",
        (TOGETHER + "what_many_take_together_is_what_each_takes_alone",),
    ),
    Fault(
        "constraint: as many matchers as a step before are taken for the same",
        "service/constraints/matcher_batch.py",
        "        if matchers != self._matchers:",
        "        if len(matchers) != len(self._matchers):",
        (TOGETHER + "the_same_matchers_are_asked_again_and_then_others_as_many",),
    ),
    Fault(
        "constraint: a limit that is reached among many is passed over",
        "service/constraints/matcher_batch.py",
        "            fine = taken and not text.backend.is_error()\n",
        "            fine = taken\n",
        (TOGETHER + "a_limit_that_is_reached_ends_one_of_many",),
    ),
    Fault(
        "constraint: masks are told while work beside them goes on",
        "service/constraints/matcher_batch.py",
        "            wait()\n",
        "            pass\n",
        (TOGETHER + "what_is_begun_beside_many_masks_is_waited_for",),
    ),
    Fault(
        "constraint: a step that was planned beside masks is planned again",
        "engine/loop/core.py",
        "        plan = self._next_plan()\n",
        "        plan = self._plan()\n",
        (ENGINE + "overlapped_in_chunks_and_preempted_each_gets_what_it_gets_alone",),
    ),
    Fault(
        "constraint: a step that was planned beside masks outlives a failure",
        "engine/loop/core.py",
        "        self._masks = self._planned = None\n",
        "        self._masks = None\n",
        (STEPS + "a_step_that_fails_takes_the_next_one_along",),
    ),
    Fault(
        "constraint: a fault of planning beside masks is forgotten with the step that it broke",
        "engine/loop/core.py",
        "            self._planned.result()  #",
        "            pass  #",
        (STEPS + "a_fault_of_planning_beside_masks_is_not_forgiven_with_the_step_that_it_breaks",),
    ),
    Fault(
        "constraint: a token that its mask leaves out is told as the caller's fault",
        "engine/scheduling/completion.py",
        "                    if not constrained.allows(output.token_ids[-1]):\n",
        "                    if False:\n",
        (ENGINE + "a_token_that_its_mask_leaves_out_is_a_fault_and_no_dead_end",),
    ),
    Fault(
        "constraint: the thread beside the engine's keeps what it has done",
        "engine/loop/side_thread.py",
        "            del work\n",
        "",
        (HELPER + "one_thread_does_all_it_is_asked_to_keeps_nothing_of_it_and_ends",),
    ),
    Fault(
        "constraint: logits are made once masks have come",
        "engine/runner/runner.py",
        "            self._graphs.begin(kept)  # while its masks are being made\n",
        "            pass\n",
        (STEPS + "the_model_of_masked_steps_is_kept_as_other_steps_are",),
    ),
    Fault(
        "constraint: what was begun is still so when others have run",
        "engine/runner/graphs.py",
        "        begun, self._begun = self._begun == key, None\n",
        "        begun = self._begun == key\n",
        (RUNNER_GRAPHS + "a_step_that_was_begun_goes_on_from_there_if_nothing_comes_between",),
    ),
    Fault(
        "constraint: masks are written while a sampler reads them",
        "engine/runner/masks.py",
        "        if read is not None:\n",
        "        if False:\n",
        (MASKS + "nothing_is_written_before_the_sampler_that_reads_it_has_ended",),
    ),
    Fault(
        "constraint: tokens drawn under masks are overwritten before they are fetched",
        "engine/runner/runner.py",
        "            self._state.masks.launched(pending.fetch)\n",
        "            pass\n",
        (EDITS + "who_looks_at_results_a_step_late_gets_the_same",),
    ),
    Fault(
        "constraint: a step whose rows leave ids out waits for the one before",
        "engine/runner/runner.py",
        "        return None if needs.masks else self.sample(())\n\n    @torch",
        "        return None if plan.masked else self.sample(())\n\n    @torch",
        (EDITS + "no_step_is_held_up_by_the_sampler_of_the_one_before",),
    ),
    Fault(
        "constraint: masks are made where others are still held",
        "engine/runner/masks.py",
        "        return self._references() == self._unheld\n",
        "        return True\n",
        (MASKS + "whatever_is_held_each_row_has_its_mask",),
    ),
    Fault(
        "constraint: a lexer that outputs have used up is given to the next",
        "service/constraints/grammars.py",
        "        if matcher is None or not _spent(matcher):\n",
        "        if True:\n",
        (TOGETHER + "a_lexer_that_outputs_have_used_up_is_no_others",),
    ),
    Fault(
        "constraint: a resumed output has the limits of one token",
        "service/constraints/text_matcher.py",
        "        if self._accepted % REFUEL == 0:\n",
        "        if False:\n",
        (TOGETHER + "a_long_output_that_is_resumed_may_cost_what_it_cost_token_by_token",),
    ),
    Fault(
        "constraint: siblings share a matcher",
        "engine/scheduling/matching.py",
        "Constrained(matcher.copy(), params) for _",
        "Constrained(matcher, params) for _",
        (ENGINE + "overlapped_in_chunks_and_preempted_each_gets_what_it_gets_alone",),
    ),
    Fault(
        "constraint: the engine waits for a grammar",
        "engine/loop/core.py",
        "        if not self.scheduler.has_requests:\n"
        "            self.compiling.wait(_COMPILE_LOOK)\n",
        "        self.compiling.wait(30.0)\n",
        (STEPS + "nobody_waits_for_a_constraint_that_is_being_compiled",),
    ),
    Fault(
        "constraint: an output ends in its thoughts",
        "service/constraints/thoughts.py",
        "            for i in self._tokens.ends:\n"
        "                mask[i >> 3] &= ~(1 << (i & 7))\n",
        "",
        (THOUGHTS + "thoughts_that_are_open_may_be_anything_but_an_end",),
    ),
    Fault(
        "constraint: a schema asks for leniency and gets it",
        "service/constraints/schema_checks.py",
        "    _check_strict(schema)\n",
        "",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: what is given up is not counted",
        "service/constraints/deep_threads.py",
        "            self._given_up.add(done)",
        "            pass",
        (DEEP + "what_takes_too_long_is_given_up_and_counted_until_it_ends",),
    ),
    Fault(
        "constraint: a text that was too slow is compiled again",
        "service/constraints/grammars.py",
        "                self._remember_slow(key, str(error))\n",
        "                pass\n",
        (DEEP + "a_text_that_was_too_slow_is_refused_at_once_when_it_comes_again",),
    ),
    Fault(
        "constraint: a tool that is not strict is refused for being too much",
        "service/rpc/tool_constraint.py",
        "    for loose in (False, True):\n",
        "    for loose in (False,):\n",
        (TOOLS + "tools_that_are_too_much_together_take_any_object_unless_they_are_strict",),
    ),
    Fault(
        "constraint: the device waits for the next plan behind each sampler",
        "engine/loop/core.py",
        "                self._masks = self.scheduler.masks(plan)\n",
        "                pending = self.runner.sample(self.scheduler.masks(plan))\n",
        (STEPS + "a_constrained_row_is_in_every_step_and_masks_come_while_the_model_is_at_work",),
    ),
    Fault(
        "constraint: a sampler under masks is not captured",
        "engine/runner/runner.py",
        "        kept = None if needs.bias else SamplerKey(len(done.row_slots), needs)\n",
        "        kept = None if needs.edits else SamplerKey(len(done.row_slots), needs)\n",
        (STEPS + "the_model_of_masked_steps_is_kept_as_other_steps_are",),
    ),
    Fault(
        "edits: a row keeps the mask of the step before",
        "engine/runner/masks.py",
        '[:] = array("i", of + [-1] * (self._rows - len(of)))\n',
        '[: len(of)] = array("i", of)\n',
        (ENGINE + "one_mask_is_for_the_logits_of_one_row",),
    ),
    Fault(
        "edits: a slot keeps the mask of the request before",
        "engine/runner/logit_edits.py",
        "            self._masks.pop(one.slot, None)\n",
        "",
        (EDITS + "a_slot_forgets_what_the_request_before_asked_for",),
    ),
    Fault(
        "edits: a slot keeps the bias of the request before",
        "engine/runner/logit_edits.py",
        "            self._bias.pop(one.slot, None)\n",
        "",
        (EDITS + "a_slot_forgets_what_the_request_before_asked_for",),
    ),
    Fault(
        "edits: log-probabilities are of changed logits",
        "engine/runner/sampler.py",
        "needs.adjusts or needs.filters or needs.edits",
        "needs.adjusts or needs.filters",
        (EDITS + "logprobs_are_of_the_raw_logits",),
    ),
    Fault(
        "constraint: each quote of a string that is not closed begins another",
        "service/constraints/sources.py",
        """*)*"?', re""",
        """*)*"', re""",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: what a grammar's texts say is taken for its schemas",
        "service/constraints/sources.py",
        """    r'"(?:\\\\.|[^"\\\\])*"?|<""",
        "    r'<",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: what a grammar forces is looked for without an end",
        "service/constraints/sources.py",
        """{with_exact_formats(text)}\\n{_NO_FORCING}""",
        """{with_exact_formats(text)}\\n""",
        (HOSTILE + "a_grammar_that_forces_text_without_an_end_holds_nobody_up",),
    ),
    Fault(
        "constraint: what a regex forces is looked for to its end at each token",
        "service/constraints/sources.py",
        """{made}\\n{_NO_FORCING}"
    if kind""",
        """{made}\\n"
    if kind""",
        (SUITE + "what_is_forced_is_not_looked_for",),
    ),
    Fault(
        "constraint: a special token ends where Python sees a space",
        "service/constraints/sources.py",
        r"<(?:[^<>\s]|[\x1c-\x1f])+>",
        r"<[^<>\s]+>",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: options of a grammar that nobody knows are passed over",
        "service/constraints/sources.py",
        "            _check_options(value)\n",
        "            pass\n",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: a grammar of JSON goes past all that is checked",
        "service/constraints/sources.py",
        'text.lstrip().startswith("{")',
        "False",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: no_forcing = false is passed over",
        "service/constraints/sources.py",
        'name == "no_forcing" and options[name] is False',
        "False",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: days and times are what llguidance takes for them",
        "service/constraints/sources.py",
        "    if formats.are_in(text):\n",
        "    if False:\n",
        (
            SUITE + "a_day_is_one_of_the_calendar",
            SUITE + "a_time_is_one_that_readers_take",
        ),
    ),
)
