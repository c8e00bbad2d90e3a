"""Faults of two things that happen at one moment: who comes second is not heard, or too late."""

from faults.fault import Fault

AFTER_FAULT = "tests/engine/loop/test_outputs_after_fault.py::test_"
LINK_ENDS = "tests/engine/loop/test_link_ends.py::test_"
LOGS = "tests/service/telemetry/test_logs.py::test_"

FAULTS = (
    Fault(
        "quire: work that ends as it is given up is a time that has run out",
        "service/constraints/deep_threads.py",
        "                return done.result()\n",
        "                raise\n",
        (
            "tests/service/constraints/test_deep_threads.py"
            "::test_what_ends_in_the_moment_in_which_it_is_given_up_has_its_result",
        ),
    ),
    Fault(
        "quire: an event loop that closes just now is a fault of who speaks to it",
        "engine/client/in_thread.py",
        "        with contextlib.suppress(RuntimeError):  # the loop is closed\n",
        "        if not self._loop.is_closed():\n",
        (LINK_ENDS + "what_a_thread_says_to_a_loop_that_closes_just_now_is_dropped",),
    ),
    Fault(
        "quire: how the engine's process has ended is lost with the server",
        "engine/client/in_process.py",
        "            await asyncio.wait({self._telling})\n",
        "            pass\n",
        (LINK_ENDS + "how_a_process_has_ended_is_told_before_the_stop",),
    ),
    Fault(
        "quire: a process that stood still while it flushed has no last words",
        "service/telemetry/logs.py",
        "            any(reached.wait(seconds / _LOOKS) for _ in range(_LOOKS))\n",
        "            reached.wait(seconds)\n",
        (LOGS + "a_process_that_stands_still_in_a_flush_has_time_left_to_write",),
    ),
    Fault(
        "quire: another process writes into the midst of a line of the log",
        "service/telemetry/logs.py",
        "            end = data.rfind",
        "            end = len(data) or data.rfind",
        (LOGS + "lines_are_written_whole_so_that_no_other_process_writes_into_one",),
    ),
    Fault(
        "quire: the deadman counts the silence of a server that leaves",
        "service/app/process.py",
        "        await asyncio.wait({guarded})  # from here on the loop gives no sign of life\n",
        "",
        ("tests/service/app/test_guardian.py::test_whoever_leaves_is_held_to_no_signs_of_life",),
    ),
    Fault(
        "quire: an engine that dies while the vocabulary is read is not heard of before that is",
        "engine/client/async_engine.py",
        "{task, self._died}",
        "{task}",
        (
            "tests/service/app/test_hung_steps.py"
            "::test_an_engine_that_dies_before_all_is_read_ends_the_start",
        ),
    ),
    Fault(
        "quire: a fault that comes while ports are looked at is not looked into",
        "service/app/listener.py",
        "        while self._fault:\n",
        "        if self._fault:\n",
        (
            "tests/service/app/test_listener.py"
            "::test_a_fault_that_comes_while_ports_are_looked_at_is_looked_into_as_well",
        ),
    ),
    Fault(
        "quire: a scrape over TLS has no end",
        "service/telemetry/metrics_server.py",
        "self._open[request][0], secure\n",
        "self._open[request][0], request\n",
        ("tests/service/telemetry/test_scraping.py::test_a_connection_over_tls_has_an_end_too",),
    ),
    Fault(
        "ranks: the engine ends by the exchange before it is known who was lost",
        "engine/parallel/leader.py",
        "            self._ranks.wait_told()\n",
        "            pass\n",
        (
            "tests/engine/parallel/test_ranks.py::test_who_is_lost_is_known_before_the_engine"
            "_ends_by_what_the_exchange_says_of_it",
        ),
    ),
)
