"""Faults of the first minutes with a server: its commands, what fits, and where it listens."""

from faults.fault import Fault

USAGE = "tests/clients/test_usage_words.py::test_"
FIT = "tests/engine/startup/test_fit.py::test_"

FAULTS = (
    Fault(
        "first minutes: a command of the server is unknown where there is no server",
        "clients/cli.py",
        'SERVER_COMMANDS = ("serve", "compile", "ray", "hash-key")',
        'SERVER_COMMANDS = ("serve",)',
        ("tests/clients/test_cli.py::test_without_the_server_the_command_says_how_to_get_it",),
    ),
    Fault(
        "first minutes: each command waits until all of them are imported",
        "clients/cli.py",
        "        if not asked or name in asked:\n",
        "        if name:\n",
        ("tests/clients/test_cli.py::test_client_commands_import_neither_torch_nor_the_engine",),
    ),
    Fault(
        "first minutes: a dry run of what does not fit ends as if it did",
        "service/cli/commands.py",
        "return 0 if fits else EXIT_DOES_NOT_FIT",
        "return 0",
        ("tests/service/cli/test_dry_run.py::test_what_does_not_fit_ends_with_1",),
    ),
    Fault(
        "first minutes: weights beyond the memory fit",
        "engine/startup/fit.py",
        "    if rest < plan.bytes_of_blocks(1):\n",
        "    if False:\n",
        (FIT + "weights_beyond_the_machine_do_not_fit",),
    ),
    Fault(
        "first minutes: advice forgets the null block",
        "engine/startup/sizing.py",
        "return (num_blocks + 1) * self.block_size * self.kv_bytes_per_token",
        "return num_blocks * self.block_size * self.kv_bytes_per_token",
        (FIT + "advice_with_a_number_is_enough",),
    ),
    Fault(
        "first minutes: a start says nothing of a cache shorter than a request",
        "engine/startup/fit.py",
        "        log.warning(",
        "        log.debug(",
        (FIT + "a_start_warns_of_a_cache_shorter_than_a_request",),
    ),
    Fault(
        "first minutes: a port in use for health checks is said to be the server's own",
        "service/app/server.py",
        'service.health_host, port, None, "health_"',
        "service.health_host, port, None",
        ("tests/service/app/test_process.py::test_a_port_in_use_is_one_line",),
    ),
    Fault(
        "first minutes: a host that is not here is said to be a port",
        "service/app/ports.py",
        "return another_host(prefix) if no_host else another_port(prefix)",
        "return another_port(prefix)",
        ("tests/service/app/test_process.py::test_a_host_that_is_not_here_is_one_line",),
    ),
    Fault(
        "first minutes: who listens is said not to be there",
        "clients/commands/common.py",
        "        socket.create_connection(connection.hosts[0], timeout=1.0).close()\n",
        "        return False\n",
        (USAGE + "nobody_at_a_names_last_address_does_not_hide_who_listens_at_another",),
    ),
    Fault(
        "first minutes: HTTPS is taken for a server without room",
        "clients/replicas/faults.py",
        ', "SETTINGS frame", "ALPN"))',
        ', "SETTINGS frame"))',
        ("tests/clients/test_cli_failures.py::test_tls_and_its_mismatches",),
    ),
    Fault(
        "first minutes: a cache that cannot be allocated names an option that does nothing",
        "engine/startup/fit.py",
        '    return f"lower cpu_kv_gib = ',
        '    return f"lower gpu_memory_utilization = ',
        (
            "tests/engine/test_bad_input.py::"
            "test_a_cache_that_cannot_be_allocated_names_the_option_that_made_it_large",
        ),
    ),
)
