"""Faults of log-probabilities of a prompt's own tokens."""

from faults.fault import Fault

ENGINE = "tests/engine/runner/test_prompt_logprobs.py::test_"
SERVED = "tests/service/rpc/test_prompt_logprobs_served.py::test_"
FAILOVER = "tests/clients/replicas/test_stream_failover.py::test_"

FAULTS = (
    Fault(
        "prompt: what was told before a preemption is told again",
        "engine/scheduling/completion.py",
        "told[max(said - row.start, 0) * size :]",
        "told[0:]",
        (ENGINE + "what_was_told_before_a_preemption_is_not_told_again",),
    ),
    Fault(
        "prompt: a cached prefix is not computed where it is to be judged",
        "engine/scheduling/scheduler.py",
        "if not cache.enabled or request.prompt_logprobs_left:",
        "if not cache.enabled:",
        (ENGINE + "what_is_cached_is_computed_for_it_and_shared_by_others",),
    ),
    Fault(
        "prompt: the first token of the next chunk is not judged",
        "engine/scheduling/draft.py",
        "count = min(end, request.num_prompt_tokens - 1) - start",
        "count = min(end, request.num_prompt_tokens) - start - 1",
        (ENGINE + "a_prompts_tokens_have_what_they_had_when_they_were_sampled",),
    ),
    Fault(
        "prompt: each sibling tells of it",
        "engine/scheduling/request.py",
        "spec.prompt_logprobs is not None and self.index == 0",
        "spec.prompt_logprobs is not None",
        (ENGINE + "siblings_share_what_the_first_of_them_tells",),
    ),
    Fault(
        "prompt: a kept step is taken for one with all hidden states",
        "engine/runner/runner.py",
        "if self._graphs is None or plan.prompt_logprobs:",
        "if self._graphs is None:",
        (ENGINE + "a_prompts_tokens_have_what_they_had_when_they_were_sampled",),
    ),
    Fault(
        "prompt: numbers that are none are told",
        "engine/prompt_logprobs.py",
        '    if not np.isfinite(logprobs).all():\n        return b""\n',
        "",
        (ENGINE + "numbers_that_are_none_end_the_request_and_no_other",),
    ),
    Fault(
        "prompt: as many log-probabilities as are asked for",
        "service/rpc/field_faults.py",
        "    if count > MAX_JUDGED:\n",
        "    if False:\n",
        (SERVED + "what_cannot_be_is_refused", SERVED + "refusals_have_the_bodys_names"),
    ),
    Fault(
        "prompt: a stream that broke tells it again",
        "clients/replicas/stream_failover.py",
        "        new = min(max(self._told - self._prompt_logprobs_told, 0), count)\n",
        "        new = count\n",
        (FAILOVER + "a_prompts_log_probabilities_are_given_once_however_often_it_breaks",),
    ),
)
