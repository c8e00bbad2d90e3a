"""`make screens`: the pictures in the README, taken of a real server under a real load.

    python tools/screens.py [--out docs/screens]

Serves the embedded model, lets `quire loadtest` sweep three rates over it and write its report, and
meanwhile looks through `quire top`'s view. Writes top.png (the view, cell by cell) and report.png
(the report's title, table and plots). No browser is needed.
"""

import argparse
import base64
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
from demo import serving
from PIL import Image, ImageDraw, ImageFont
from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.terminal_theme import MONOKAI

from quire.clients import Client
from quire.clients.commands.top import View

ROOT = Path(__file__).resolve().parent.parent
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
COLUMNS, LINES = 112, 40
PAPER, INK, FAINT = (252, 252, 250), (34, 39, 46), (110, 110, 120)


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that come with matplotlib."""
    return ImageFont.truetype(FONTS / f"{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


def main() -> int:
    """Takes both pictures."""
    parser = argparse.ArgumentParser(description="The pictures in the README.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screens")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    # A cache small enough that its map shows something.
    with serving("pocket", ["--num-blocks", "640", "--block-size", "16"]) as server:
        address = server.address()
        with tempfile.TemporaryDirectory() as directory:
            page = Path(directory) / "report.html"
            view = watch(address, loadtest(address, page))
            terminal(view).save(out / "top.png", optimize=True)
            report(page.read_text(encoding="utf-8")).save(out / "report.png", optimize=True)
        server.stop()
    print(f"wrote {out / 'top.png'} and {out / 'report.png'}")
    return 0


def loadtest(address: str, page: Path) -> "subprocess.Popen[bytes]":
    """Groups of prompts that share prefixes, at three rates."""
    words = [
        "loadtest", "--address", address, "--report", str(page), "--workload", "shared-prefix",
        "--groups", "6", "--prompts-per-group", "20", "--prefix-tokens", "256",
        "--question-tokens", "16:64", "--output-tokens", "24:96", "--warmup", "12",
        "--rate", "4", "--rate", "8", "--rate", "12", "--arrivals", "poisson",
        "--goodput", "ttft:500",
    ]  # fmt: skip
    return subprocess.Popen([str(Path(sys.executable).with_name("quire")), *words])


def watch(address: str, load: "subprocess.Popen[bytes]") -> View:
    """Looks on until the load has ended; keeps the view of its busiest moment."""
    view, busiest, most = View(), View(), -1
    with Client(address) as client:
        while load.poll() is None:
            snapshot = client.stats(include_block_map=True)
            view.add(snapshot)
            if snapshot.cache.blocks_in_use >= most:
                most = snapshot.cache.blocks_in_use
                busiest = view.copy()
            time.sleep(0.5)
    if load.returncode:
        raise SystemExit(f"the load test ended with exit code {load.returncode}")
    return busiest


def terminal(view: View) -> Image.Image:
    """The view as a terminal shows it: each cell's character in its colour."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(
            file=nowhere, width=COLUMNS, height=LINES, color_system="truecolor", force_terminal=True
        )
        lines = console.render_lines(view.render(console), pad=True)
    face = font("DejaVuSansMono", 15)
    width, height = round(face.getlength("M")), 19
    image = Image.new("RGB", (width * COLUMNS + 24, height * len(lines) + 24), (12, 12, 16))
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        draw_line(pen, line, 12, 12 + row * height, width, face)
    return image


def draw_line(
    pen: ImageDraw.ImageDraw,
    line: Sequence[Segment],
    left: int,
    top: int,
    width: int,
    face: ImageFont.FreeTypeFont,
) -> None:
    """One row, cell by cell, so that no font can shift a column."""
    column = 0
    for segment in line:
        colour = segment.style.color if segment.style and segment.style.color else None
        for character in segment.text:
            pen.text((left + column * width, top), character, font=face, fill=rgb(colour))
            column += 1


def rgb(colour: Color | None) -> tuple[int, int, int]:
    """A colour of rich as a screen shows it."""
    if colour is None:
        return (214, 214, 220)
    red, green, blue = colour.get_truecolor(MONOKAI)
    return red, green, blue


class Page(HTMLParser):
    """The report's parts in order: (tag, text) of headings, paragraphs and cells; images."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        if tag == "tr":
            if not self.rows:
                self.parts.append(("table", ""))
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "img":
            self.parts.append(("img", str(dict(attrs)["src"])))

    def handle_data(self, data: str) -> None:
        if self._tag in ("th", "td"):
            self.rows[-1][-1] += data
        elif self._tag in ("h1", "h2", "p") and data.strip():
            self.parts.append((self._tag, data.strip()))


def report(html: str) -> Image.Image:
    """The report's parts one under the other."""
    page = Page()
    page.feed(html)
    blocks = [block(tag, text, page.rows) for tag, text in page.parts]
    width = max(image.width for image in blocks) + 48
    image = Image.new("RGB", (width, sum(b.height for b in blocks) + 48), PAPER)
    top = 24
    for part in blocks:
        image.paste(part, (24, top))
        top += part.height
    return image


def block(tag: str, text: str, rows: list[list[str]]) -> Image.Image:
    """One part of the report as a picture."""
    if tag == "img":
        encoded = re.sub(r"^data:image/png;base64,", "", text)
        return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    if tag == "table":
        return figures(rows)
    name, size, colour = {
        "h1": ("DejaVuSans-Bold", 24, INK),
        "h2": ("DejaVuSans-Bold", 17, INK),
        "p": ("DejaVuSans", 13, FAINT),
    }[tag]
    face = font(name, size)
    image = Image.new("RGB", (round(face.getlength(text)) + 2, size * 2), PAPER)
    ImageDraw.Draw(image).text((0, size * 0.4), text, font=face, fill=colour)
    return image


def figures(rows: list[list[str]]) -> Image.Image:
    """The table: names to the left, figures to the right of their columns."""
    face, height, column = font("DejaVuSans", 14), 24, 170
    image = Image.new("RGB", (260 + column * (len(rows[0]) - 1), height * len(rows) + 12), PAPER)
    pen = ImageDraw.Draw(image)
    for i, row in enumerate(rows):
        top = i * height
        pen.text((0, top), row[0], font=face, fill=INK)
        for k, cell in enumerate(row[1:], 1):
            right = 240 + column * k
            pen.text((right - face.getlength(cell), top), cell, font=face, fill=INK)
        pen.line((0, top + height - 3, image.width, top + height - 3), fill=(228, 228, 222))
    return image


if __name__ == "__main__":
    sys.exit(main())
