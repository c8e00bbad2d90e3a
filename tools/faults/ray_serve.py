"""Faults of replicas under Ray: who is asked first, and what a plan lets through."""

from faults.fault import Fault

_RANKING = "service/ray/ranking.py"
_PLAN = "service/ray/plan.py"
_WORKER = "clients/loadtest/worker.py"
_LOOPBACK = "service/ray/loopback.py"
_REPLICA = "service/ray/replica.py"
_FACE = "service/ray/openai_face.py"
_KEYS = "tests/service/ray/test_forwarded_keys.py::test_"
_HERE = "tests/service/ray/test_loopback.py::test_"
_TEST = "tests/service/ray/test_plan.py::test_"
_SHOWN = "tests/service/ray/test_openai_face.py::test_"
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
        '    if asked != model["id"]:\n',
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
        _REPLICA,
        '_FORWARDED = ("authorization", ',
        "_FORWARDED = (",
        (f"{_KEYS}the_replica_asks_for_the_caller_s_key_and_its_priority",),
    ),
    Fault(
        "ray: who asks after one with a key needs none for the model's name",
        _FACE,
        "if self._keyed or self._card is None:",
        "if self._card is None:",
        (f"{_KEYS}the_openai_face_hands_the_key_on_whoever_was_let_in_before",),
    ),
    Fault(
        "loadtest: servers take turns whatever was asked",
        _WORKER,
        "routing=job.routing or PREFIX",
        'routing="round_robin"',
        ("tests/clients/test_loadtest.py::test_of_several_servers_the_client_library_chooses",),
    ),
)
