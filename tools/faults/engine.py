"""The faults that `make mutants` puts back: what systems like this one got wrong, as patches.

Each names the file, the text that is right, what it becomes, and the tests that should notice. The
first part of a name says where users reported the fault; `quire` are faults of its own making.
"""

from faults.fault import Fault

REGRESSIONS = "tests/test_regressions.py::test_"
POOL = "tests/engine/scheduling/test_block_pool.py"
SCHEDULER = "tests/engine/scheduling/test_scheduler.py"
TRAFFIC = (
    "tests/engine/scheduling/test_scheduler_properties.py"
    "::test_random_traffic_neither_leaks_nor_hangs_nor_corrupts"
)
PROPERTIES = "tests/engine/scheduling/test_scheduler_properties.py::test_"

PADDED = ("tests/engine/test_equivalences.py::test_padding_writes_nowhere_that_a_request_has_left",)
REPLAYED = (
    "tests/engine/test_equivalences.py::test_padded_steps_are_replayed_with_fewer_rows_"
    "than_they_hold",
)


def _regression(name: str) -> tuple[str, ...]:
    return (REGRESSIONS + name,)


CACHE = (
    Fault(
        "nano-vllm-114: a whole prompt is taken from the cache",
        "engine/scheduling/scheduler.py",
        "limit = (len(known) - 1) // self.pool.block_size",
        "limit = len(known) // self.pool.block_size",
        _regression("nano_vllm_114_prompt_wholly_cached"),
    ),
    Fault(
        "nano-vllm-153: a block that is taken keeps its hash",
        "engine/scheduling/block_pool.py",
        "                self.prefix_cache.forget(block)\n                self.num_cached -= 1\n",
        "                self.num_cached -= 1\n",
        _regression("nano_vllm_153_reallocated_block_kept_its_hash"),
    ),
    Fault(
        "nano-vllm-208: blocks are known when they are planned",
        "engine/scheduling/scheduler.py",
        "        self._add_row(request, min(request.remaining, draft.budget), draft)\n"
        "        return True\n",
        "        self._add_row(request, min(request.remaining, draft.budget), draft)\n"
        "        request.num_applied_tokens = min(\n"
        "            request.num_computed_tokens, len(request.token_ids)\n"
        "        )\n"
        "        self.completion._register_full_blocks(request)\n"
        "        return True\n",
        _regression("nano_vllm_208_prefix_that_no_step_has_computed_yet"),
    ),
    Fault(
        "nano-vllm-219: a duplicate overwrites the entry of its hash",
        "engine/scheduling/prefix_cache.py",
        "named = self._blocks_of.setdefault(hashes[index], {})",
        "named = self._blocks_of[hashes[index]] = {}",
        (POOL,),
    ),
    Fault(
        "nano-vllm-207: free blocks are counted before the hit takes some",
        "engine/scheduling/scheduler.py",
        "if self.pool.num_free_among(shared) + fresh + reserve > self.pool.num_free:",
        "if fresh + reserve > self.pool.num_free:",
        (TRAFFIC,),
    ),
    Fault(
        "nano-vllm-30: a block is taken by a modulo test",
        "engine/scheduling/scheduler.py",
        "        if end <= len(table) * self.pool.block_size:\n            return True\n"
        "        needed = self.pool.blocks_needed(end) - len(table)\n",
        "        needed = int(end % self.pool.block_size == 1)\n"
        "        if needed <= 0:\n            return True\n",
        _regression("nano_vllm_30_block_boundary"),
    ),
    Fault(
        "minivllm-70: a block that is taken has no reference",
        "engine/scheduling/block_pool.py",
        "            self._ref_counts[block] = 1\n",
        "            self._ref_counts[block] = 0\n",
        _regression("minivllm_70_reference_counts_under_traffic"),
    ),
    Fault(
        "minivllm-75: an off by one in the blocks that a length needs",
        "engine/scheduling/block_pool.py",
        "return -(-num_tokens // self.block_size)",
        "return num_tokens // self.block_size + 1",
        (POOL,),
    ),
    Fault(
        "minivllm-53: the pool has more blocks than the cache",
        "engine/loop/build.py",
        "kv.num_blocks, config.block_size, config.enable_prefix_caching,",
        "kv.num_blocks + 1, config.block_size, config.enable_prefix_caching,",
        _regression("minivllm_53_more_blocks_counted_than_the_cache_has"),
    ),
    Fault(
        "minivllm-98: after a hit positions begin at 0",
        "engine/runner/slots.py",
        "return one.last_token, one.num_computed,",
        "return one.last_token, 0,",
        _regression("minivllm_98_hit_whose_cache_prefill_ignored"),
    ),
    Fault(
        "vllm-11829: the salt is left out of the hash",
        "engine/scheduling/prefix_cache.py",
        'self._seed + struct.pack("<I", len(salt)) + salt)',
        "self._seed)",
        _regression("vllm_11829_collisions_across_tenants"),
    ),
    Fault(
        "vllm-12621: the seed of hashes can be known",
        "engine/scheduling/prefix_cache.py",
        "secrets.token_bytes(16) if seed is None",
        "bytes(16) if seed is None",
        _regression("vllm_11829_collisions_across_tenants"),
    ),
    Fault(
        "vllm-29261: tokens are not compared on a hit",
        "engine/scheduling/prefix_cache.py",
        "if self._tokens_of[block] != self._pack(token_ids, index):",
        "if block not in self._tokens_of:",
        _regression("vllm_11829_collisions_across_tenants"),
    ),
    Fault(
        "tgi-2489: blocks that were never computed stay as a prefix",
        "engine/scheduling/roster.py",
        "        was, request.status = request.status, Status.FINISHED\n"
        "        if was is Status.RUNNING:\n",
        "        was, request.status = request.status, Status.FINISHED\n"
        "        if was is Status.RUNNING:\n"
        "            request.num_applied_tokens = min(\n"
        "                request.num_computed_tokens, len(request.token_ids)\n"
        "            )\n"
        "            from quire.engine.scheduling.completion import Completion\n"
        "            Completion(self)._register_full_blocks(request)\n",
        _regression("tgi_2489_blocks_freed_before_prefill_served_as_a_prefix"),
    ),
    Fault(
        "mini-sglang-149: the integrity check does nothing",
        "engine/scheduling/block_pool.py",
        "        held = Counter(block for table in tables for block in table)\n",
        "        held = Counter(block for table in tables for block in table)\n        return\n",
        _regression("mini_sglang_149_check_that_checks_nothing"),
    ),
    Fault(
        "quire: heads of a prefix are evicted before its tail",
        "engine/scheduling/block_pool.py",
        "for block in reversed(table):",
        "for block in table:",
        (POOL,),
    ),
)

