"""Faults of who runs next on which blocks."""

from faults.fault import Fault, regression

SCHEDULER = (
    "tests/engine/scheduling/test_scheduler.py",
    "tests/engine/scheduling/test_preemption_and_ends.py",
)
PROPERTIES = "tests/engine/scheduling/test_scheduler_properties.py::test_"

FAULTS = (
    Fault(
        "nano-vllm-274: what can never fit is admitted",
        "engine/scheduling/limits.py",
        "        if needed > usable:\n",
        "        if needed > usable + 1:\n",
        regression("nano_vllm_274_lone_sequence_exhausts_the_cache"),
    ),
    Fault(
        "nano-vllm-277: what fits exactly is refused",
        "engine/scheduling/limits.py",
        "-(-(total - 1) // self.block_size)",
        "-(-total // self.block_size)",
        (PROPERTIES + "theorem_a_lone_request_that_is_admitted_finishes",),
    ),
    Fault(
        "minivllm-6: a preempted request is lost",
        "engine/scheduling/scheduler_state.py",
        "        request.num_registered_blocks = 0\n        self.waiting.push(request)\n",
        "        request.num_registered_blocks = 0\n",
        regression("minivllm_6_sequence_lost_on_preemption"),
    ),
    Fault(
        "minivllm-51: nobody is admitted again once blocks ran out",
        "engine/scheduling/scheduler.py",
        "        if request is None or not self._admit_one(request, draft):",
        "        if request is None or request.epoch or not self._admit_one(request, draft):",
        regression("minivllm_6_sequence_lost_on_preemption"),
    ),
    Fault(
        "vllm-23347: a request planned in this step is preempted",
        "engine/scheduling/scheduler.py",
        "candidates = [r for r in self.state.running if r.slot not in draft.planned]",
        "candidates = list(self.state.running)",
        regression("vllm_23347_planned_in_this_step_and_preempted"),
    ),
    Fault(
        "vllm-39734: a request larger than the cache waits in the queue",
        "engine/scheduling/limits.py",
        "        if needed > usable:\n",
        "        if usable < 0:\n",
        regression("vllm_39734_request_larger_than_the_cache_blocks_the_queue"),
    ),
    Fault(
        "nano-vllm: decode rows wait while a prompt is chunked",
        "engine/scheduling/scheduler.py",
        "        if self.two_phase:\n            self._plan_two_phase(draft)\n",
        "        if draft.budget:\n            self._plan_two_phase(draft)\n",
        regression("nano_vllm_decodes_wait_for_a_chunked_prompt"),
    ),
    Fault(
        "mini-sglang: an over-long prompt is accepted",
        "engine/scheduling/limits.py",
        "        if total > self.max_model_len:\n",
        "        if total > 10 * self.max_model_len:\n",
        SCHEDULER,
    ),
    Fault(
        "gllm: jitter in admission",
        "engine/scheduling/waiting_queue.py",
        "        return -first.priority, served, first.arrival\n",
        '        return -first.priority, int(__import__("random").random() * 9), first.arrival\n',
        regression("gllm_jitter_in_admission"),
    ),
    Fault(
        "quire: the longest waiting is never helped",
        "engine/scheduling/waiting_queue.py",
        "            return self._first_arrived()\n        return self._first_ranked()\n",
        "            return self._first_ranked()\n        return self._first_ranked()\n",
        (PROPERTIES + "nobody_starves_behind_endless_traffic_of_higher_priority",),
    ),
    Fault(
        "quire: siblings fork a prompt that is not computed",
        "engine/scheduling/scheduler.py",
        "return leader if leader.num_applied_tokens >= leader.num_prompt_tokens else None",
        "return leader",
        SCHEDULER,
    ),
    Fault(
        "quire: siblings write into the leader's block",
        "engine/scheduling/scheduler.py",
        "            shared = fork.block_table[: computed // self.pool.block_size]\n",
        "            shared = fork.block_table[: computed // self.pool.block_size + 1]\n",
        SCHEDULER,
    ),
    Fault(
        "quire: steps are planned past max_tokens",
        "engine/scheduling/request.py",
        "target = known if known < self.max_total_tokens else self.max_total_tokens - 1",
        "target = known",
        SCHEDULER,
    ),
    Fault(
        "quire: an ending id ends before min_tokens",
        "engine/scheduling/completion.py",
        "if count >= params.min_tokens and token in request.ending_ids:",
        "if token in request.ending_ids:",
        SCHEDULER,
    ),
)
