"""Addresses, and where an API key may go."""

from pathlib import Path

import pytest

from quire.clients import TLS, Client, OptionError
from quire.clients.connection import Connection, split_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("example.org:7", ("example.org", 7)),
        ("example.org", ("example.org", 50051)),
        ("[::1]:80", ("::1", 80)),
        ("::1", ("::1", 50051)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize(
    "address", ["", ":1", "a:0", "a:65536", "a:b", "http://a:1", "http://a", "a:-1"]
)
def test_bad_addresses_are_named(address: str) -> None:
    with pytest.raises(OptionError, match="is not HOST:PORT"):
        split_address(address)


def test_targets() -> None:
    assert Connection("localhost:5").target == "dns:///localhost:5"
    assert Connection(["127.0.0.1:5", "127.0.0.2:6"]).target == "ipv4:127.0.0.1:5,127.0.0.2:6"
    assert Connection(["[::1]:5", "[::1]:6"]).target == "ipv6:[::1]:5,[::1]:6"
    with pytest.raises(OptionError, match="mixes"):
        _ = Connection(["127.0.0.1:5", "[::1]:6"]).target
    with pytest.raises(OptionError, match="at least one"):
        Connection([])


@pytest.mark.parametrize("address", ["127.0.0.1:5", "localhost:5", "[::1]:5", "127.9.9.9:1"])
def test_a_key_goes_to_loopback(address: str) -> None:
    assert Connection(address, api_key="k").metadata == (("authorization", "Bearer k"),)


@pytest.mark.parametrize("address", ["10.0.0.1:5", "example.org:5", "localhost.evil.org:5"])
def test_a_key_goes_nowhere_else_without_tls(address: str) -> None:
    with pytest.raises(OptionError, match="TLS"):
        Client(address, api_key="k")
    with pytest.raises(OptionError, match="TLS"):
        Client(["127.0.0.1:5", address], api_key="k")
    assert Connection(address, api_key="k", tls=True).metadata


@pytest.mark.parametrize("key", [" k", "k\n", "schlüssel", "k\x00"])
def test_a_key_that_no_header_holds_is_refused(key: str) -> None:
    with pytest.raises(OptionError, match="api_key"):
        Connection(api_key=key)


def test_tls_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="together"):
        Client(tls=TLS(cert=tmp_path / "cert.pem"))
    with pytest.raises(OptionError, match=r"none\.pem"):
        Client(tls=TLS(root=tmp_path / "none.pem"))
    pair = {"cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    pair["cert"].write_text("-----BEGIN CERTIFICATE-----\n")
    pair["key"].write_text("-----BEGIN EC PRIVATE KEY-----\n")
    with pytest.raises(OptionError, match=r"tls\.root: .*key\.pem' holds no CERTIFICATE"):
        Client(tls=TLS(root=pair["key"]))
    with pytest.raises(OptionError, match=r"tls\.key: .*cert\.pem' holds no PRIVATE KEY"):
        Client(tls=TLS(cert=pair["cert"], key=pair["cert"]))
