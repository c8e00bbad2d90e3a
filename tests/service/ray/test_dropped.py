"""What Ray's proxy drops is cancelled. No Ray is started: its reader is stood in for, but for
its class, where the package ray is installed."""

import asyncio
import gc
import importlib
from importlib.util import find_spec

import pytest

from quire.service.ray.dropped import _NAME, _PLACE, cancel_dropped, on_drop


class Response:
    """A replica's, as the proxy holds it."""

    def __init__(self) -> None:
        self.cancels = 0

    def cancelled(self) -> bool:
        return self.cancels > 0

    def cancel(self) -> None:
        self.cancels += 1


class Responses:
    """The proxy's reader of one."""

    def __init__(self, response: Response, *, done: bool) -> None:
        self._response, self._done = response, done

    def cancelled(self) -> bool:
        return self._response.cancelled()

    __del__ = on_drop


@pytest.mark.parametrize(("done", "left"), [(False, False), (True, False), (False, True)])
def test_what_is_dropped_before_its_end_is_cancelled_once(*, done: bool, left: bool) -> None:
    async def test() -> int:
        response = Response()
        responses = Responses(response, done=done)
        if left:
            response.cancel()
        del responses
        gc.collect()
        return response.cancels

    assert asyncio.run(test()) == (0 if done else 1)


def test_another_thread_than_the_loop_s_cancels_nothing() -> None:
    response = Response()
    responses = Responses(response, done=False)
    del responses
    gc.collect()
    assert response.cancels == 0


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_s_own_reader_has_what_is_read_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = getattr(importlib.import_module(_PLACE), _NAME)
    monkeypatch.setattr(kind, "__del__", lambda _: None, raising=False)
    cancel_dropped()
    response = Response()

    async def test() -> None:
        responses = kind(response)
        assert not responses._done
        del responses
        gc.collect()

    asyncio.run(test())
    assert response.cancels == 1
