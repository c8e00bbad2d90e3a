"""Faults of replicas under Ray: who is asked first, and what a plan lets through."""

from faults.fault import Fault

_RANKING = "service/ray/ranking.py"
_PLAN = "service/ray/plan.py"
_WORKER = "clients/loadtest/worker.py"
_TEST = "tests/service/ray/test_plan.py::test_"
_FACE = "tests/service/ray/test_openai_face.py::test_"
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
        (f"{_FACE}models_are_told_as_a_server_tells_them",),
    ),
    Fault(
        "loadtest: servers take turns whatever was asked",
        _WORKER,
        "routing=job.routing or PREFIX",
        'routing="round_robin"',
        ("tests/clients/test_loadtest.py::test_of_several_servers_the_client_library_chooses",),
    ),
)
