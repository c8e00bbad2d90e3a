"""The table of which models fit which cards is the one in the documents."""

import runpy
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scaling.md"


def test_a_row_of_the_page_is_what_the_dry_run_s_sizes_say() -> None:
    """Of two models here: outlines of all take seconds."""
    fits = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "fits.py"), run_name="fits"))
    rooms = [int(fits.GIB * size * 0.9) for size in fits.CARDS.values()]
    rows = PAGE.read_text().splitlines()
    assert "| Qwen3 | " + " | ".join(fits.CARDS) + " |" in rows
    for name in ("0.6B", "8B"):
        assert f"| {name} | {' | '.join(fits.cells(name, rooms))} |" in rows
    first = [row.split(" |")[0].removeprefix("| ") for row in rows]
    assert set(fits.MODELS) <= set(first)
    assert fits.cell(None, None) == "none of up to 16" and fits.cell(2, 4).startswith("2 (all")
