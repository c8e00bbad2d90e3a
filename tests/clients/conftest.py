"""A server that says what a test has written for it."""

from collections.abc import Iterator
from typing import Any

import pytest
from support import fake_server


@pytest.fixture(scope="session")
def fake() -> Any:
    """The module of the fake server."""
    return fake_server


@pytest.fixture
def server(fake: Any) -> Iterator[Any]:
    """A fake server that listens."""
    with fake.FakeServer() as running:
        yield running


@pytest.fixture
def second_server(fake: Any) -> Iterator[Any]:
    """Another one."""
    with fake.FakeServer() as running:
        yield running
