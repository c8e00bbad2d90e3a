"""Faults of the client of several replicas, and of what servers do for it."""

from faults.fault import Fault

FAILOVER = (
    "tests/clients/replicas/test_failover.py",
    "tests/clients/replicas/test_stream_failover.py",
)
FLEET = ("tests/clients/replicas/test_fleet.py",)
AFFINITY = ("tests/clients/replicas/test_affinity.py",)
STREAMS = ("tests/clients/replicas/test_streams_go_on.py",)

FAULTS = (
    Fault(
        "replicas: a resumed stream draws another seed",
        "clients/replicas/stream_failover.py",
        "        request.sampling.seed = self._started.seed\n",
        "",
        FAILOVER,
    ),
    Fault(
        "replicas: what a server says at its end counts as received",
        "clients/replicas/stream_failover.py",
        "            self._held.append(message)\n            return []\n        self._ids.extend",
        "            pass\n        self._ids.extend",
        FAILOVER,
    ),
    Fault(
        "replicas: a stream goes on at another model",
        "clients/replicas/stream_failover.py",
        "        if started.model_fingerprint != like.fingerprint:\n",
        "        if False:\n",
        FAILOVER,
    ),
    Fault(
        "replicas: a request that kills goes through the fleet",
        "clients/replicas/call_failover.py",
        "        if self.breaks > self.breaks_allowed:\n",
        "        if self.breaks > 99:\n",
        FAILOVER,
    ),
    Fault(
        "replicas: a break counts as a refusal where nothing was received",
        "clients/replicas/faults.py",
        "    return Kind.ABSENT if _says(error, _NEVER_SENT) else Kind.BROKEN\n",
        "    return Kind.ABSENT\n",
        FAILOVER,
    ),
    Fault(
        "replicas: asking again costs nothing",
        "clients/replicas/budget.py",
        "            self._credit -= 1.0\n",
        "",
        (*FAILOVER, *FLEET),
    ),
    Fault(
        "replicas: loads are not bounded",
        "clients/replicas/fleet.py",
        "known.open <= fullest(mean, known=True)",
        "True",
        FLEET,
    ),
    Fault(
        "replicas: a prompt that is new may fill a replica as one that is known",
        "clients/replicas/fleet.py",
        "most = fullest(mean, known=False)",
        "most = fullest(mean, known=True)",
        FLEET,
    ),
    Fault(
        "replicas: a conversation that was pushed off goes back and forth",
        "clients/replicas/fleet.py",
        "                self._memory.note(keys, chosen.address.name)\n",
        "                pass\n",
        FLEET,
    ),
    Fault(
        "replicas: all conversations under one system prompt go to one replica",
        "clients/replicas/affinity.py",
        'roles.index("user") if "user" in roles else 0',
        "0",
        AFFINITY,
    ),
    Fault(
        "replicas: health is not watched",
        "clients/replicas/channels.py",
        '    "healthCheckConfig": {"serviceName": ""},\n',
        "",
        STREAMS,
    ),
    Fault(
        "replicas: who resumes waits like everybody",
        "engine/scheduling/waiting_queue.py",
        "served[client] - (HEAD_START if first.resumes else 0)\n",
        "served[client]\n",
        ("tests/engine/scheduling/test_waiting_queue.py",),
    ),
    Fault(
        "replicas: a full queue has no places for who resumes",
        "service/admission/admission.py",
        "        if self.waiting < most or self._reserved(n, level):\n",
        "        if self.waiting < most:\n",
        ("tests/service/admission/test_admission.py",),
    ),
    Fault(
        "replicas: what was held back until the end does not say so",
        "service/rpc/responses.py",
        '"token_ids": piece.ids, "closing": closing}',
        '"token_ids": piece.ids}',
        ("tests/service/answers/test_answers_served.py",),
    ),
    Fault(
        "replicas: keepalive waits a minute for another ping's answer",
        "clients/replicas/channels.py",
        '    "grpc.http2.ping_timeout_ms": 20_000,\n',
        "",
        ("tests/clients/replicas/test_channels.py",),
    ),
    Fault(
        "replicas: a connection is given up after 0.2 s",
        "clients/replicas/channels.py",
        '"grpc.min_reconnect_backoff_ms": 2_000',
        '"grpc.min_reconnect_backoff_ms": 200',
        ("tests/clients/replicas/test_channels.py",),
    ),
    Fault(
        "replicas: a closed client's streams go on elsewhere",
        "clients/replicas/faults.py",
        "    if _CLOSED_HERE in error.message:\n        return Kind.FINAL\n",
        "",
        ("tests/clients/replicas/test_failover.py::test_what_an_end_means",),
    ),
    Fault(
        "replicas: a closed client opens connections",
        "clients/replicas/channels.py",
        "if replica is None and not self._closed:",
        "if replica is None:",
        ("tests/clients/replicas/test_channels.py",),
    ),
    Fault(
        "replicas: what is opened while a client is closed is used",
        "clients/replicas/channels.py",
        "if self._closed or replica is None:",
        "if replica is None:",
        ("tests/clients/replicas/test_channels.py",),
    ),
)
