"""The server's options, and where their values come from.

A value is taken from the command line's flag, else from the environment (QUIRE_ and the option's
name in capitals), else from the TOML file (sections [engine] and [service]), else from the default.

Invariant: nothing is accepted and ignored. An unknown key, section or QUIRE_ variable, and a value
of the wrong type, is a ConfigError that names it and where it stands. (Names that begin with
QUIRE_CLIENT_ are the clients' own. What Kubernetes puts into every container for a Service whose
name begins with `quire` is nobody's: see environment.py.)
"""

import dataclasses
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.plain_file import read_whole
from quire.service.environment import CONFIG_VARIABLE, article, nearest, read_environment
from quire.service.hosts import is_address, is_loopback, refuse_shared_ports

_OTLP_SCHEMES = ("http://", "https://")
PLACES = ("auto", "on", "off")
OUTPUT_PARSERS = ("auto", "none", "hermes", "qwen3-coder")
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
_ORIGIN = re.compile(r"https?://[^\s/?#]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_MAX_BITS = 256  # of a whole number: of thousands of digits Python prints none
_MAX_NAME = 256  # characters


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Options of the server; the field's metadata holds the help text of each."""

    host: str = _option("127.0.0.1", "address to listen on")
    port: int = _option(50051, "port to listen on; 0 takes a free one")
    metrics_host: str = _option("127.0.0.1", "address of the Prometheus metrics")
    metrics_port: int | None = _option(None, "port of the Prometheus metrics; default: none")
    http_host: str = _option("127.0.0.1", "address of the OpenAI API over HTTP")
    http_port: int = _option(8000, "port of the OpenAI API over HTTP; 0 turns it off")
    http_names: str | None = _option(
        None, "host names by which the OpenAI API may be called, separated by commas; *: any"
    )
    cors_origin: str | None = _option(
        None,
        "origins of web pages that may call the OpenAI API, separated by commas; default: none",
    )
    health_host: str = _option("127.0.0.1", "address of the plaintext health checks")
    health_port: int | None = _option(
        None, "port for health checks only, without TLS; default: none"
    )
    gateway_host: str = _option("127.0.0.1", "address of vLLM's engine service, for gateways")
    gateway_port: int | None = _option(None, "port of vLLM's engine service; default: none")
    insecure: bool = _option(False, "listen beyond this machine without TLS")
    tls_cert: str | None = _option(None, "PEM file of the certificate; read again when it changes")
    tls_key: str | None = _option(None, "PEM file of the certificate's key, without a passphrase")
    tls_client_ca: str | None = _option(
        None, "PEM file of authorities; clients need a certificate signed by one of them"
    )
    api_keys: str | None = _option(
        None, "file of hashed API keys (quire hash-key); calls need one of them"
    )
    max_priority: int = _option(
        0, "highest priority a call may have without API keys; each key's line has its own limit"
    )
    output_parser: str = _option(
        "auto",
        "how reasoning and tool calls are parsed from answers: auto (by the chat template), "
        "none, hermes, or qwen3-coder",
    )
    served_model_name: str | None = _option(
        None, "the model's name for clients; default: the value of model"
    )
    max_waiting: int = _option(1024, "most completions that may wait; further ones are refused")
    max_waiting_tokens: int | None = _option(
        None, "most prompt tokens that may wait in total; default: no limit"
    )
    max_queue_seconds: float = _option(
        60.0, "refuse a call at once if it would wait longer than this"
    )
    queue_burst_seconds: float = _option(
        5.0, "once a queue has stood for this long, admit only what starts in queue_target_seconds"
    )
    queue_target_seconds: float = _option(
        0.02, "longest wait of a call that is admitted while a queue stands"
    )
    rate_limit_requests: float | None = _option(
        None, "calls per second for one client; default: no limit"
    )
    rate_limit_tokens: float | None = _option(
        None, "prompt and output tokens per second for one client; default: no limit"
    )
    rate_limit_burst_seconds: float = _option(
        10.0, "how many seconds of unused rate a client may save up"
    )
    max_streams_per_client: int | None = _option(
        None, "most open calls of one client; default: no limit"
    )
    drain_seconds: float = _option(30.0, "how long streams may go on after SIGTERM, in seconds")
    keepalive_seconds: float = _option(
        30.0,
        "ping a client after this many seconds of silence, and cut it off if it does not "
        "answer; 0: never",
    )
    write_stall_seconds: float = _option(
        60.0, "end a call whose client reads nothing for this many seconds; 0: never"
    )
    message_interval_seconds: float = _option(
        0.0,
        "send a stream's tokens at these intervals, joined; the first goes at once; 0: every token",
    )
    watchdog_seconds: float = _option(
        120.0, "seconds after which a step counts as hung and liveness is NOT_SERVING; 0: never"
    )
    watchdog_exit_seconds: float = _option(
        120.0, "further seconds after which a hung step ends the process; 0: never"
    )
    engine_process: str = _option(
        "auto", "run the engine in its own process: on, off, or auto (on with a GPU)"
    )
    otlp_endpoint: str | None = _option(
        None, "OpenTelemetry collector for traces (http://HOST:4317); default: the OTEL_* variables"
    )
    reflection: bool = _option(True, "answer gRPC reflection")
    log_format: str = _option("text", "text or json")
    log_level: str = _option("info", "debug, info, warning or error")
    log_prompts: bool = _option(False, "write prompts to the log")

    def __post_init__(self) -> None:
        _in_range("port", self.port, 0, 65535)
        _in_range("http_port", self.http_port, 0, 65535)
        for name in ("metrics_port", "health_port", "gateway_port"):
            if getattr(self, name) is not None:
                _in_range(name, getattr(self, name), 0, 65535)
        _in_range("max_waiting", self.max_waiting, 1, 1 << 20)
        _in_range("max_priority", self.max_priority, -1000, 1000)
        _within("message_interval_seconds", self.message_interval_seconds, 0.0, 10.0)
        for name in (
            "drain_seconds",
            "keepalive_seconds",
            "write_stall_seconds",
            "watchdog_seconds",
            "watchdog_exit_seconds",
        ):
            _within(name, getattr(self, name), 0.0, 86400.0)
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(_OTLP_SCHEMES):
            raise ConfigError(
                f"otlp_endpoint = {self.otlp_endpoint}: must begin with http:// or https://"
            )
        _one_of("engine_process", self.engine_process, PLACES)
        _one_of("output_parser", self.output_parser, OUTPUT_PARSERS)
        _one_of("log_format", self.log_format, LOG_FORMATS)
        _one_of("log_level", self.log_level, LOG_LEVELS)
        self._check_name()
        self._check_limits()
        self._check_tls()
        self._refuse_exposure("host", self.host)
        if self.http_port:
            self._refuse_exposure("http_host", self.http_host)
        self._check_browsers()
        if self.metrics_port is not None:
            self._refuse_exposure("metrics_host", self.metrics_host)
        if self.gateway_port is not None:
            self._refuse_exposure("gateway_host", self.gateway_host)
            self._refuse_strangers()

    def _check_name(self) -> None:
        """The name occurs in lines of the log, labels of metrics and answers."""
        name = self.served_model_name
        if name is not None and not (name.isprintable() and 0 < len(name) <= _MAX_NAME):
            raise ConfigError(
                f"served_model_name = {name!r}: must be 1 to {_MAX_NAME} printable characters"
            )

    def _check_limits(self) -> None:
        for name in ("max_waiting_tokens", "max_streams_per_client"):
            if getattr(self, name) is not None:
                _in_range(name, getattr(self, name), 1, 1 << 40)
        for name in ("max_queue_seconds", "queue_burst_seconds", "queue_target_seconds"):
            _within(name, getattr(self, name), 0.0, 86400.0)
        for name in ("rate_limit_requests", "rate_limit_tokens"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 1e-6, 1e12)
        _within("rate_limit_burst_seconds", self.rate_limit_burst_seconds, 0.0, 86400.0)

    def _check_browsers(self) -> None:
        for origin in listed(self.cors_origin):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"cors_origin = {origin}: must be like https://example.org, or *")
        for name in listed(self.http_names):
            if not (name == "*" or _HOST_NAME.fullmatch(name) or is_address(name)):
                raise ConfigError(f"http_names = {name}: must be a host's name without a port")

    def _check_tls(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together: one of them is missing")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_client_ca needs tls_cert and tls_key")

    def _refuse_exposure(self, name: str, host: str) -> None:
        if self.tls_cert is None and not self.insecure and not is_loopback(host):
            secret = "; API keys would be sent in clear" if self.api_keys is not None else ""
            raise ConfigError(
                f"{name} = {host}: would be open to the network without TLS{secret}; give "
                "tls_cert and tls_key, or insecure = true (--insecure) if that is meant"
            )

    def _refuse_strangers(self) -> None:
        known = self.api_keys is not None or self.tls_client_ca is not None
        if not known and not is_loopback(self.gateway_host):
            raise ConfigError(
                f"gateway_host = {self.gateway_host}: needs api_keys or tls_client_ca"
            )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `quire serve` runs with."""

    engine: EngineConfig
    service: ServiceConfig

    def __post_init__(self) -> None:
        refuse_shared_ports(self._ports())

    def _ports(self) -> list[tuple[str, str, int]]:
        """Option, host and number of each port that is listened on and not just any free one."""
        service, engine = self.service, self.engine
        ports = [
            ("port", service.host, service.port),
            ("health_port", service.health_host, service.health_port),
            ("metrics_port", service.metrics_host, service.metrics_port),
            ("gateway_port", service.gateway_host, service.gateway_port),
            ("http_port", service.http_host, service.http_port),
        ]
        if engine.node_rank == 0:
            ports.append(("master_port", engine.master_addr or "", engine.master_port))
        return [(name, host, port) for name, host, port in ports if port]

    def to_toml(self) -> str:
        """The settings in force as a file that can be read back; unset ones as comments."""
        sections = [("engine", self.engine), ("service", self.service)]
        return "\n".join(_section(name, config) for name, config in sections)


SECTIONS: dict[str, type] = {"engine": EngineConfig, "service": ServiceConfig}


def listed(text: str | None) -> tuple[str, ...]:
    """The values of an option that takes several, between commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def option_types(config: type) -> dict[str, tuple[type, bool]]:
    """The type of each option, and whether it may be unset."""
    hints = typing.get_type_hints(config)
    return {f.name: _plain_type(hints[f.name]) for f in dataclasses.fields(config)}


