"""Faults between the two processes of a server."""

from faults.fault import Fault

FRAMES = ("tests/engine/client/test_process_frames.py",)
STATISTICS = "tests/engine/loop/test_statistics.py::test_"
PLACES = "tests/engine/client/test_places.py::test_"
AWAKE = "tests/engine/client/test_awake.py::test_"

FAULTS = (
    Fault(
        "quire: an engine of this process stays for ever",
        "engine/loop/garbage.py",
        "    finally:\n        if looks:\n",
        "    finally:\n        gc.freeze()\n        if looks:\n",
        (
            "tests/engine/loop/test_garbage.py",
            "tests/service/app/test_two_processes.py::test_an_engine_of_this_process_is_collected"
            "_once_nobody_has_it",
        ),
    ),
    Fault(
        "quire: what a slow parent does not take is overwritten",
        "engine/client/process_main.py",
        "self._late = batch if self._late is None else joined(self._late, batch)",
        "self._late = batch",
        FRAMES,
    ),
    Fault(
        "quire: statistics are lost where a later batch has none",
        "engine/client/process_main.py",
        "later.stats or first.stats",
        "later.stats",
        FRAMES,
    ),
    Fault(
        "loop: statistics are told where requests come and end, and nowhere else",
        "engine/loop/loop.py",
        "            self._load = None\n",
        "            pass\n",
        (STATISTICS + "a_first_token_goes_without_and_no_two_batches_in_a_row",),
    ),
    Fault(
        "loop: nobody is told that requests run before the next step",
        "engine/loop/loop.py",
        "if due or load != self._load or batch.answers:",
        "if due or self._load is None or batch.answers:",
        (STATISTICS + "they_tell_at_once_of_requests_that_come_and_end",),
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
        "if outputs or due or self._answers:",
        "if outputs or self._answers:",
        (PLACES + "the_same_requests_get_the_same_answers_and_the_same_books",),
    ),
    Fault(
        "awake: the event loop takes the interpreter from threads that read prompts",
        "engine/client/awake.py",
        " and not self._others_work()",
        "",
        (
            AWAKE + "it_leaves_the_interpreter_to_threads_that_read_prompts",
            AWAKE + "a_loop_goes_round_where_no_thread_wants_its_interpreter",
        ),
    ),
    Fault(
        "awake: a loop that has stopped going round stays so",
        "engine/client/awake.py",
        "        self.turning = self._wanted()\n        if self.turning:\n",
        "        if self._wanted():\n",
        (AWAKE + "it_sleeps_as_it_likes_while_many_are_open",),
    ),
    Fault(
        "awake: a loop that has gone round owes its streams' readers the time",
        "engine/client/awake.py",
        "            self._on_rest()\n",
        "            pass\n",
        (AWAKE + "what_a_loop_that_goes_round_has_used_holds_up_no_words",),
    ),
    Fault(
        "awake: a loop goes round for as long as a reader has stalled",
        "engine/client/awake.py",
        "self._clock() < self._until and",
        "(self._open or self._clock() < self._until) and",
        (AWAKE + "a_loop_whose_streams_are_silent_sleeps",),
    ),
    Fault(
        "awake: an idle engine sleeps at once",
        "engine/client/process_main.py",
        "        if wait:\n            self._poll_awhile()\n",
        "",
        (AWAKE + "an_idle_engine_polls_before_it_sleeps",),
    ),
)
