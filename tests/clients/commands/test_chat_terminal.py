"""`quire chat` on a terminal: who answers, the help, what Ctrl-C and Ctrl-D do."""

import signal
from typing import Any

import pytest
from support.patience import PATIENCE
from support.terminal_session import TerminalSession

from quire.clients import Client
from quire.clients.commands.chat import Conversation


def asked(server: Any) -> list[str]:
    """The contents of the last call's messages."""
    return [message.content for message in server.seen.requests[-1].chat.messages]


def test_it_says_who_answers_and_what_can_be_typed(server: Any) -> None:
    with TerminalSession("chat", "-a", server.address) as session:
        opening = session.prompt()
        assert f"fake on cpu, at {server.address}" in opening
        assert "/help" in opening
        session.write("/help\n")
        page = session.wait_for("again to leave")
        assert all(word in page for word in ("/help", "/reset", "/exit", "Ctrl-C", "Ctrl-D"))
        session.prompt()
        session.write("/nonsense\n")
        assert "unknown command /nonsense" in session.wait_for("/help lists the")
        session.prompt()
        session.write("/exit\n")
        assert session.exit_code() == 0
    assert not server.seen.requests


def test_ctrl_c_stops_the_answer_and_asks_again(server: Any) -> None:
    with TerminalSession("chat", "-a", server.address) as session:
        session.prompt()
        session.write("say one\n")
        session.wait_for("one\r\n")
        session.prompt()
        session.write("forever\n")
        session.wait_for("xxx")
        session.interrupt()
        session.wait_for("this turn is not kept")
        assert server.seen.cancelled.wait(PATIENCE)
        session.prompt()
        session.write("say two\n")
        session.wait_for("two\r\n")
        session.prompt()
        assert asked(server) == ["say one", "one", "say two"]
        session.write("\x04")
        assert session.exit_code() == 0


def test_ctrl_c_while_nothing_has_come_yet_stops_the_call_too(server: Any) -> None:
    with TerminalSession("chat", "-a", server.address) as session:
        session.prompt()
        session.write("hang\n")
        assert server.seen.started.wait(PATIENCE)
        session.interrupt()
        session.wait_for("this turn is not kept")
        assert server.seen.cancelled.wait(PATIENCE)
        session.prompt()
        session.interrupt()
        assert session.exit_code() == 130
        assert "Traceback" not in session.shown


def test_a_conversation_that_is_full_says_how_to_go_on(server: Any) -> None:
    with TerminalSession("chat", "-a", server.address) as session:
        session.prompt()
        session.write("say one\n")
        session.prompt()
        session.write("fail INVALID_ARGUMENT chat: the prompt is too long\n")
        session.wait_for("/reset forgets")
        session.prompt()
        session.write("/reset\n")
        session.prompt()
        session.write("say two\n")
        session.prompt()
        assert asked(server) == ["say two"]
        session.write("fail INVALID_ARGUMENT top_p: no\n")
        session.prompt()
        assert session.shown.count("/reset forgets") == 1
        session.write("\x04")
        assert session.exit_code() == 0


def test_two_ctrl_c_at_an_empty_prompt_leave(server: Any) -> None:
    with TerminalSession("chat", "-a", server.address) as session:
        session.prompt()
        session.interrupt()
        session.wait_for("Ctrl-C again, or Ctrl-D, to leave")
        session.prompt()
        session.interrupt()
        assert session.exit_code() == 130
        assert "Traceback" not in session.shown


def test_a_line_in_between_makes_the_next_ctrl_c_the_first_again(server: Any) -> None:
    with TerminalSession("chat", "-a", server.address) as session:
        for _ in range(2):
            session.prompt()
            session.interrupt()
            session.wait_for("again, or")
            session.prompt()
            session.write("say one\n")
            session.wait_for("one\r\n")
        session.prompt()
        session.write("\x04")
        assert session.exit_code() == 0


def test_ctrl_c_drops_the_line_that_is_being_typed(server: Any) -> None:
    pytest.importorskip("readline")
    with TerminalSession("chat", "-a", server.address) as session:
        session.prompt()
        session.interrupt()
        session.wait_for("again, or")
        session.prompt()
        session.write("say wrong")
        session.wait_for("say wrong")
        session.interrupt()
        session.wait_for("again, or")
        session.prompt()
        session.write("say right\n")
        session.wait_for("right\r\n")
        session.prompt()
        assert asked(server) == ["say right"]
        session.interrupt()
        session.wait_for("again, or")
        session.prompt()
        session.write("\x04")
        assert session.exit_code() == 0


def test_ctrl_c_between_a_calls_start_and_its_being_held_cancels_it(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.address) as client:
        opened = client._open
        held = []  # as gRPC's own threads may hold it

        def interrupted(*arguments: Any) -> Any:
            call = opened(*arguments)
            held.append(call)
            assert server.seen.started.wait(PATIENCE)
            signal.raise_signal(signal.SIGINT)
            return call

        monkeypatch.setattr(client, "_open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Conversation(client, {}, None)._ask([{"role": "user", "content": "hang"}])
        assert server.seen.cancelled.wait(PATIENCE)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
