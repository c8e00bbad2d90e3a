"""How far loading has come: few lines, also where two stages are told in turn."""

import io

import pytest

from quire.service.app.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", (io.StringIO, Terminal))
def test_stages_in_turn_write_no_more_than_one_after_another(stream: type[io.StringIO]) -> None:
    """As a first start does: kernels are compiled while graphs are captured."""
    written = stream()
    progress = Progress(written)
    for done in range(301):
        progress("kernels", min(done / 200, 1))
        progress("graphs", done / 300)
    progress.close()
    lines = written.getvalue().splitlines()
    if stream is Terminal:
        left = [line.split("\r")[-1] for line in written.getvalue().rstrip("\n").split("\n")]
        assert left == ["kernels 100%\x1b[K", "graphs 100%\x1b[K"]
    else:
        assert len(lines) == 10 and lines[-1] == "graphs 100%"
        assert lines[:3] == ["kernels   0%", "graphs   0%", "kernels  25%"]


def test_a_line_is_left_by_a_stage_that_is_whole_and_rewritten_by_any_other() -> None:
    terminal = Terminal()
    progress = Progress(terminal)
    progress("weights", 0.5)
    progress("weights", 0.5)
    progress("kernels", 2.0)
    progress("graphs", 0.0)
    assert terminal.getvalue() == ("\rweights  50%\x1b[K\rkernels 100%\x1b[K\n\rgraphs   0%\x1b[K")
