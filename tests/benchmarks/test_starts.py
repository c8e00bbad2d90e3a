"""What a start's time went to is read from the line that the engine logs."""

import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest

from quire.engine.startup.build_rank import _TimeLine

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("starts", None)
    import starts as module  # type: ignore[import-not-found]

    return module


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """A time line as the engine logs it, of a warm-up half of which was capture."""
    clock = _TimeLine()
    clock._last -= 300
    clock.mark("weights")
    clock._last -= 400
    clock.mark("warm-up", ("captures", 200.0))
    with caplog.at_level(logging.INFO):
        clock.log()
    return "\n".join(f"12:00:00.000 I quire  {r.getMessage()}" for r in caplog.records)


def test_every_stage_is_read_and_what_no_stage_tells(
    starts: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    stages = starts.stages_of(f"loading\n{logged(caplog)}\nserving", 1000.0)
    assert list(stages) == ["around", "weights", "warm-up", "captures"]
    assert stages == pytest.approx(
        {"around": 300.0, "weights": 300.0, "warm-up": 200.0, "captures": 200.0}, abs=10.0
    )


def test_a_log_without_a_time_line_is_no_result(starts: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no time line"):
        starts.stages_of("serving", 1.0)


def test_medians_are_of_each_stage(starts: ModuleType) -> None:
    found = [starts.Start(1.0, {"weights": value, "cache": 1.0}) for value in (3.0, 1.0, 2.0)]
    assert starts.middle(found) == {"weights": 2.0, "cache": 1.0}


def test_a_start_s_floor_is_a_process_with_pytorch_alone(starts: ModuleType) -> None:
    assert starts.bare() > 0.1  # its import takes longer


def test_missing_bytecode_is_made_in_a_folder_of_its_own(
    starts: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An image may keep Python from writing it."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for there in (True, False):
        (tmp_path / "there.pyc").touch()
        where = str(tmp_path / ("there.pyc" if there else "missing.pyc"))
        monkeypatch.setattr(starts.importlib.util, "cache_from_source", lambda _, to=where: to)
        starts._environment.cache_clear()
        environment = starts._environment()
        assert ("PYTHONDONTWRITEBYTECODE" in environment) is there
        assert ("PYTHONPYCACHEPREFIX" in environment) is not there
    assert Path(environment["PYTHONPYCACHEPREFIX"]).is_dir()
