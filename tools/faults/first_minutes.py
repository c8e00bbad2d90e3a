"""Faults of the first minutes with a server: its commands, what fits, and where it listens."""

from faults.fault import Fault

FAULTS = (
    Fault(
        "first minutes: a command of the server is unknown where there is no server",
        "clients/cli.py",
        'SERVER_COMMANDS = ("serve", "hash-key")',
        'SERVER_COMMANDS = ("serve",)',
        ("tests/clients/test_cli.py::test_without_the_server_the_command_says_how_to_get_it",),
    ),
)