SCHEDULING = (
    Fault(
        "nano-vllm-274: what can never fit is admitted",
        "engine/scheduling/limits.py",
        "        if needed > usable:\n",
        "        if needed > usable + 1:\n",
        _regression("nano_vllm_274_lone_sequence_exhausts_the_cache"),
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
        "engine/scheduling/roster.py",
        "        request.num_registered_blocks = 0\n        self.waiting.push(request)\n",
        "        request.num_registered_blocks = 0\n",
        _regression("minivllm_6_sequence_lost_on_preemption"),
    ),
    Fault(
        "minivllm-51: nobody is admitted again once blocks ran out",
        "engine/scheduling/scheduler.py",
        "        if request is None or not self._admit_one(request, draft):",
        "        if request is None or request.epoch or not self._admit_one(request, draft):",
        _regression("minivllm_6_sequence_lost_on_preemption"),
    ),
    Fault(
        "vllm-23347: a request planned in this step is preempted",
        "engine/scheduling/scheduler.py",
        "candidates = [r for r in self.roster.running if r.slot not in draft.planned]",
        "candidates = list(self.roster.running)",
        _regression("vllm_23347_planned_in_this_step_and_preempted"),
    ),
    Fault(
        "vllm-39734: a request larger than the cache waits in the queue",
        "engine/scheduling/limits.py",
        "        if needed > usable:\n",
        "        if usable < 0:\n",
        _regression("vllm_39734_request_larger_than_the_cache_blocks_the_queue"),
    ),
    Fault(
        "nano-vllm: decode rows wait while a prompt is chunked",
        "engine/scheduling/scheduler.py",
        "        if self.two_phase:\n            self._plan_two_phase(draft)\n",
        "        if draft.budget:\n            self._plan_two_phase(draft)\n",
        _regression("nano_vllm_decodes_wait_for_a_chunked_prompt"),
    ),
    Fault(
        "mini-sglang: an over-long prompt is accepted",
        "engine/scheduling/limits.py",
        "        if total > self.max_model_len:\n",
        "        if total > 10 * self.max_model_len:\n",
        (SCHEDULER,),
    ),
    Fault(
        "gllm: jitter in admission",
        "engine/scheduling/waiting_queue.py",
        "return priority, self.shares.served[client], arrival",
        'return priority, int(__import__("random").random() * 9), arrival',
        _regression("gllm_jitter_in_admission"),
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
        (SCHEDULER,),
    ),
    Fault(
        "quire: siblings write into the leader's block",
        "engine/scheduling/scheduler.py",
        "            shared = fork.block_table[: computed // self.pool.block_size]\n",
        "            shared = fork.block_table[: computed // self.pool.block_size + 1]\n",
        (SCHEDULER,),
    ),
    Fault(
        "quire: steps are planned past max_tokens",
        "engine/scheduling/sequence.py",
        "target = known if known < self.max_total_tokens else self.max_total_tokens - 1",
        "target = known",
        (SCHEDULER,),
    ),
    Fault(
        "quire: an ending id ends before min_tokens",
        "engine/scheduling/completion.py",
        "if count >= params.min_tokens and token in request.ending_ids:",
        "if token in request.ending_ids:",
        (SCHEDULER,),
    ),
)

