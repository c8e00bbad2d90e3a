"""Faults of captured prompts, and of models and samplers that are captured apart."""

from faults.fault import Fault

_RUNNER = "tests/engine/runner/test_runner.py::test_"
RUNNER_GRAPHS = "tests/engine/runner/test_runner_graphs.py::test_"
_KEYS = "tests/engine/runner/test_graph_keys.py::test_"

FAULTS = (
    Fault(
        "captured: a prompt that does not sample yet runs eagerly",
        "engine/runner/runner.py",
        "        if self._graphs is None or plan.prompt_logprobs:",
        "        if self._graphs is None or not all(row.samples for row in plan.rows):",
        (RUNNER_GRAPHS + "a_prompt_in_chunks_is_replayed_though_it_does_not_sample_yet",),
    ),
    Fault(
        "captured: what sampling needs multiplies the models",
        "engine/runner/graphs.py",
        "return needs in _PLAIN and rows <= FUSED_ROWS and",
        "return not needs.edits and",
        (RUNNER_GRAPHS + "one_model_serves_every_sampler_and_one_sampler_every_context",),
    ),
    Fault(
        "captured: rows beside long prompts are padded as finely as beside short ones",
        "engine/runner/graphs.py",
        "many = tokens > _MANY_TOKENS",
        "many = False",
        (_KEYS + "long_prompts_beside_many_rows_fall_under_few_keys",),
    ),
    Fault(
        "captured: padding stands before the rows that sample",
        "engine/runner/inputs.py",
        "index if index < decode else index + padding",
        "index",
        (_RUNNER + "padded_steps_are_exact_ones",),
    ),
    Fault(
        "captured: prompts are captured that no step has room for",
        "engine/runner/graphs.py",
        " or last >= max_tokens:",
        ":",
        (_KEYS + "no_prompt_is_captured_that_a_step_has_no_room_for",),
    ),
    Fault(
        "captured: a prompt unlike all before waits for its capture",
        "engine/runner/uncaptured.py",
        "(compiled and not of_prompts(key))",
        "compiled",
        (
            "tests/engine/runner/test_spare_time.py"
            "::test_a_prompt_unlike_all_before_runs_first_and_is_captured_when_it_comes_again",
        ),
    ),
    Fault(
        "captured: in spare time one-token rows, whose slots may be somebody's",
        "engine/runner/uncaptured.py",
        "        if of_prompts(key):\n            self._later",
        "        if key:\n            self._later",
        (
            "tests/engine/runner/test_spare_time.py"
            "::test_rows_of_one_token_that_were_met_are_captured_at_once_not_later",
        ),
    ),
    Fault(
        "loop: a command waits for all work in spare time",
        "engine/loop/loop.py",
        "        while not commands:\n            self._busy",
        "        while True:\n            self._busy",
        (
            "tests/engine/runner/test_spare_time.py"
            "::test_spare_time_ends_where_a_command_comes_and_where_nothing_is_left",
        ),
    ),
    Fault(
        "captured: what fails unseen is never captured",
        "engine/runner/runner.py",
        "            graphs.capture(key, *self._parts_of(key), ran=False)\n",
        "            graphs.capture(key, *self._parts_of(key))\n",
        (RUNNER_GRAPHS + "what_is_compiled_is_captured_unseen_and_run_first_where_that_fails",),
    ),
    Fault(
        "captured: padding stands among the rows of a whole step",
        "engine/runner/runner.py",
        "whole = in_front and all(row",
        "whole = all(row",
        (RUNNER_GRAPHS + "padding_among_the_rows_keeps_a_short_step_apart",),
    ),
    Fault(
        "pacing: few first words wait for what their calls have cost",
        "engine/client/pacing.py",
        "if self._credit > 0 or self.unbounded or few_first:",
        "if self._credit > 0 or self.unbounded:",
        (
            "tests/engine/client/test_pacing.py"
            "::test_the_first_words_of_some_streams_wait_for_no_credit",
        ),
    ),
    Fault(
        "pacing: first words wait for the last call of a burst",
        "engine/client/pacing.py",
        "            self._wake_few_first()\n",
        "",
        (
            "tests/engine/client/test_new_calls.py"
            "::test_some_first_words_do_not_wait_for_the_last_call_of_a_burst",
        ),
    ),
    Fault(
        "captured: in spare time what no capture allows is run",
        "engine/runner/runner.py",
        "self._capture_null(key, run=False)",
        "self._capture_null(key)",
        (
            "tests/engine/runner/test_spare_time.py"
            "::test_in_spare_time_nothing_is_run_where_its_capture_fails",
        ),
    ),
    Fault(
        "captured: a sampler behind prompts draws for rows that do not sample",
        "engine/runner/inputs.py",
        "        sampled = sampled + every[-1:] * (len(every) - len(sampled))\n",
        "        sampled = every\n",
        (RUNNER_GRAPHS + "a_sampler_behind_prompts_is_kept_though_some_rows_do_not_sample",),
    ),
    Fault(
        "captured: null rows run more tokens in spare time than their table has room for",
        "engine/runner/runner.py",
        "min(self._sizes.context_bounds[-1], _REPLAYED)",
        "_REPLAYED",
        (
            "tests/engine/runner/test_spare_time.py"
            "::test_what_is_captured_in_spare_time_is_replayed_once_if_null_rows_hold_its_tokens",
        ),
    ),
    Fault(
        "slots: ending ids stay for the next request",
        "engine/runner/slots.py",
        " or one.slot in self._stopping]",
        "]",
        (RUNNER_GRAPHS + "slots_forget_the_ending_ids_of_requests_before",),
    ),
    Fault(
        "warm-up: every layer runs",
        "engine/model/decoder.py",
        "found.setdefault(layer.kind, index)",
        "found.setdefault(index, index)",
        (
            "tests/engine/runner/test_warmup.py"
            "::test_warm_steps_run_one_layer_of_each_kind_and_launch_what_all_layers_do",
        ),
    ),
    Fault(
        "attention: the two results of a mixed step are joined by a copy",
        "engine/model/layers/attention.py",
        "        ops.rope_decode_attention(*ones, out=out[:decode])\n",
        "        out[:decode] = ops.rope_decode_attention(*ones)\n",
        (
            "tests/engine/runner/test_paged_attention.py"
            "::test_both_kernels_of_a_mixed_step_write_into_its_result",
        ),
    ),
    Fault(
        "captured: prompts of a burst ask for graphs of short contexts, which nobody captures",
        "engine/runner/graphs.py",
        "        lone = not decode and longer == _LONE_ROWS\n",
        "        lone = tokens > 0\n",
        (
            "tests/engine/runner/test_graph_keys.py"
            "::test_a_lone_prompt_of_few_tokens_has_a_graph_of_short_contexts",
        ),
    ),
    Fault(
        "captured: a start runs null rows that are longer than their table",
        "engine/runner/runner.py",
        "run = run and max(step.longer) <= self._sizes.context_bounds[-1]",
        "run = run and step is not None",
        (
            "tests/engine/runner/test_spare_time.py"
            "::test_what_a_start_runs_on_null_rows_stays_within_their_table",
        ),
    ),
)
