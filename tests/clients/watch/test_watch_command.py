"""`quire watch` as a command: what it prints, and what it says where it cannot."""

import signal
import socket
import sys
import urllib.request
import webbrowser
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from support import programs
from support.patience import PATIENCE

from quire.clients import cli
from quire.clients.watch.server import Watched, WatchServer


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    code = cli._run(["watch", *words])
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    return code, told.err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs take Ctrl-C, also where these tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_it_prints_where_the_page_is_and_serves_it(server: Any) -> None:
    words = [sys.executable, "-m", "quire.clients.cli", "watch", "-a", server.address]
    program = programs.start(words, stdout=-1, stderr=-1, text=True)
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line.startswith(f"watching {server.address} at http://127.0.0.1:")
        url = line.split(" at ")[1].split()[0]
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            assert b"<title>Quire</title>" in answer.read()
        program.send_signal(signal.SIGINT)
        assert program.communicate(timeout=PATIENCE) == ("", "")
        assert program.returncode == 130
    finally:
        program.kill()


def test_an_interrupt_goes_on_though_a_thread_has_done_its_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C may come when a request's thread has given back its place already."""

    def interrupted(server: WatchServer, request: socket.socket, address: Any) -> None:
        server.process_request_thread(request, address)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "process_request", interrupted)
    watched = Watched(*[None] * len(Watched.__annotations__))  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    with WatchServer(watched) as server, ours:
        ours.close()  # a browser that has left
        with pytest.raises(KeyboardInterrupt):
            server.process_request(theirs, ("127.0.0.1", 1))


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    code, told = failed(capsys, "-a", f"127.0.0.1:{port}")
    assert code == 1
    assert told == (
        f"quire: no server at 127.0.0.1:{port}: start one with `quire serve`,"
        " or name another with --address\n"
    )


def test_a_key_that_is_refused(
    fake: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_self: Any, _request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "the API key is not known")

    monkeypatch.setattr(fake.Servicer, "Stats", refuse)
    with fake.FakeServer() as strict:
        code, told = failed(capsys, "-a", strict.address, "--api-key", "some-key")
    assert code == 1 and "the API key is not known (give the key with --api-key" in told


def test_a_port_that_is_in_use(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, told = failed(capsys, "-a", server.address, "--port", str(port))
    assert code == 1
    assert told == f"quire: port {port} on 127.0.0.1 is in use: leave --port out, or name another\n"


def test_without_a_browser_it_says_so(
    server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _url: False)
    monkeypatch.setattr(WatchServer, "serve_forever", lambda _self: None)
    assert cli._run(["watch", "--open", "-a", server.address]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"watching {server.address} at http://127.0.0.1:")
    assert told.err == "quire: no browser could be started: open the address yourself\n"


def test_one_page_shows_one_server(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = failed(capsys, "-a", "127.0.0.1:1", "-a", "127.0.0.1:2")
    assert code == 2 and "--address: a page shows one server" in told
