"""Where options come from, and that none is accepted and ignored."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from support import programs
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.service.hosts import is_loopback
from quire.service.settings import ServiceConfig, read_settings


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.toml", "[engine]\nmax_num_seqs = 3\n[service]\nport = 1\nmax_waiting = 7\n"
    )
    environment = {"QUIRE_PORT": "2", "QUIRE_BLOCK_SIZE": "32", "QUIRE_CLIENT_ADDRESS": "x"}
    merged = read_settings({"port": 3}, environment, file)
    assert merged.service.port == 3
    assert merged.engine.block_size == 32
    assert (merged.service.max_waiting, merged.engine.max_num_seqs) == (7, 3)
    assert merged.service.drain_seconds == ServiceConfig().drain_seconds
    assert read_settings({}, environment, file).service.port == 2


def test_what_is_printed_can_be_read_back(tmp_path: Path) -> None:
    flags = {"port": 9, "model": 'a "quoted" \\ name', "metrics_port": 4, "enforce_eager": True}
    once = read_settings({**flags, "drain_seconds": 1.5}, {}, None)
    again = read_settings({}, {}, write(tmp_path / "c.toml", once.to_toml()))
    assert again == once


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engine]\nmax_seqs = 3\n", ["[engine] max_seqs", "unknown", "is max_num_seqs meant"]),
        ("[service]\nmax_num_seqs = 3\n", ["unknown", "it stands in [engine]"]),
        ("[server]\nport = 3\n", ["server", "[service]"]),
        ("port = 3\n", ["port", "top", "it stands in [service]"]),
        ("engine = 3\n", ["engine"]),
        ('[service]\nport = "3"\n', ["port", "whole number"]),
        ("[service]\nport = true\n", ["port", "whole number"]),
        ("[engine]\nenforce_eager = 1\n", ["enforce_eager", "true or false"]),
        ("[engine]\ncpu_kv_gib = 'x'\n", ["cpu_kv_gib", "number"]),
        ("[engine\n", ["not TOML"]),
        (f"[service]\nport = {'9' * 5000}\n", ["not TOML"]),
        (f"[service]\nport = 0x{'f' * 4500}\n", ["port", "a number of 18000 bits"]),
        (f"[service]\ndrain_seconds = 0x{'f' * 4500}\n", ["drain_seconds", "18000 bits"]),
        ("x = " + "[" * 20_000 + "\n", ["not TOML"]),
        ('[service]\napi_keys = "a\\u0000b"\n', ["api_keys", "zero byte"]),
        ('[engine]\nmodel = "\\u0000"\n', ["model", "zero byte"]),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings({}, {}, write(tmp_path / "bad.toml", text))
    assert "bad.toml" in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"QUIRE_PROT": "1"}, "QUIRE_PROT: no such option .is QUIRE_PORT meant"),
        ({"QUIRE_PORT": "x"}, "QUIRE_PORT"),
        ({"QUIRE_ENFORCE_EAGER": "maybe"}, "QUIRE_ENFORCE_EAGER"),
        ({"QUIRE_CONFIG": "/does/not/exist"}, "/does/not/exist"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(environment: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_settings({}, environment, None)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"port": 70000}, "port"),
        ({"metrics_port": -1}, "metrics_port"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"drain_seconds": -1.0}, "drain_seconds"),
        ({"log_format": "xml"}, "log_format"),
        ({"log_level": "loud"}, "log_level"),
        ({"host": "0.0.0.0"}, "insecure"),
        ({"host": "::"}, "insecure"),
        ({"metrics_port": 1, "metrics_host": "10.0.0.1"}, "insecure"),
        ({"block_size": 7}, "block_size"),
        ({"served_model_name": ""}, "served_model_name"),
        ({"served_model_name": "a\nb"}, "served_model_name"),
        ({"served_model_name": "a\x1b[31m"}, "served_model_name"),
        ({"served_model_name": "a" * 257}, "served_model_name"),
    ],
)
def test_a_bad_value_is_refused(flags: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_settings(flags, {}, None)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"port": 8001, "http_port": 8001}, ("port", "http_port")),
        ({"port": 8000}, ("port", "http_port")),  # the default of the other
        ({"health_port": 7, "metrics_port": 7}, ("health_port", "metrics_port")),
        ({"port": 7, "gateway_port": 7}, ("port", "gateway_port")),
        ({"port": 7, "metrics_port": 7, "host": "0.0.0.0", "insecure": True}, ("port", "metrics_")),
        ({"port": 7, "health_port": 7, "host": "localhost"}, ("port", "health_port")),
    ],
)
def test_one_port_for_two_things_is_refused(
    flags: dict[str, object], names: tuple[str, str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings(flags, {}, None)
    told = str(refused.value)
    assert told.startswith(f"{names[0]} = ") and f" and {names[1]}" in told


def test_ports_of_different_hosts_and_free_ones_may_be_alike() -> None:
    read_settings({"port": 0, "http_port": 0, "health_port": 0, "metrics_port": 0}, {}, None)
    read_settings({"port": 7, "health_port": 7, "health_host": "127.0.0.2"}, {}, None)


def test_loopback_is_what_only_this_machine_can_reach() -> None:
    assert all(
        is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")
    )
    assert not any(
        is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", "")
    )
    read_settings({"host": "0.0.0.0", "insecure": True}, {}, None)


SERVICE_LINKS = {
    "QUIRE_SERVICE_HOST": "10.0.0.1",
    "QUIRE_SERVICE_PORT": "50051",
    "QUIRE_SERVICE_PORT_GRPC": "50051",
    "QUIRE_PORT": "tcp://10.0.0.1:50051",
    "QUIRE_PORT_50051_TCP": "tcp://10.0.0.1:50051",
    "QUIRE_PORT_50051_TCP_PROTO": "tcp",
    "QUIRE_PORT_50051_TCP_PORT": "50051",
    "QUIRE_PORT_50051_TCP_ADDR": "10.0.0.1",
    "QUIRE_METRICS_SERVICE_HOST": "fd00::1",
    "QUIRE_METRICS_PORT": "tcp://[fd00::1]:9000",
    "QUIRE_METRICS_PORT_53_UDP_ADDR": "fd00::1",
    "QUIRE_A_2_SERVICE_PORT_HTTP_2": "80",
}


def test_what_kubernetes_says_of_a_service_of_our_name_is_passed_over() -> None:
    assert read_settings({}, SERVICE_LINKS, None) == read_settings({}, {}, None)


@pytest.mark.parametrize(
    "environment",
    [
        {"QUIRE_PORT": "tcp:50051"},
        {"QUIRE_PORT": "50051/tcp"},
        {"QUIRE_METRICS_PORT": "http://10.0.0.1:80"},
        {"QUIRE_HOST": "tcp://10.0.0.1:50051", "QUIRE_PORTS": "1"},
        {"QUIRE_SERVICE_HOSTS": "10.0.0.1"},
        {"QUIRE_SERVICE": "10.0.0.1"},
        {"QUIRE_PORT_50051_TCP": "50051"},
        {"QUIRE_PORT_GRPC": "50051"},
    ],
)
def test_what_only_looks_like_it_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="QUIRE_"):
        read_settings({}, environment, None)


def test_a_model_may_be_named_without_its_flag_but_only_once() -> None:
    command = [sys.executable, "-m", "quire.clients.cli", "serve", "--print-config"]
    named = programs.run([*command, "random:0.6B"], timeout=PATIENCE)
    assert (named.returncode, 'model = "random:0.6B"' in named.stdout) == (0, True), named
    twice = programs.run([*command, "pocket", "--model", "random:0.6B"], timeout=PATIENCE)
    assert twice.returncode == 2
    assert "pocket" in twice.stderr and "random:0.6B" in twice.stderr


def test_help_names_defaults_and_environment() -> None:
    shown = programs.run(
        [sys.executable, "-m", "quire.clients.cli", "serve", "--help"],
        timeout=PATIENCE,
        env={**os.environ, "COLUMNS": "400"},
    ).stdout
    shown = " ".join(shown.split())  # wherever lines are broken
    for config in (EngineConfig, ServiceConfig):
        for option in dataclasses.fields(config):
            assert f"QUIRE_{option.name.upper()})" in shown, option.name
            if option.default is not None:
                assert f"default: {option.default};" in shown, option.name
