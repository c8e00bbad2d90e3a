"""The parts of an application as plain values, checked before Ray is used."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.engine.errors import ConfigError
from quire.service.settings import Settings, listed, read_settings

_OWN = {  # set for a replica's server, which is behind Ray's proxies
    "port": 0,
    "http_port": 0,
    "host": "127.0.0.1",
}
_REFUSED = (
    "health_port",
    "gateway_port",
    "metrics_port",
    "tls_cert",
    "tls_client_ca",
)


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class Plan:
    """Options of `quire ray`; values are checked, ConfigError names the one that cannot be."""

    model: str = _option("pocket", "the model, as for quire serve")
    config: str = _option("", "TOML file with the options of each replica's server")
    replicas: int = _option(2, "replicas at the start, and the fewest; each has its own engine")
    max_replicas: int = _option(0, "most replicas; 0: always as many as replicas")
    target_ongoing: float = _option(
        32.0, "calls per replica, queued and running, that scaling aims at"
    )
    cpus: float = _option(1.0, "CPUs of each replica")
    gpus: float = _option(0.0, "GPUs of each replica")
    port: int = _option(9000, "port of quire.v1, on this machine")
    http_port: int = _option(8000, "port of the OpenAI API, on this machine")
    message_interval: float = _option(
        0.08,
        "send a stream's tokens at these intervals (seconds), joined; the first goes at once; 0: "
        "every step",
    )
    http_names: str = _option("", "host names by which the OpenAI API may be called; * is any")

    def __post_init__(self) -> None:
        _within("replicas", self.replicas, 1, 10_000)
        _within("max_replicas", self.max_replicas, 0, 10_000)
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ConfigError(
                f"max_replicas = {self.max_replicas}: less than replicas = {self.replicas}"
            )
        if not 0 < self.target_ongoing <= 1e6:
            raise ConfigError(f"target_ongoing = {self.target_ongoing}: must be above 0, to 1e6")
        _within("message_interval", self.message_interval, 0, 10)
        for name in ("cpus", "gpus"):
            _within(name, getattr(self, name), 0, 1024)
        for name in ("port", "http_port"):
            _within(name, getattr(self, name), 1, 65535)
        if self.port == self.http_port:
            raise ConfigError(f"port = {self.port}: is http_port too")
        self.settings()

    @classmethod
    def of(cls, arguments: Mapping[str, str]) -> "Plan":
        """As Serve gives them: texts. Raises ConfigError."""
        kinds: dict[str, Any] = {one.name: type(one.default) for one in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, text in arguments.items():
            if name not in kinds:
                raise ConfigError(f"{name}: no such option; there are {', '.join(kinds)}")
            try:
                values[name] = kinds[name](text)
            except ValueError:
                raise ConfigError(
                    f"{name} = {text!r}: must be of type {kinds[name].__name__}"
                ) from None
        return cls(**values)

    def settings(self) -> Settings:
        """The settings of each replica's server. Raises ConfigError."""
        file = Path(self.config) if self.config else None
        named = {"model": self.model, **_OWN}
        settings = read_settings(named, {}, file)
        in_file = settings.service.message_interval_seconds
        if in_file:
            raise ConfigError(
                f"message_interval_seconds = {in_file}: under Ray it is the option message_interval"
            )
        named["message_interval_seconds"] = self.message_interval
        settings = read_settings(named, {}, file)
        for name in _REFUSED:
            if getattr(settings.service, name) is not None:
                value = getattr(settings.service, name)
                raise ConfigError(f"{name} = {value}: not under Ray, whose proxies stand in front")
        if settings.engine.nnodes > 1:
            raise ConfigError(f"nnodes = {settings.engine.nnodes}: a replica is on one machine")
        return settings

    @property
    def names(self) -> tuple[str, ...]:
        """The model names that the OpenAI API accepts."""
        return listed(self.http_names)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value}: must be {low} to {high}")
