"""Faults of replicas under Ray: who is asked first, and what a plan lets through."""

from faults.fault import Fault

_RANKING = "service/ray/ranking.py"
_PLAN = "service/ray/application_plan.py"
_WORKER = "clients/loadtest/worker.py"
_LOOPBACK = "service/ray/loopback.py"
_REPLICA = "service/ray/replica.py"
_FACE = "service/ray/openai_frontend.py"
_KEYS = "tests/service/ray/test_forwarded_keys.py::test_"
_HERE = "tests/service/ray/test_loopback.py::test_"
_TEST = "tests/service/ray/test_plan.py::test_"
_SHOWN = "tests/service/ray/test_openai_frontend.py::test_"
_STREAM, _STREAMS = "engine/client/stream.py", "engine/client/async_engine.py"
_WAITS = "tests/engine/client/test_intervals.py::test_"
_ROUTER = (f"{_TEST}ray_s_router_ranks_as_the_clients_own_choice",)

FAULTS = (
    Fault(
        "ray: the fullest replica is asked first",
        _RANKING,
        "return full, name != remembered",
        "return not full, name != remembered",
        _ROUTER,
    ),
    Fault(
        "ray: where a prompt went before does not count",
        _RANKING,
        "return full, name != remembered",
        "return full, False",
        _ROUTER,
    ),
    Fault(
        "ray: ports of a replica's own are let through",
        _PLAN,
        '    "metrics_port",\n',
        "",
        (f"{_TEST}a_port_of_the_replicas_own_is_refused",),
    ),
    Fault(
        "ray: any name is the served model's",
        "service/openai/cards.py",
        '    if name != model["id"]:\n',
        "    if False:\n",
        (f"{_SHOWN}models_are_told_as_a_server_tells_them",),
    ),
    Fault(
        "ray: any version's functions are replaced, whatever it listens by",
        _LOOPBACK,
        '    if version.rpartition(".")[0] != KNOWN:\n',
        "    if False:\n",
        (f"{_HERE}another_version_is_refused_by_its_name",),
    ),
    Fault(
        "ray: a function that is gone is not missed",
        _LOOPBACK,
        "        if not callable(found):\n",
        "        if False:\n",
        (f"{_HERE}one_that_lost_a_function_is_refused",),
    ),
    Fault(
        "ray: a replica does not see its caller's key",
        "service/ray/ray_context.py",
        '_FORWARDED = ("authorization", ',
        "_FORWARDED = (",
        (f"{_KEYS}the_replica_asks_for_the_caller_s_key_and_its_priority",),
    ),
    Fault(
        "ray: who asks after one with a key needs none for the model's name",
        _FACE,
        "if self._keyed or self._card is None:",
        "if self._card is None:",
        (f"{_KEYS}the_openai_api_hands_the_key_on_whoever_was_let_in_before",),
    ),
    Fault(
        "ray: what is larger than a request may be is read",
        _REPLICA,
        "if len(request) > most:",
        "if len(request) < 0:",
        (f"{_KEYS}what_is_no_request_is_refused_behind_the_key",),
    ),
    Fault(
        "ray: a call that Ray closes runs on",
        _REPLICA,
        "async with contextlib.aclosing(generate(asked, call)) as messages:",
        "async with contextlib.nullcontext(generate(asked, call)) as messages:",
        (f"{_KEYS}a_call_that_ray_closes_has_ended",),
    ),
    Fault(
        "ray: what its proxy drops runs on",
        "service/ray/dropped.py",
        "    responses._response.cancel()\n",
        "",
        (
            "tests/service/ray/test_dropped.py::test_what_is_dropped_before_its_end_is_cancelled_once",
        ),
    ),
    Fault(
        "ray: defaults overrule the environment",
        "service/ray/ray_defaults.py",
        "os.environ.setdefault(name, value)",
        "os.environ[name] = value",
        (f"{_TEST}the_environment_overrules_ray_defaults",),
    ),
    Fault(
        "intervals: the end waits too",
        _STREAM,
        "if self.is_new or ends else",
        "if self.is_new else",
        (f"{_WAITS}first_words_and_the_end_wait_for_nothing_and_all_between_is_joined",),
    ),
    Fault(
        "intervals: what waits waits for more",
        _STREAMS,
        "stream.timer = loop.call_later(wait, self._on_time, stream)",
        "pass",
        (f"{_WAITS}what_waits_goes_when_the_interval_is_over_though_nothing_follows",),
    ),
    Fault(
        "intervals: each stream has times of its own",
        _STREAM,
        "return (math.floor(now / interval + _SAME) + 1) * interval",
        "return now + interval",
        (f"{_WAITS}all_streams_keep_to_the_same_times",),
    ),
    Fault(
        "intervals: the server's option is read by nobody",
        "service/rpc/servicer.py",
        "call.accepted.generation, serving.message_interval",
        "call.accepted.generation, 0.0",
        (
            "tests/service/rpc/test_message_interval.py"
            "::test_each_stream_is_read_by_the_interval_and_says_all",
        ),
    ),
    Fault(
        "replicas: one that serves another thing was only not asked",
        "clients/replicas/call_failover.py",
        "if like is None or not serves(identity, like):",
        "if like is None:",
        (
            "tests/clients/replicas/test_stream_failover.py"
            "::test_a_replica_that_is_known_to_serve_another_thing_is_said_to",
        ),
    ),
    Fault(
        "loadtest: servers take turns whatever was asked",
        _WORKER,
        "routing=job.routing or PREFIX",
        'routing="round_robin"',
        ("tests/clients/test_loadtest.py::test_of_several_servers_the_client_library_chooses",),
    ),
    Fault(
        "ray: an ingress parses large bodies on its event loop",
        "service/ray/openai_frontend.py",
        "            if len(body) <= INLINE_BYTES:\n",
        "            if body:\n",
        (
            "tests/service/ray/test_openai_frontend.py::test_a_large_body_is_parsed_off_the_event_loop",
        ),
    ),
)