OVERLAP = (
    Fault(
        "mini-sglang-111: an aborted request's blocks go at once, and again",
        "engine/scheduling/roster.py",
        "        if request.in_flight == 0:\n            self._vacate(request)\n",
        "        self._vacate(request)\n",
        _regression("mini_sglang_111_abort_of_a_request_in_the_step_in_flight"),
    ),
    Fault(
        "sglang-18803: results of before a preemption count",
        "engine/scheduling/completion.py",
        "elif row.epoch != request.epoch:",
        "elif row.epoch > request.epoch:",
        (TRAFFIC,),
    ),
    Fault(
        "vllm-57355: max_num_seqs is no captured size",
        "engine/runner/graphs.py",
        "if size < max_num_seqs} | {max_num_seqs})",
        "if size <= max_num_seqs})",
        _regression("vllm_57355_max_num_seqs_was_no_captured_size"),
    ),
    Fault(
        "vllm-10903: block tables are a column too narrow",
        "engine/loop/build.py",
        "max_blocks = -(-max_model_len // config.block_size)\n    state",
        "max_blocks = max_model_len // config.block_size\n    state",
        _regression("vllm_10903_longest_length_not_divisible_by_the_block_size"),
    ),
    Fault(
        "mini-sglang-56: captured sizes far apart",
        "engine/runner/graphs.py",
        "*range(8, 64, 8), *range(64, 256, 16),",
        "8, 16, 32, 64, 128,",
        _regression("mini_sglang_56_padding_wasted_by_coarse_captured_sizes"),
    ),
)

PADDING = (
    Fault(
        "minivllm: padded rows of a decode step write through another's block table",
        "engine/runner/runner.py",
        "padding = [self._state.null_slot] * (key.decode_rows - len(plan.rows))",
        "padding = [0] * (key.decode_rows - len(plan.rows))",
        PADDED,
    ),
    Fault(
        "vllm-40047: padded rows of a mixed step are a request's",
        "engine/runner/inputs.py",
        "row_slots = np.full(shape.decode_rows + shape.prefill_rows, null_slot, np.int32)",
        "row_slots = np.zeros(shape.decode_rows + shape.prefill_rows, np.int32)",
        REPLAYED,
    ),
)

