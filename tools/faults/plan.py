"""Faults of the plan, of who is admitted next, of an engine's end, and of the pace of words."""

from faults.fault import Fault

PLAN = ("tests/engine/scheduling/test_plan.py",)
QUEUE = ("tests/engine/scheduling/test_waiting_queue.py",)
AFTER_FAULT = (
    "tests/engine/loop/test_outputs_after_fault.py",
    "tests/engine/loop/test_link_ends.py",
)
DEVICE_ERRORS = ("tests/engine/runner/test_device_errors.py",)
POOL = ("tests/engine/scheduling/test_block_pool.py",)
PACING = ("tests/engine/client/test_pacing.py", "tests/engine/client/test_new_calls.py")

FAULTS = (
    Fault(
        "plan: a row does not carry its tokens",
        "engine/scheduling/scheduler.py",
        'tokens = b"" if is_decode else request.token_ids[start:end].tobytes()',
        'tokens = b""',
        PLAN,
    ),
    Fault(
        "plan: what is planned is the request's own list",
        "engine/scheduling/scheduler.py",
        'tokens = b"" if is_decode else request.token_ids[start:end].tobytes()',
        'tokens = b"" if is_decode else memoryview(request.token_ids)[start:end]',
        PLAN,
    ),
    Fault(
        "plan: a slot keeps the parameters of who had it first",
        "engine/runner/slot_sampling.py",
        "            self._numbers[one.slot] = one.sampling\n"
        "            self._needs[one.slot] = Needs.of(one.sampling)\n",
        "            self._numbers.setdefault(one.slot, one.sampling)\n"
        "            self._needs.setdefault(one.slot, Needs.of(one.sampling))\n",
        ("tests/engine/runner/test_runner.py", "tests/engine/runner/test_runner_graphs.py"),
    ),
    Fault(
        "plan: siblings draw with one seed",
        "engine/scheduling/request.py",
        "(params.seed + self.index * _SEED_STEP)",
        "(params.seed + 0 * _SEED_STEP)",
        PLAN,
    ),
    Fault(
        "plan: read again it has lists where it had tuples",
        "engine/scheduling/plan.py",
        "sampling_numbers, tuple(prompt), tuple(outputs)",
        "sampling_numbers, prompt, outputs",
        PLAN,
    ),
    Fault(
        "queue: the least served is looked for among all",
        "engine/scheduling/shares.py",
        "            least = self._least.first()\n",
        "            least = min(self.served, key=lambda c: (self.served[c], c), default=None)\n",
        QUEUE,
    ),
    Fault(
        "queue: whoever waited alone leaves those that have gone where they are",
        "engine/scheduling/waiting_queue.py",
        "            self._alone = None\n        elif self._rank(",
        "            self._alone = None\n            return\n        if self._rank(",
        QUEUE,
    ),
    Fault(
        "queue: every client is looked at for each admission",
        "engine/scheduling/waiting_queue.py",
        "        client = self._clients.first()\n",
        "        ranks = [(rank, c) for c in self._ranked if (rank := self._rank(c)) is not None]\n"
        "        client = min(ranks, default=(None, None))[1]\n",
        QUEUE,
    ),
    Fault(
        "queue: a client that has been served keeps its old rank",
        "engine/scheduling/rising_heap.py",
        "            elif rank == noted:\n",
        "            elif rank is not None:\n",
        QUEUE,
    ),
    Fault(
        "queue: a client whose rank has fallen keeps its old one",
        "engine/scheduling/rising_heap.py",
        "        if item in self._counts and self._counts[item] <= rank:\n",
        "        if item in self._counts:\n",
        QUEUE,
    ),
    Fault(
        "after a fault: the error comes before what was delivered",
        "engine/client/async_engine.py",
        "                error = stream.error  # as of now",
        "                error = stream.error\n                if error is not None:\n"
        "                    raise error\n                # as of now",
        AFTER_FAULT,
    ),
    Fault(
        "after a fault: a stream that has ended hears of the engine's end",
        "engine/client/async_engine.py",
        "                if error is not None and stream.open_indices:\n",
        "                if error is not None:\n",
        AFTER_FAULT,
    ),
    Fault(
        "after a fault: what the last turn said is dropped",
        "engine/loop/loop.py",
        "            self._hold_final_outputs()\n            raise\n",
        "            raise\n",
        AFTER_FAULT,
    ),
    Fault(
        "after a fault: a lost device is asked for its memory",
        "engine/loop/loop.py",
        "self._held = Batch(outputs)\n",
        "self._held = Batch(outputs, self._engine.stats())\n",
        AFTER_FAULT,
    ),
    Fault(
        "after a fault: what was to go with failed statistics is said twice",
        "engine/loop/loop.py",
        "        batch = Batch(outputs, blocks=self._watch.take())\n",
        "        self._held = batch = Batch(outputs, blocks=self._watch.take())\n",
        AFTER_FAULT,
    ),
    Fault(
        "after a fault: rows before the ruined one lose their ends",
        "engine/scheduling/completion.py",
        "            self._state.emit(*outputs)  # those of the rows before it are valid\n",
        "",
        AFTER_FAULT,
    ),
    Fault(
        "after a fault: a thread that is given up is not listened to",
        "engine/client/in_thread.py",
        "        self._abandoned = True\n        self._deliver()\n",
        "        self._abandoned = True\n",
        AFTER_FAULT,
    ),
    Fault(
        "after a fault: a process that is given up is not listened to",
        "engine/client/in_process.py",
        "        while self._reading and self._read():\n            pass\n",
        "",
        AFTER_FAULT,
    ),
    Fault(
        "device: Triton's words are not known",
        "engine/runner/device_errors.py",
        '    r"|\\bTriton Error \\["\n',
        "",
        DEVICE_ERRORS,
    ),
    Fault(
        "device: a want of memory counts as its loss",
        "engine/runner/device_errors.py",
        "isinstance(error, torch.OutOfMemoryError) or _WANT_OF_MEMORY.search(words)",
        "isinstance(error, torch.OutOfMemoryError)",
        DEVICE_ERRORS,
    ),
    Fault(
        "device: what an error was raised from is not looked at",
        "engine/runner/device_errors.py",
        "        waiting += [one.__cause__, one.__context__]\n",
        "",
        DEVICE_ERRORS,
    ),
    Fault(
        "block map: a block that is shared no more still shows as shared",
        "engine/scheduling/block_pool.py",
        "                self.num_shared -= 1\n                self._states[block] = IN_USE\n",
        "                self.num_shared -= 1\n",
        POOL,
    ),
    Fault(
        "block map: it is made block by block",
        "engine/scheduling/block_pool.py",
        "return bytes(memoryview(self._states)[1:])",
        "return bytes(self._states[block] for block in range(1, self.num_blocks))",
        POOL,
    ),
    Fault(
        "pacing: a flood of calls keeps words back for as long as it lasts",
        "engine/client/pacing.py",
        "        return now - min(queue[0][0] for queue in (self._first, self._later) if queue) <",
        "        return 0 <",
        PACING,
    ),
    Fault(
        "pacing: nobody is woken for having waited long",
        "engine/client/pacing.py",
        "        self._wake_overdue(now)\n",
        "",
        PACING,
    ),
    Fault(
        "pacing: every short pause begins a new burst",
        "engine/client/pacing.py",
        "max(self._burst_since, self._last_at - PATIENCE)\n",
        "now\n",
        PACING,
    ),
    Fault(
        "pacing: the moment that a call holds up counts as calm after it",
        "engine/client/pacing.py",
        "2 * (gap - QUIET)",
        "2 * gap",
        (PACING[1] + "::test_calls_that_come_evenly_and_for_ever_do_not_hold_up_a_lone_stream",),
    ),
    Fault(
        "plan: a parameter is left out on its way to the slot",
        "engine/scheduling/plan.py",
        "            presence_penalty=params.presence_penalty,\n",
        "",
        (PLAN[0] + "::test_what_a_request_asks_for_reaches_its_slot",),
    ),
)