def read_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None
) -> Settings:
    """Merge the sources. flags: those that were given. Raises ConfigError."""
    if file is None and environment.get(CONFIG_VARIABLE):
        file = Path(environment[CONFIG_VARIABLE])
    from_file = _read_file(file) if file is not None else {}
    known = {n: kind for c in SECTIONS.values() for n, (kind, _) in option_types(c).items()}
    from_environment = read_environment(environment, known)
    merged = {}
    for section, config in SECTIONS.items():
        names = option_types(config)
        values = dict(from_file.get(section, {}))
        values.update({k: v for k, v in from_environment.items() if k in names})
        values.update({k: v for k, v in flags.items() if k in names})
        merged[section] = config(**values)
    return Settings(**merged)


def _plain_type(hint: Any) -> tuple[type, bool]:
    if isinstance(hint, types.UnionType):
        inner = [t for t in typing.get_args(hint) if t is not type(None)]
        return inner[0], True
    return hint, False


def _read_file(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(read_whole(path).decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    for section, values in content.items():
        if section not in SECTIONS:
            known = ", ".join(f"[{name}]" for name in SECTIONS)
            stands = _place_of(section) or f"; sections: {known}"
            raise ConfigError(f"{path}: unknown key {section!r} at the top{stands}")
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} is not a section")
        known_types = option_types(SECTIONS[section])
        for name, value in values.items():
            where = f"{path}: [{section}] {name}"
            if name not in known_types:
                stands = _place_of(name) or nearest(name, known_types)
                raise ConfigError(f"{where}: unknown option{stands}")
            values[name] = _checked(where, value, *known_types[name])
    return content


def _place_of(name: str) -> str:
    """The section to which an option of this name belongs, if there is one."""
    homes = [one for one, config in SECTIONS.items() if name in option_types(config)]
    return f"; it stands in [{homes[0]}]" if homes else ""


def _checked(where: str, value: Any, wanted: type, _optional: bool) -> Any:
    if type(value) is int and value.bit_length() > _MAX_BITS:
        raise ConfigError(f"{where}: a number of {value.bit_length()} bits: at most {_MAX_BITS}")
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{where} = {value!r}: must be {article(wanted)}")
    if type(value) is str and "\0" in value:
        raise ConfigError(f"{where} = {value!r}: holds a zero byte")
    return value


def _section(name: str, config: Any) -> str:
    lines = [f"[{name}]"]
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        shown = f"# {option.name} =" if value is None else f"{option.name} = {_toml(value)}"
        lines.append(f"{shown}  # {option.metadata['help']}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def _in_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value}: must be {low} to {high}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for a NaN too
        raise ConfigError(f"{name} = {value}: must be {low:g} to {high:g}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} = {value!r}: supported: {', '.join(allowed)}")
