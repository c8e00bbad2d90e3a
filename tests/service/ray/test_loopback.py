"""Ray is kept on this machine or not started; modules of these names stand in for it."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from quire.engine.errors import ConfigError
from quire.service.ray import loopback

NODE, PROXY, REPLICA = (
    "ray._private.services",
    "ray.serve._private.default_impl",
    "ray.serve._private.replica",
)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for it; opened: the addresses that it has listened on."""
    opened: list[str] = []

    def listen(_server: object, address: str) -> None:
        opened.append(address)

    made: dict[str, Any] = {}
    for name in ("ray", "ray._private", NODE, "ray.serve", "ray.serve._private", PROXY, REPLICA):
        made[name] = ModuleType(name)
        made[name].__path__ = []
        monkeypatch.setitem(sys.modules, name, made[name])
    made["ray"].__version__ = "2.60.1"
    made[NODE].get_node_ip_address = lambda *_address: "192.0.2.7"
    made[NODE].resolve_ip_for_localhost = lambda _host: "192.0.2.7"
    made[PROXY].add_grpc_address = made[REPLICA].add_port_to_grpc_server = listen
    return SimpleNamespace(modules=made, opened=opened)


def test_the_known_one_stays_here(ray: SimpleNamespace) -> None:
    loopback.stay_here()
    node = ray.modules[NODE]
    assert node.get_node_ip_address("1.2.3.4:5") == "127.0.0.1"
    assert node.resolve_ip_for_localhost("localhost") == "localhost"
    loopback.listen_here()
    ray.modules[PROXY].add_grpc_address(None, "[::]:9000")
    ray.modules[REPLICA].add_port_to_grpc_server(None, "[::]:0")
    assert ray.opened == ["127.0.0.1:9000", "127.0.0.1:0"]


@pytest.mark.parametrize("version", ["2.59.0", "2.61.0", "2.6.0", "2.600.1", "3.0.0", "unknown"])
@pytest.mark.parametrize("step", [loopback.stay_here, loopback.listen_here])
def test_another_version_is_refused_by_its_name(
    ray: SimpleNamespace, version: str, step: Any
) -> None:
    ray.modules["ray"].__version__ = version
    with pytest.raises(ConfigError, match=f"^ray = {version}: "):
        step()
    assert ray.modules[NODE].get_node_ip_address() == "192.0.2.7", "nothing was replaced"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (NODE, "get_node_ip_address"),
        (NODE, "resolve_ip_for_localhost"),
        (PROXY, "add_grpc_address"),
        (REPLICA, "add_port_to_grpc_server"),
    ],
)
def test_one_that_lost_a_function_is_refused(ray: SimpleNamespace, place: str, name: str) -> None:
    delattr(ray.modules[place], name)
    for step in (loopback.stay_here, loopback.listen_here):
        with pytest.raises(ConfigError, match=rf"^ray = 2\.60\.1: .*{place}\.{name} is not there"):
            step()


@pytest.mark.usefixtures("ray")
def test_one_that_lost_a_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, REPLICA, None)
    with pytest.raises(ConfigError, match=f"{REPLICA}.add_port_to_grpc_server is not there"):
        loopback.stay_here()
