"""Faults of the clients: names on certificates, turns, retries, arguments, text."""

from faults.fault import Fault

SEVERAL = ("tests/clients/test_several_servers.py",)
ARGUMENTS = ("tests/clients/test_arguments.py",)
RETRY = ("tests/clients/test_retry.py",)
SETTINGS = "tests/clients/test_cli.py::test_"
CLI_FAILURES = "tests/clients/test_cli_failures.py::test_"
TEXT = ("tests/clients/test_text_stream.py",)

FAULTS = (
    Fault(
        "clients: all servers are checked against the first one's name",
        "clients/replicas/channels.py",
        "            join(address.host, address.port), api_key",
        '            f"127.0.0.1:{address.port}", api_key',
        SEVERAL,
    ),
    Fault(
        "clients: the name given for the certificates is not used",
        "clients/connection.py",
        "        return self.tls.server_name\n",
        "        return None\n",
        SEVERAL,
    ),
    Fault(
        "clients: waits have no jitter",
        "clients/retry.py",
        "self._uniform(0.5, 1.0)",
        "1.0",
        RETRY,
    ),
    Fault(
        "clients: waits grow without bound",
        "clients/retry.py",
        "min(self._policy.first_backoff * growth, self._policy.max_backoff)",
        "self._policy.first_backoff * growth",
        RETRY,
    ),
    Fault(
        "clients: bytes and text are lists",
        "clients/arguments.py",
        "    if isinstance(value, str | bytes | bytearray | memoryview) or not",
        "    if not",
        ARGUMENTS,
    ),
    Fault(
        "clients: True is a whole number",
        "clients/arguments.py",
        '    if isinstance(value, bool) or not hasattr(type(value), "__index__"):\n',
        '    if not hasattr(type(value), "__index__"):\n',
        ARGUMENTS,
    ),
    Fault(
        "clients: a number that is none goes out",
        "clients/arguments.py",
        "    if not math.isfinite(real):\n",
        "    if math.isinf(real):\n",
        ARGUMENTS,
    ),
    Fault(
        "clients: a part of a message that is no text is left out",
        "clients/messages.py",
        '    if sort != "text":\n',
        '    if sort != "text" and (part := {"type": "text", "text": ""}) is None:\n',
        ARGUMENTS,
    ),
    Fault(
        "clients: an API key stands in the error",
        "clients/connection.py",
        '            raise OptionError("api_key: printable ASCII without spaces around it")\n',
        '            raise OptionError(f"api_key: {api_key!r}: printable ASCII without spaces")\n',
        ARGUMENTS,
    ),
    Fault(
        "clients: JSON's keys are sorted",
        "clients/json_text.py",
        "ensure_ascii=False, allow_nan=False",
        "ensure_ascii=False, allow_nan=False, sort_keys=True",
        ARGUMENTS,
    ),
    Fault(
        "clients: the texts of all completions are one",
        "clients/events.py",
        "isinstance(event, Delta) and event.index == 0",
        "isinstance(event, Delta)",
        TEXT,
    ),
    Fault(
        "clients: a setting that nobody reads is passed over",
        "clients/commands/common.py",
        "        if name.startswith(ENV_PREFIX) and name not in VARIABLES:\n",
        "        if name.startswith(ENV_PREFIX) and name == ENV_PREFIX:\n",
        (SETTINGS + "a_setting_that_nobody_reads_is_refused",),
    ),
    Fault(
        "clients: a list of servers in the environment is one server",
        "clients/commands/common.py",
        '    return " ".join(addresses).replace(",", " ").split() or [""]',
        "    return addresses",
        (CLI_FAILURES + "several_servers_stand_in_one_variable",),
    ),
    Fault(
        "clients: the front door loads the clients at once",
        "quire/__init__.py",
        "import importlib\n",
        "import importlib\n\nimport quire.clients\n",
        ("tests/test_packaging.py::test_the_front_door_is_light",),
    ),
)
