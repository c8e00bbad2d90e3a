"""When a call is tried again: waits grow, are bounded, and differ between clients."""

import random

import grpc
import pytest

from quire.clients import RetryPolicy
from quire.clients.errors import Details, call_error
from quire.clients.retry import RetryState


def unavailable(retry_after: float | None = None) -> object:
    error = call_error(grpc.StatusCode.UNAVAILABLE, "gone", None)
    error.details = Details(retry_after=retry_after)
    return error


def waits(policy: RetryPolicy) -> list[float]:
    tries, error = RetryState(policy, None), unavailable()
    found = []
    while True:
        tries.begin()
        wait = tries.wait_after(error)  # type: ignore[arg-type]
        if wait is None:
            return found
        found.append(wait)


def test_waits_grow_to_their_bound() -> None:
    policy = RetryPolicy(attempts=7, first_backoff=1.0, max_backoff=8.0)
    bounds = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    for _ in range(20):
        for wait, bound in zip(waits(policy), bounds, strict=True):
            assert bound / 2 <= wait <= bound


def test_clients_of_a_restarted_server_do_not_return_in_step() -> None:
    """Their waits are spread over the second half of the bound, not all alike."""
    random.seed(5)
    found = [waits(RetryPolicy(attempts=2, first_backoff=1.0))[0] for _ in range(200)]
    assert len(set(found)) > 190
    assert min(found) < 0.6 and max(found) > 0.9


def test_a_servers_wish_is_waited_for_at_least() -> None:
    tries = RetryState(RetryPolicy(first_backoff=0.1, max_pushback=5.0), None)
    tries.begin()
    assert tries.wait_after(unavailable(3.0)) == pytest.approx(3.0)  # type: ignore[arg-type]
    assert tries.wait_after(unavailable(6.0)) is None  # type: ignore[arg-type]


def test_the_longest_policy_does_not_overflow() -> None:
    policy = RetryPolicy(attempts=1_000_000, first_backoff=0.0, max_backoff=0.0)
    tries = RetryState(policy, None)
    for _ in range(3000):
        tries.begin()
    assert tries.wait_after(unavailable()) == 0.0  # type: ignore[arg-type]