LOADING_AND_TEXT = (
    Fault(
        "mini-sglang-88: noise comes from a generator with a state",
        "kernels/reference/sampling.py",
        "_subtract_log_noise(noisy, seeds[slots[rows]], positions[rows])",
        "_subtract_log_noise(noisy, torch.randint(9**9, (len(rows),)), positions[rows])",
        _regression("mini_sglang_88_unseeded_sampling_differs_between_ranks"),
    ),
    Fault(
        "mini-sglang-93: tensors are loaded whole",
        "engine/weights/loader.py",
        "placement.chunks(CHUNK_BYTES // stored[placement.name].dtype.itemsize)",
        "placement.chunks(1 << 40)",
        _regression("mini_sglang_93_out_of_memory_while_loading"),
    ),
    Fault(
        "nano-vllm-69: a weight that the model does not have is passed over",
        "engine/weights/loader.py",
        "    unknown = stored.keys() - placements.keys()\n",
        "    unknown: set[str] = set()\n",
        _regression("nano_vllm_69_wrong_weights_gave_garbage"),
    ),
    Fault(
        "vllm-6758: a tied head stored twice is not looked at",
        "engine/weights/loader.py",
        "        if one[:count] != other[:count]:\n",
        "        if count < 0:\n",
        _regression("nano_vllm_69_wrong_weights_gave_garbage"),
    ),
    Fault(
        "exo-1691: each token is decoded by itself",
        "service/text/detokenizer.py",
        "text = self._decoder.decode(piece)",
        'text = piece.decode("utf-8", "replace")',
        _regression("exo_1691_character_split_across_tokens"),
    ),
    Fault(
        "mlx-vlm-309: only the first file's EOS ids count",
        "engine/model/hf_config.py",
        'eos = config.integers("eos_token_id", least=0, below=vocab) + eos',
        'eos = config.integers("eos_token_id", least=0, below=vocab) or eos',
        _regression("mlx_vlm_309_only_one_eos_id_honoured"),
    ),
    Fault(
        "vllm-28172: usage counts characters of the text",
        "service/rpc/responses.py",
        "        state.delivered += len(piece.ids)  #",
        "        state.delivered += len(piece.text)  #",
        _regression("vllm_28172_usage_counted_by_encoding_the_text_again"),
    ),
    Fault(
        "smg-2426: a stale abort is an error",
        "engine/scheduling/scheduler.py",
        "        for request in tuple(self.roster.by_key.get(key, ())):\n"
        "            self.counters.aborted_in_flight",
        "        for request in tuple(self.roster.by_key[key]):\n"
        "            self.counters.aborted_in_flight",
        _regression("smg_2426_stale_or_repeated_abort"),
    ),
    Fault(
        "sglang-omni-2077: the event loop changes the tables itself",
        "engine/client/in_thread.py",
        "            loop.announce()\n",
        "            loop.announce()\n"
        "            put, self.send = self.send, lambda c: (  # type: ignore\n"
        "                loop.obey if type(c).__name__ == 'Finish' else put\n"
        "            )(c)\n",
        _regression("sglang_omni_2077_two_threads_touched_the_tables"),
    ),
)

FRAMES = ("tests/engine/client/test_process_frames.py",)
PLACES = "tests/engine/client/test_places.py::test_"

TWO_PROCESSES = (
    Fault(
        "quire: what a slow parent does not take is overwritten",
        "engine/client/process_main.py",
        "self._late = batch if self._late is None else joined(self._late, batch)",
        "self._late = batch",
        FRAMES,
    ),
    Fault(
        "quire: last words are said without what was kept",
        "engine/client/process_main.py",
        "        self._socket.settimeout(_LAST_WORDS)\n        self._pack_late()\n",
        "        self._socket.settimeout(_LAST_WORDS)\n",
        FRAMES,
    ),
    Fault(
        "quire: a joined output forgets its first token's time",
        "engine/request.py",
        "        if not self.token_ids:\n            self.first_token_at",
        "        if later.token_ids:\n            self.first_token_at",
        ("tests/service/rpc/test_output_times.py",),
    ),
    Fault(
        "quire: a frozen child passes for an idle one",
        "engine/client/in_process.py",
        "return self._asked_since if since is None else since",
        "return since",
        (PLACES + "a_frozen_child_shows_as_busy_even_if_it_was_idle",),
    ),
    Fault(
        "quire: a turn that leaves the engine idle says nothing",
        "engine/loop/loop.py",
        "if outputs or idle or overdue or self._answers:",
        "if outputs or self._answers:",
        (PLACES + "the_same_requests_get_the_same_answers_and_the_same_books",),
    ),
)

PACING = ("tests/engine/client/test_pacing.py",)

UNDER_LOAD = (
    Fault(
        "quire: gRPC's wake-up bytes pile up",
        "service/app/event_loop.py",
        "    if waiting > 1:\n",
        "    if waiting > 1 << 20:\n",
        ("tests/service/app/test_event_loop.py",),
    ),
    Fault(
        "quire: new calls wait behind the words of many streams",
        "engine/client/pacing.py",
        "        if self._must_hold(now):\n",
        "        if len(self) < 0:\n",
        PACING,
    ),
    Fault(
        "quire: new calls keep words back for as long as they come",
        "engine/client/pacing.py",
        "return now - self._last_at < QUIET and now - self._burst_since < PATIENCE",
        "return now - self._last_at < QUIET",
        PACING,
    ),
    Fault(
        "quire: a call is answered when its first words come",
        "engine/client/async_engine.py",
        "                if outputs or (is_first and error is None):\n",
        "                if outputs:\n",
        ("tests/engine/client/test_async_engine.py",),
    ),
)

FAULTS = (
    *CACHE,
    *SCHEDULING,
    *OVERLAP,
    *PADDING,
    *LOADING_AND_TEXT,
    *TWO_PROCESSES,
    *UNDER_LOAD,
)
