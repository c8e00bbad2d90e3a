"""Faults in the HTTP API: who may call, what is read, who leaves, who does not read."""

from faults.fault import Fault

CLIENT = "tests/service/openai/test_openai_client.py::test_"
CLIENT_ENDS = "tests/service/openai/test_openai_client_ends.py::test_"
HOSTILE = "tests/service/openai/test_openai_hostile.py::test_"
HOSTILE_REQUESTS = "tests/service/openai/test_openai_hostile_requests.py::test_"
ENTRANCE = "tests/service/openai/test_openai_entrance.py::test_"
FIELDS = "tests/clients/openai/test_openai_fields.py::test_"
SHAPES = "tests/service/openai/test_openai_answers.py::test_"
LINES = "tests/service/openai/test_request_lines.py::test_"

FAULTS = (
    Fault(
        "openai: a client that leaves is not noticed",
        "service/openai/reply.py",
        "            task.cancel()\n",
        "            pass\n",
        (CLIENT_ENDS + "a_client_that_leaves_frees_its_blocks",),
    ),
    Fault(
        "openai: a call that nobody reads keeps its connection",
        "service/openai/reply.py",
        '                scope["connection"].abort()\n',
        "                pass\n",
        (HOSTILE + "a_stream_that_nobody_reads_is_ended_and_gives_back_all_it_held",),
    ),
    Fault(
        "openai: a body is read before its sender's key",
        "service/openai/request_reader.py",
        "            await self._guard.check_key(context)\n"
        "            body = await self._bodies.read(request, context.peer())\n",
        "            body = await self._bodies.read(request, context.peer())\n"
        "            await self._guard.check_key(context)\n",
        (ENTRANCE + "a_key_is_asked_for_before_the_body_is_read",),
    ),
    Fault(
        "openai: what is nested too deep is told of the body alone",
        "service/openai/bodies.py",
        "read_object(body.decode(), BODY_DEPTH)",
        "read_object(body.decode())",
        (HOSTILE_REQUESTS + "what_is_nested_too_deep_is_refused_by_its_fields_name",),
    ),
    Fault(
        "openai: any host will do",
        "service/openai/request_guard.py",
        "            raise problems.foreign_host(host)\n",
        "            return\n",
        (HOSTILE_REQUESTS + "a_foreign_host_gets_no_answer",),
    ),
    Fault(
        "openai: a connection that was reset is kept",
        "service/openai/connection.py",
        "            self.timeout_keep_alive_task.cancel()\n",
        "            pass\n",
        (HOSTILE + "nothing_is_kept_of_a_connection_that_is_reset",),
    ),
    Fault(
        "openai: an empty line before a request is refused",
        "service/openai/connection.py",
        "        if self.conn.our_state is h11.IDLE and not self._is_begun():\n",
        "        if False:\n",
        (LINES + "empty_lines_before_a_request_are_passed_over",),
    ),
    Fault(
        "openai: a target with a host is a path",
        "service/openai/connection.py",
        "    if target is None:\n",
        "    if True:\n",
        (LINES + "what_is_posted_to_a_target_with_a_host_is_read",),
    ),
    Fault(
        "openai: beside a target with a host the header counts",
        "service/openai/connection.py",
        '        "headers": [(b"host", target["host"]), *others],\n',
        "",
        (LINES + "of_a_target_with_a_host_that_host_counts",),
    ),
    Fault(
        "openai: headers may take for ever",
        "service/openai/connection.py",
        "        if self.since is not None and now - self.since >= seconds:\n",
        "        if False:\n",
        (HOSTILE + "slow_headers_are_cut_off_and_slow_answers_are_not",),
    ),
    Fault(
        "openai: a number that the contract cannot hold goes on as infinity",
        "clients/openai/fields.py",
        "        elif not -MAX_FLOAT32 <= value <= MAX_FLOAT32:\n",
        "        elif False:\n",
        (FIELDS + "what_the_contract_cannot_hold_is_told_as_it_was_given",),
    ),
    Fault(
        "openai: a field that is not known is passed over",
        "clients/openai/fields.py",
        '            self.fault(name[:80], value, instead.get(name, "is not a field of this '
        'request"))\n',
        "            pass\n",
        (FIELDS + "what_is_not_known_is_refused_and_all_of_it_is_told",),
    ),
    Fault(
        "openai: the higher priority runs first, as in the contract",
        "clients/openai/sampling.py",
        '    request.priority = -(body.whole("priority"',
        '    request.priority = +(body.whole("priority"',
        (FIELDS + "every_field_of_sampling_arrives",),
    ),
    Fault(
        "openai: choices of several prompts are counted from nought for each",
        "clients/openai/parsed_body.py",
        "                message.delta.index += place * self.each\n",
        "                pass\n",
        (CLIENT + "several_prompts_are_one_answer_whole_and_streamed",),
    ),
    Fault(
        "openai: of several prompts one that is refused leaves the others running",
        "service/openai/calls.py",
        "            task.cancel()\n",
        "            pass\n",
        (CLIENT + "one_bad_prompt_of_several_ends_them_all_and_is_named",),
    ),
    Fault(
        "openai: an HTTP call's span says that it came over gRPC",
        "service/telemetry/tracing.py",
        "if isinstance(context, OtherContext) else grpc_span(code, method)\n",
        "if not context else grpc_span(code, method)\n",
        (CLIENT + "calls_are_traced_under_what_their_headers_name",),
    ),
    Fault(
        "openai: a handshake takes the certificate of the start",
        "service/openai/http_server.py",
        "        secured.context = material.value.context\n",
        '        secured.context = vars(choose).setdefault("first", material.value.context)\n',
        (ENTRANCE + "tls_follows_the_files",),
    ),
    Fault(
        "openai: a stream makes room for as many choices as are asked for",
        "service/openai/chunks.py",
        "defaultdict[int, Offsets] = defaultdict(Offsets)  # by index",
        "dict[int, Offsets] = {i: Offsets() for i in range(n)}",
        (SHAPES + "more_choices_than_may_be_take_no_room",),
    ),
)
