"""Every notebook runs from top to bottom in a kernel of its own, in the folder where it lies."""

import time
from pathlib import Path

import chapters
import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from support.patience import PATIENCE

SECONDS = 15  # on two cores of a laptop; beside other tests it may take longer


def _run(notebook: nbformat.NotebookNode, where: Path) -> None:
    client = NotebookClient(
        notebook,
        timeout=int(PATIENCE),
        kernel_name="python3",
        resources={"metadata": {"path": str(where)}},
    )
    client.execute()


@pytest.fixture(autouse=True)
def _at_home_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels leave nothing in the reader's home, and read no settings from there."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.mark.long
@pytest.mark.parametrize("number", chapters.numbers())
def test_it_runs(number: int) -> None:
    path = chapters.folder(number) / "notebook.py"
    notebook = jupytext.read(path)
    began = time.monotonic()
    _run(notebook, path.parent)
    print(f"chapter {number}: {time.monotonic() - began:.1f} s of {SECONDS}")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert all(cell.execution_count for cell in code)


@pytest.mark.long
def test_a_cell_that_fails_is_seen(tmp_path: Path) -> None:
    notebook = jupytext.reads("# %%\n1 + 1\n\n# %%\nassert False, 'seen'\n", fmt="py:percent")
    with pytest.raises(CellExecutionError, match="seen"):
        _run(notebook, tmp_path)


@pytest.mark.parametrize("number", chapters.numbers())
def test_its_text_form_is_jupytexts_own(number: int) -> None:
    """What an editor saves is what is here: no cell is lost on the way there and back."""
    path = chapters.folder(number) / "notebook.py"
    notebook = jupytext.read(path)
    assert {cell.cell_type for cell in notebook.cells} == {"code", "markdown"}
    again = jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), fmt="py:percent")
    assert [cell.source for cell in again.cells] == [cell.source for cell in notebook.cells]
