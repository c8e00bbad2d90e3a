"""Compiling that takes too long: nobody waits for it, and it is bounded while it goes on."""

import json
import threading
import time
from concurrent.futures import Future

import pytest
from support.patience import PATIENCE

from quire.engine.errors import RequestError
from quire.engine.request import Constraint, Vocabulary
from quire.service.constraints import deep_threads as module
from quire.service.constraints import grammars
from quire.service.constraints.deep_threads import MAX_STUCK, DeepThreads, TooSlow
from quire.service.constraints.grammars import Grammars
from quire.service.models import pocket


def deep(levels: int) -> int:
    return levels and 1 + deep(levels - 1)


def test_it_gives_what_the_work_gives() -> None:
    threads = DeepThreads()
    assert threads.run(lambda: deep(900)) == 900
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda: 1 // 0)
    with pytest.raises(TimeoutError, match="its own"):
        threads.run(own_timeout)
    with pytest.raises(RuntimeError, match="Panic"):
        threads.run(panics)
    assert threads.stuck == 0


class Panic(BaseException):
    """As those of libraries in Rust, no Exception."""


def panics() -> None:
    raise Panic


def own_timeout() -> None:
    raise TimeoutError("its own")


def test_what_takes_too_long_is_given_up_and_counted_until_it_ends() -> None:
    threads, end = DeepThreads(seconds=0.01), threading.Event()

    def endless() -> None:
        assert end.wait(PATIENCE)

    for stuck in range(MAX_STUCK):
        assert threads.stuck == stuck
        with pytest.raises(TooSlow, match="takes more than") as caught:
            threads.run(endless)
        assert caught.value.own
    with pytest.raises(TooSlow, match="others take too long") as caught:
        threads.run(lambda: 1)
    assert not caught.value.own
    end.set()
    limit = time.monotonic() + PATIENCE
    while threads.stuck:
        assert time.monotonic() < limit
    threads._seconds = PATIENCE
    assert threads.run(lambda: 1) == 1


def test_what_ends_in_the_moment_in_which_it_is_given_up_has_its_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Late(Future[int]):
        """Whoever waits for so long has waited in vain, and then it ends."""

        def result(self, timeout: float | None = None) -> int:
            ended = super().result()
            if timeout is not None:
                raise TimeoutError
            return ended

    monkeypatch.setattr(module, "Future", Late)
    threads = DeepThreads()
    assert (threads.run(lambda: 7), threads.stuck) == (7, 0)


def test_grammars_are_kept_by_the_memory_that_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Grammars()
    text = (pocket.directory() / "tokenizer.json").read_text(encoding="utf-8")
    made.set_vocabulary(Vocabulary(text, 4096, (2,)))
    monkeypatch.setattr(grammars, "MAX_KEPT_BYTES", 100 * 256)
    for i in range(3):
        made.compile(Constraint("json_schema", json.dumps({"title": f"{i:0>28}"})))  # 40 characters
    assert len(made._kept) == 2
    made.compile(Constraint("regex", "a" * 40))
    assert len(made._kept) == 3
    made.compile(Constraint("json_schema", json.dumps({"title": "x" * 1000})))  # alone it may
    assert len(made._kept) == 1
    made.compile(Constraint("regex", "b"))
    assert list(made._kept) == [("regex", "b")] and made._kept_bytes == 24


def test_a_text_that_was_too_slow_is_refused_at_once_when_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, end = Grammars(), threading.Event()
    text = (pocket.directory() / "tokenizer.json").read_text(encoding="utf-8")
    made.set_vocabulary(Vocabulary(text, 4096, (2,)))
    made._threads = DeepThreads(seconds=0.01)
    tries = []

    def slow(constraint: Constraint, _tokens: object) -> None:
        tries.append(constraint.text)
        assert end.wait(PATIENCE)

    monkeypatch.setattr(grammars, "_compiled", slow)
    for _ in range(3):
        with pytest.raises(RequestError, match="takes more than") as caught:
            made.compile(Constraint("regex", "a+"))
        assert caught.value.field == "constraint.regex"
    end.set()
    assert tries == ["a+"]
