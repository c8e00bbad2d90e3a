"""Faults of what people see on a terminal: the conversation and the live view."""

from faults.fault import Fault

CHAT = "tests/clients/commands/test_chat_terminal.py::test_"
TOP = "tests/clients/commands/test_top_terminal.py::test_"

FAULTS = (
    Fault(
        "chat: Ctrl-C interrupts the opening of a call",
        "clients/commands/chat.py",
        "    signal.signal(signal.SIGINT, stop)\n",
        "",
        (CHAT + "ctrl_c_between_a_calls_start_and_its_being_held_cancels_it",),
    ),
    Fault(
        "chat: Ctrl-C leaves at once",
        "clients/commands/chat.py",
        "if not self._interactive or self._leaves():",
        "if True:",
        (CHAT + "ctrl_c_stops_the_answer_and_asks_again",),
    ),
    Fault(
        "chat: a stopped turn stays in the history",
        "clients/commands/chat.py",
        "        self._answering = True\n",
        "        self._answering = True\n        self._history = asked\n",
        (CHAT + "ctrl_c_stops_the_answer_and_asks_again",),
    ),
    Fault(
        "chat: a line in between does not make Ctrl-C the first again",
        "clients/commands/chat.py",
        "            return False\n        self._interrupted = False\n",
        "            return False\n",
        (CHAT + "a_line_in_between_makes_the_next_ctrl_c_the_first_again",),
    ),
    Fault(
        "chat: Ctrl-C leaves although a line is being typed",
        "clients/commands/chat.py",
        "self._interrupted and not _typed()",
        "self._interrupted",
        (CHAT + "ctrl_c_drops_the_line_that_is_being_typed",),
    ),
    Fault(
        "chat: nobody says which model answers",
        "clients/commands/chat.py",
        "            self._greet()\n",
        "            self._client.stats()\n",
        (CHAT + "it_says_who_answers_and_what_can_be_typed",),
    ),
    Fault(
        "top: a line too many at 80 × 24",
        "clients/commands/top.py",
        "_FIXED_LINES = 17\n",
        "_FIXED_LINES = 16\n",
        (TOP + "a_busy_server_fits_and_nothing_is_cut",),
    ),
    Fault(
        "top: buckets beyond the room are cut off",
        "clients/commands/top.py",
        "group = max(1, -(-len(counts) // most))",
        "group = 1",
        (TOP + "buckets_without_room_are_added_up",),
    ),
    Fault(
        "top: q is not read",
        "clients/commands/top.py",
        'pressed.wait(interval, "qQ")',
        'pressed.wait(interval, "")',
        (TOP + "a_key_leaves_at_once_and_the_terminal_is_as_before[q]",),
    ),
    Fault(
        "top: the terminal stays as it was set",
        "clients/commands/keys.py",
        "termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)",
        "pass",
        (TOP + "a_key_leaves_at_once_and_the_terminal_is_as_before[q]",),
    ),
    Fault(
        "terminal: SIGTERM leaves it as it was set",
        "clients/cli.py",
        "signal.signal(signal.SIGTERM, leave)",
        "pass",
        (TOP + "a_signal_ends_it_and_the_terminal_is_as_before[15-143]",),
    ),
    Fault(
        "top: a pipe gets the last view alone",
        "clients/commands/terminal.py",
        "    if not console.is_terminal:\n        yield console.print\n        return\n",
        "",
        ("tests/clients/test_top.py::test_top_as_a_command",),
    ),
    Fault(
        "loadtest: a table's figures are cut",
        "clients/loadtest/text.py",
        'justify="right", overflow="fold"',
        'justify="right"',
        ("tests/clients/test_loadtest.py::test_a_table_is_cut_nowhere",),
    ),
    Fault(
        "top: a model's name is markup",
        "clients/commands/top.py",
        'title = Text(f"{now.model.name} on {now.model.device}")',
        'title = f"{now.model.name} on {now.model.device}"',
        (TOP + "a_models_name_is_no_markup",),
    ),
    Fault(
        "terminal: Ctrl-C before the line editor sleeps waits for a key",
        "clients/commands/line_input.py",
        "while _ENDS.intersection(signals) and not noticed",
        "while False and not noticed",
        (
            "tests/clients/commands/test_line_input.py::"
            "test_ctrl_c_that_ends_no_sleep_is_noticed_all_the_same",
        ),
    ),
)
