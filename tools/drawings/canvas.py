"""Boxes, arrows and words as SVG that is readable on light and on dark pages.

Invariant: a drawing paints its own paper, and takes its colours from a style sheet that asks
which of the two its reader prefers: so no word stands on a ground that the page chose. Nothing
outside of the file is named, and equal drawings are equal bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

SIZE, SMALL, LEADING = 13, 11, 17  # of letters and lines, in pixels

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2328",
    "faint": "#57606a",
    "line": "#8c959f",
    "plain": "#f6f8fa",
    "blue": "#ddf4ff",
    "orange": "#fff1e5",
    "green": "#dafbe1",
    "purple": "#fbefff",
}
DARK = {
    "paper": "#0d1117",
    "ink": "#e6edf3",
    "faint": "#9198a1",
    "line": "#6e7681",
    "plain": "#161b22",
    "blue": "#0c2d6b",
    "orange": "#5a1e02",
    "green": "#04391c",
    "purple": "#3c1e70",
}
FILLS = ("plain", "blue", "orange", "green", "purple")


@dataclass(frozen=True)
class Word:
    """A line of text, and the room it has; 0: as much as it wants."""

    text: str
    size: int
    room: float


@dataclass
class Canvas:
    """A drawing in the making. Coordinates are pixels, from the top left corner."""

    title: str
    width: int
    height: int
    words: list[Word] = field(default_factory=list)
    _parts: list[str] = field(default_factory=list)

    def box(
        self, x: float, y: float, width: float, height: float, lines: Sequence[str] = (),
        fill: str = "plain", *, dashed: bool = False, top: bool = False,
    ) -> None:  # fmt: skip
        """A box with lines of text in its middle, or at its top; the first line is bold."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect class="{fill} edge" x="{x:g}" y="{y:g}" width="{width:g}" '
            f'height="{height:g}" rx="6"{dash}/>'
        )
        first = y + 18 if top else y + (height - LEADING * len(lines)) / 2 + 13
        for index, line in enumerate(lines):
            where = x + width / 2, first + index * LEADING
            self._word(*where, line, "ink bold" if index == 0 else "faint small", width - 8)

    def note(self, x: float, y: float, text: str, *, middle: bool = False, room: float = 0) -> None:
        """Small words beside things; several lines are parted by line breaks."""
        for index, line in enumerate(text.split("\n")):
            style = "faint small" if middle else "faint small left"
            self._word(x, y + index * (LEADING - 2), line, style, room)

    def heading(self, x: float, y: float, text: str) -> None:
        self._word(x, y, text, "ink bold left", 0)

    def _word(self, x: float, y: float, text: str, style: str, room: float) -> None:
        size = SMALL if "small" in style else SIZE
        self.words.append(Word(text, size, room))
        self._parts.append(f'<text class="{style}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def arrow(self, *points: tuple[float, float], label: str = "", dashed: bool = False) -> None:
        """A line through points with a head at its end; the label stands above its first part."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<polyline class="way" points="{path}"{dash} marker-end="url(#head)"/>')
        if label:
            (x1, y1), (x2, y2) = points[:2]
            if abs(x1 - x2) < 1:
                self.note(x1 + 6, (y1 + y2) / 2 + 4, label)
            else:
                room = abs(x2 - x1)
                self.note((x1 + x2) / 2, min(y1, y2) - 6, label, middle=True, room=room)

    def svg(self) -> str:
        """The file."""
        size = (
            f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{_sheet(LIGHT)}@media (prefers-color-scheme: dark) {{{_sheet(DARK)}}}",
                'text {font-family: "DejaVu Sans", Verdana, sans-serif; text-anchor: middle}',
                f".bold {{font-size: {SIZE}px; font-weight: bold}} .small {{font-size: {SMALL}px}}",
                ".left {text-anchor: start} .way {fill: none; stroke-width: 1.5}</style>",
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                'markerHeight="7" orient="auto"><path class="tip" d="M0 0 L8 4 L0 8 z"/></marker>'
                "</defs>",
                f'<rect class="paper" width="{self.width}" height="{self.height}"/>',
                *self._parts,
                "</svg>\n",
            ]
        )


def _sheet(colours: dict[str, str]) -> str:
    fills = " ".join(f".{name} {{fill: {colours[name]}}}" for name in ("paper", *FILLS))
    return (
        f"{fills} .ink {{fill: {colours['ink']}}} .faint {{fill: {colours['faint']}}} "
        f".edge, .way {{stroke: {colours['line']}}} .tip {{fill: {colours['line']}}}\n"
    )
