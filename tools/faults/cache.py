"""Faults of blocks and of the prefix cache."""

from faults.fault import Fault, regression

POOL = "tests/engine/scheduling/test_block_pool.py"
TRAFFIC = (
    "tests/engine/scheduling/test_scheduler_properties.py"
    "::test_random_traffic_neither_leaks_nor_hangs_nor_corrupts"
)

FAULTS = (
    Fault(
        "nano-vllm-114: a whole prompt is taken from the cache",
        "engine/scheduling/scheduler.py",
        "limit = (len(known) - 1) // self.pool.block_size",
        "limit = len(known) // self.pool.block_size",
        regression("nano_vllm_114_prompt_wholly_cached"),
    ),
    Fault(
        "nano-vllm-153: a block that is taken keeps its hash",
        "engine/scheduling/block_pool.py",
        "                self.prefix_cache.forget(block)\n                self.num_cached -= 1\n",
        "                self.num_cached -= 1\n",
        regression("nano_vllm_153_reallocated_block_kept_its_hash"),
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
        regression("nano_vllm_208_prefix_that_no_step_has_computed_yet"),
    ),
    Fault(
        "nano-vllm-219: a duplicate overwrites the entry of its hash",
        "engine/scheduling/prefix_cache.py",
        "named = self._blocks_of.setdefault(block_hash, {})",
        "named = self._blocks_of[block_hash] = {}",
        (POOL,),
    ),
    Fault(
        "nano-vllm-207: free blocks are counted before the hit takes some",
        "engine/scheduling/scheduler.py",
        "if not self.pool.has_room(fresh + reserve, shared):",
        "if not self.pool.has_room(fresh + reserve, ()):",
        (TRAFFIC,),
    ),
    Fault(
        "nano-vllm-30: a block is taken by a modulo test",
        "engine/scheduling/scheduler.py",
        "        if end <= len(table) * self.pool.block_size:\n            return True\n"
        "        needed = self.pool.blocks_needed(end) - len(table)\n",
        "        needed = int(end % self.pool.block_size == 1)\n"
        "        if needed <= 0:\n            return True\n",
        regression("nano_vllm_30_block_boundary"),
    ),
    Fault(
        "minivllm-70: a block that is taken has no reference",
        "engine/scheduling/block_pool.py",
        "            self._ref_counts[block] = 1\n",
        "            self._ref_counts[block] = 0\n",
        regression("minivllm_70_reference_counts_under_traffic"),
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
        "engine/startup/kv_cache.py",
        "    pool = BlockPool(kv.num_blocks, ",
        "    pool = BlockPool(kv.num_blocks + 1, ",
        regression("minivllm_53_more_blocks_counted_than_the_cache_has"),
    ),
    Fault(
        "minivllm-98: after a hit positions begin at 0",
        "engine/runner/slots.py",
        "return one.last_token, one.num_computed,",
        "return one.last_token, 0,",
        regression("minivllm_98_hit_whose_cache_prefill_ignored"),
    ),
    Fault(
        "vllm-11829: the salt is left out of the hash",
        "engine/scheduling/prefix_cache.py",
        'self._seed + struct.pack("<I", len(salt)) + salt)',
        "self._seed)",
        regression("vllm_11829_collisions_across_tenants"),
    ),
    Fault(
        "vllm-12621: the seed of hashes can be known",
        "engine/scheduling/prefix_cache.py",
        "secrets.token_bytes(16) if seed is None",
        "bytes(16) if seed is None",
        regression("vllm_11829_collisions_across_tenants"),
    ),
    Fault(
        "vllm-29261: tokens are not compared on a hit",
        "engine/scheduling/prefix_cache.py",
        "if known != wanted:",
        "if len(known) != len(wanted):",
        regression("vllm_11829_collisions_across_tenants"),
    ),
    Fault(
        "tgi-2489: blocks that were never computed stay as a prefix",
        "engine/scheduling/scheduler_state.py",
        "        was, request.status = request.status, Status.FINISHED\n"
        "        if was is Status.RUNNING:\n",
        "        was, request.status = request.status, Status.FINISHED\n"
        "        if was is Status.RUNNING:\n"
        "            request.num_applied_tokens = min(\n"
        "                request.num_computed_tokens, len(request.token_ids)\n"
        "            )\n"
        "            from quire.engine.scheduling.completion import Completion\n"
        "            Completion(self)._register_full_blocks(request)\n",
        regression("tgi_2489_blocks_freed_before_prefill_served_as_a_prefix"),
    ),
    Fault(
        "mini-sglang-149: the integrity check does nothing",
        "engine/scheduling/block_pool.py",
        "        held = Counter(chain.from_iterable(tables))\n",
        "        held = Counter(chain.from_iterable(tables))\n        return\n",
        regression("mini_sglang_149_check_that_checks_nothing"),
    ),
    Fault(
        "quire: heads of a prefix are evicted before its tail",
        "engine/scheduling/block_pool.py",
        "for block in reversed(table):",
        "for block in table:",
        (POOL,),
    ),
)
