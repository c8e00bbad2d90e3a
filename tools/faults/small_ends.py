"""Faults of what is refused by name, and of who is lost while nodes come together."""

from faults.fault import Fault

JOINING = "tests/engine/parallel/test_join_listener.py::test_"
NODES = "tests/engine/parallel/test_nodes.py::test_"
RANKS = "tests/engine/parallel/test_ranks.py::test_"
SETTINGS = "tests/service/test_settings.py::test_"

FAULTS = (
    Fault(
        "nodes: what is heard late of a connection drops the node that has come again",
        "engine/parallel/join_listener.py",
        "        if self._members.get((member.node, member.rank)) is not member:\n",
        "        if member.node < 0:\n",
        (JOINING + "what_is_heard_late_of_one_that_has_gone_is_not_of_who_came_again",),
    ),
    Fault(
        "nodes: a rank of node 0 that is lost meanwhile is not looked at",
        "engine/parallel/join_listener.py",
        "                check()\n",
        "",
        (JOINING + "a_rank_of_node_0_that_is_lost_meanwhile_ends_the_wait",),
    ),
    Fault(
        "nodes: one whose process is stopped is not noticed",
        "engine/parallel/ranks.py",
        "                elif asked == MAX_ASKED:\n",
        "                elif asked < 0:\n",
        (NODES + "a_node_that_does_not_answer_takes_all_along",),
    ),
    Fault(
        "ranks: a frame that lacks a part ends the thread that listens",
        "engine/parallel/frame_channel.py",
        "        if not isinstance(values.get(name), types):\n",
        "        if not isinstance(values.get(name), object):\n",
        (RANKS + "what_is_said_to_rank_0_is_looked_at_whole",),
    ),
    Fault(
        "ranks: a frame too deep ends the thread that listens",
        "engine/parallel/frame_channel.py",
        "    except (ValueError, RecursionError) as error:\n",
        "    except ValueError as error:\n",
        (RANKS + "what_is_said_to_rank_0_is_looked_at_whole",),
    ),
    Fault(
        "quire: one port is taken for two things",
        "service/hosts.py",
        "            if _meet(host, its_host):\n",
        "            if host == its_host == '':\n",
        (SETTINGS + "one_port_for_two_things_is_refused",),
    ),
)
