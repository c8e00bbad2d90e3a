"""Faults in how users of a client part its share, and in several prompts of one request."""

from faults.fault import Fault

QUEUE = "tests/engine/scheduling/test_waiting_queue.py::test_"
WIRE = "tests/service/rpc/test_wire.py::test_"

FAULTS = (
    Fault(
        "shares: a client's requests go in the order of their arrival, whoever asks",
        "engine/scheduling/client_queue.py",
        "        return priority, fresh, self._shares.served[user], arrival\n",
        "        return priority, fresh, 0, arrival\n",
        (QUEUE + "users_share_what_their_client_gets_and_nobody_gets_more_by_naming_them",),
    ),
    Fault(
        "shares: another user's earlier request does not bring its client forward",
        "engine/scheduling/waiting_queue.py",
        "        elif self._rank(request.spec.client) is not None:\n",
        "        elif False:\n",
        (QUEUE + "a_client_comes_forward_where_its_first_leaves_to_an_earlier_of_another_user",),
    ),
    Fault(
        "shares: the engine never hears of users",
        "service/rpc/validation.py",
        '            user=given.get("user", ""),\n',
        "",
        (WIRE + "users_of_a_client_share_its_blocks_and_the_engine_knows_them",),
    ),
)
