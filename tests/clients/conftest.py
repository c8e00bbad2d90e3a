"""The fake server is imported by its place: tests have no packages. Other helpers are modules
beside the tests."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))


def _load(name: str) -> Any:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"quire_tests_clients_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake() -> Any:
    """The module of the fake server."""
    return _load("fake_server")


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
