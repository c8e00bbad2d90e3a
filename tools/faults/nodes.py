"""Faults of how nodes come together, and end together."""

from faults.fault import Fault

JOINING = "tests/engine/parallel/test_join_listener.py::test_"
NODES = "tests/engine/parallel/test_nodes.py::test_"

FAULTS = (
    Fault(
        "nodes: the secret is handed on to every process",
        "engine/lifeline.py",
        "in os.environ.items() if name != SECRET_VARIABLE} | more",
        "in os.environ.items()} | more",
        ("tests/service/app/test_who_has_the_secret.py::test_no_process_of_ours_inherits_it",),
    ),
    Fault(
        "nodes: one that has not joined waits for a node 0 that may never come",
        "service/app/node.py",
        "        _answer_signals(_leave)\n        model",
        "        _answer_signals(_wait_for_node_0)\n        model",
        (
            "tests/service/app/test_several_nodes.py::"
            "test_a_node_that_has_not_joined_ends_at_the_first_signal",
        ),
    ),
    Fault(
        "nodes: a proof that was overheard is one on another connection too",
        "engine/parallel/handshake.py",
        "    return _HELLO.pack(_MAGIC, secrets.token_bytes(_NONCE_BYTES))\n",
        "    return _HELLO.pack(_MAGIC, bytes(_NONCE_BYTES))\n",
        (JOINING + "strangers_change_nothing",),
    ),
    Fault(
        "nodes: whoever speaks as a node does is taken for one",
        "engine/parallel/handshake.py",
        '        raise RankError("it does not have the secret")\n',
        "        pass\n",
        (JOINING + "strangers_change_nothing",),
    ),
    Fault(
        "nodes: node 0 is believed without a proof",
        "engine/parallel/joining.py",
        "        if not handshake.is_node_0(self._secret, answer, greeting, data):\n",
        "        if False:\n",
        (JOINING + "a_node_goes_with_nobody_who_has_not_the_secret",),
    ),
    Fault(
        "nodes: silent strangers take all places",
        "engine/parallel/join_listener.py",
        '            self._drop(self._pending[0], "there are too many")\n',
        "            connection.close()\n            return\n",
        (JOINING + "many_silent_strangers_make_room",),
    ),
    Fault(
        "nodes: what they are to have in common is not looked at",
        "engine/parallel/join_listener.py",
        "        message = difference(self._node_config, node_config, heard.node)\n",
        "        message = None\n",
        (JOINING + "a_node_with_other_terms_is_refused_on_both_sides",),
    ),
    Fault(
        "nodes: what keeps the ranks from starting is said on node 0 alone",
        "engine/parallel/ranks.py",
        "            node.send(Kind.REFUSED, message=message)\n",
        "            node.channel.end()\n",
        (NODES + "what_keeps_a_rank_from_starting_is_said_on_every_node",),
    ),
    Fault(
        "nodes: ranks of a node outlive it when node 0 is gone",
        "engine/parallel/node.py",
        "        open_ones.callback(_kill, processes)\n",
        "",
        (NODES + "a_rank_that_is_lost_takes_all_nodes_along",),
    ),
    Fault(
        "nodes: an end that is meant is none to the other nodes",
        "engine/parallel/ranks.py",
        "            node.send(Kind.STOP)\n",
        "            node.channel.end()\n",
        (NODES + "ranks_of_all_nodes_are_built_and_stopped",),
    ),
    Fault(
        "nodes: the secret stays in the environment of whatever is started",
        "engine/parallel/secret.py",
        "environment.pop(VARIABLE, None)",
        "environment.get(VARIABLE)",
        (
            "tests/engine/parallel/test_secret_and_node_config.py::test_a_secret_comes_from_a_file_or_the_environment_which_it_leaves",
        ),
    ),
)
