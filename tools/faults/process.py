"""Faults of the server's beginning, its sight and its end."""

from faults.fault import Fault

HEALTH = "tests/service/app/test_health.py::test_"
LOGS = "tests/service/telemetry/test_logs.py::test_"
ACCESS = "tests/service/telemetry/test_access.py::test_"
INTAKE = "tests/service/admission/test_intake.py::test_"
ENDS = "tests/service/app/test_ends.py::test_"
GUARDIAN = "tests/service/app/test_guardian.py::test_"
STACKS = "tests/service/app/test_stacks.py::test_"

FAULTS = (
    Fault(
        "quire: a server's start loads torch's compiler",
        "engine/model/layers/rotary.py",
        "    if table.is_meta:\n        return table\n",
        "",
        (
            "tests/engine/startup/test_checkpoint_first.py"
            "::test_shapes_are_made_without_arithmetic_which_would_load_a_compiler",
        ),
    ),
    Fault(
        "quire: watches of health are not bounded",
        "service/app/health.py",
        "        if self.watches >= MAX_WATCHES or self",
        "        if self",
        (HEALTH + "watches_are_bounded_and_their_places_come_back",),
    ),
    Fault(
        "quire: a watch that has ended keeps its place",
        "service/app/health.py",
        "            self._watches[connection] -= 1\n",
        "            self._watches[connection] -= 0\n",
        (HEALTH + "watches_are_bounded_and_their_places_come_back",),
    ),
    Fault(
        "quire: watches do not hear of the end",
        "service/app/health.py",
        "            elif closed:\n",
        "            elif False:\n",
        (HEALTH + "a_watch_hears_each_change_once_and_of_the_end",),
    ),
    Fault(
        "quire: whoever logs writes",
        "service/telemetry/logs.py",
        "        self._queue.put(record)\n",
        "        self._write((self._line(record)).encode())\n",
        (LOGS + "a_stuck_reader_holds_up_nobody_and_what_is_lost_is_counted",),
    ),
    Fault(
        "quire: the queue of the log has no bound",
        "service/telemetry/logs.py",
        "        if full or self._queue.qsize() >= MAX_RECORDS:\n",
        "        if full:\n",
        (LOGS + "a_stuck_reader_holds_up_nobody_and_what_is_lost_is_counted",),
    ),
    Fault(
        "quire: what was written counts as waiting for ever",
        "service/telemetry/logs.py",
        "                self._taken += _size(item)\n",
        "                self._taken += 0\n",
        (LOGS + "long_values_are_bounded_together",),
    ),
    Fault(
        "quire: standard error is waited for",
        "service/telemetry/standard_streams.py",
        "    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY\n",
        "    flags = os.O_WRONLY | os.O_NOCTTY\n",
        (LOGS + "a_pipe_is_never_waited_for_and_its_other_users_are_not_touched",),
    ),
    Fault(
        "quire: a field may begin a line",
        "service/telemetry/logs.py",
        "    text = escaped(str(value))\n",
        "    text = str(value)\n",
        (LOGS + "no_value_begins_a_line_or_moves_a_cursor",),
    ),
    Fault(
        "quire: a refused call leaves no line",
        "service/rpc/servicer.py",
        '            access.refused("Generate", context, self.access.authenticator, refusal)\n',
        "",
        (ACCESS + "a_refusal_for_a_limit_or_a_field_has_its_line",),
    ),
    Fault(
        "quire: bodies that never end keep their places",
        "service/admission/intake.py",
        "                reading.give_up()\n",
        "                pass\n",
        (INTAKE + "a_place_is_given_up_to_those_who_wait_and_to_nobody_else",),
    ),
    Fault(
        "quire: a body is read before its key is looked at",
        "service/admission/intake.py",
        "                if refusal is not None:\n                    raise refusal\n"
        "                return await self._read(context, receipt)\n",
        "                request = await self._read(context, receipt)\n"
        "                if refusal is not None:\n                    raise refusal\n"
        "                return request\n",
        (INTAKE + "a_caller_without_a_key_is_refused_before_their_body_is_there",),
    ),
    Fault(
        "quire: a turn that is given to one who has left is lost",
        "service/admission/intake.py",
        "                turn.set_result(None)\n                return\n",
        "                turn.set_result(None)\n            return\n",
        (INTAKE + "who_waits_gets_the_place_of_who_leaves_and_slow_connections_come_last",),
    ),
    Fault(
        "grpc: calls of a burst end CANCELLED without a word",
        "service/app/ports.py",
        '        ("grpc.server.max_pending_requests", _MAX_PENDING),\n'
        '        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),\n',
        "",
        (INTAKE + "in_a_burst_each_call_has_a_status_of_ours_and_is_counted",),
    ),
    Fault(
        "grpc: connections take every descriptor",
        "service/app/ports.py",
        '        ("grpc.max_allowed_incoming_connections", connections),\n',
        "",
        (INTAKE + "more_connections_than_there_is_room_for_are_closed_and_others_go_on",),
    ),
    Fault(
        "grpc: metadata over the limit is refused by chance",
        "service/app/ports.py",
        '        ("grpc.absolute_max_metadata_size", MAX_METADATA),\n',
        "",
        (INTAKE + "metadata_is_limited_to_16_kib_and_not_by_chance",),
    ),
    Fault(
        "quire: localhost is one address",
        "service/app/ports.py",
        "    for address in addresses:\n",
        "    for address in addresses[-1:]:\n",
        (INTAKE + "localhost_is_every_address_of_this_machine_by_that_name",),
    ),
    Fault(
        "quire: a server that was stopped is killed when it goes on",
        "service/app/guardian.py",
        "        elif not self._is_stopped():\n",
        "        else:\n",
        (GUARDIAN + "a_server_that_is_stopped_is_not_counted_and_goes_on",),
    ),
    Fault(
        "quire: a server's end waits for the guardian's next look",
        "service/app/guardian.py",
        "    end.register(0, 0)",
        "    end.register(2, 0)",
        (GUARDIAN + "the_servers_end_is_the_guardians_whenever_it_would_look_next",),
    ),
    Fault(
        "quire: Ctrl-C while loading looks like SIGTERM",
        "service/app/signals.py",
        "        return 128 + (self._first or signal.SIGTERM)\n",
        "        return 128 + signal.SIGTERM\n",
        (ENDS + "a_signal_while_loading_is_the_exit_code",),
    ),
    Fault(
        "quire: the grace does not follow the writes",
        "service/app/closing.py",
        "                ended, moved = self._ended_calls(), self._clock()\n",
        "                ended = self._ended_calls()\n",
        (ENDS + "the_grace_follows_the_writes",),
    ),
    Fault(
        "quire: the end waits for threads",
        "service/app/process.py",
        "    os._exit(code)\n",
        "    sys.exit(code)\n",
        (ENDS + "no_thread_at_work_holds_up_the_end",),
    ),
    Fault(
        "quire: calls that nobody has looked at are cancelled at the end",
        "service/app/closing.py",
        "        if leaving and not await self._all_told():\n",
        "        if False:\n",
        (
            "tests/service/app/test_process_faults.py::"
            "test_a_signal_while_calls_wait_for_their_first_look_gives_each_a_word",
        ),
    ),
    Fault(
        "quire: nothing makes an end that does not come",
        "service/app/signals.py",
        "        self.deadman.end_within(self._end_seconds)\n",
        "",
        (ENDS + "a_signal_before_the_loop_is_not_lost",),
    ),
    Fault(
        "quire: a signal before the loop is lost",
        "service/app/signals.py",
        "            self._asked.set()\n        return self._asked\n",
        "            pass\n        return self._asked\n",
        (ENDS + "a_signal_before_the_loop_is_not_lost",),
    ),
    Fault(
        "quire: a closed standard stream is left closed",
        "clients/standard_streams.py",
        "            if opened != descriptor:\n",
        "            os.close(opened)\n            if False:\n",
        (ENDS + "closed_standard_streams_keep_nobody_from_serving",),
    ),
    Fault(
        "quire: a service link of Kubernetes stops the server",
        "service/environment.py",
        "        if is_service_link(variable, text):\n            continue\n",
        "",
        (
            "tests/service/test_settings.py::test_what_kubernetes_says_of_a_service_of_our_name_"
            "is_passed_over",
        ),
    ),
    Fault(
        "quire: a process's stacks are written into the midst of a line of the log",
        "service/app/server.py",
        "        await asyncio.to_thread(logs.flush)\n        if stack",
        "        if stack",
        (STACKS + "the_line_that_announces_stacks_is_written_before_they_are_asked_for",),
    ),
    Fault(
        "quire: stacks are read beside threads that run",
        "engine/client/stacks.py",
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {_ASKED})\n",
        "    faulthandler.register(_ASKED, file=_STANDARD_ERROR, all_threads=True)\n",
        (STACKS + "stacks_are_read_while_nobody_runs",),
    ),
    Fault(
        "quire: a port that gRPC has closed stays closed",
        "service/app/listener.py",
        "        if await self._is_open():\n",
        "        if True:\n",
        ("tests/service/app/test_listener.py::test_a_path_that_is_no_text_closes_no_port",),
    ),
    Fault(
        "quire: a connection's calls wait before another's first",
        "service/admission/intake.py",
        " + len(turns) + held\n",
        "\n",
        (INTAKE + "connections_take_turns",),
    ),
    Fault(
        "quire: where too many calls wait whoever comes is refused",
        "service/admission/intake.py",
        "            self._make_room(connection)\n",
        "            raise errors.too_many_calls(MAX_WAITING, _RETRY_SECONDS)\n",
        (INTAKE + "where_too_many_wait_the_connection_with_the_most_loses_one",),
    ),
)
