"""The diagrams are what their script draws, name what is there, and hold their words."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import pytest
from PIL import ImageFont
from support.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "how-it-works"
TOOLS = ROOT / "tools"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
NAMES = ("request", "blocks", "step", "memory", "processes")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))


def test_they_are_what_the_script_draws() -> None:
    done = subprocess.run(
        [sys.executable, TOOLS / "how_it_works.py", "--check"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.stem for path in PICTURES.glob("*.svg")} == set(NAMES)
    text = (PICTURES / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"!\[[^\]]+\]\((\w+)\.svg\)", text) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_readable_on_light_and_on_dark(name: str) -> None:
    """It paints its own paper, knows both, and asks nothing of the network."""
    source = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(source)
    width, height = root.get("width"), root.get("height")
    paper = root.find(f"{SVG}rect")
    assert paper is not None and paper.get("class") == "paper"
    assert (paper.get("width"), paper.get("height")) == (width, height)
    assert "@media (prefers-color-scheme: dark)" in source
    assert source.count(".paper {fill:") == 2
    assert root.findtext(f"{SVG}title")
    assert set(re.findall(r"https?://[^\"\s]+", source)) == {"http://www.w3.org/2000/svg"}
    styled = set(re.findall(r"\.([a-z]+)\b", source.split("</style>")[0]))
    used = {one for words in re.findall(r'class="([^"]+)"', source) for one in words.split()}
    assert used <= styled


@pytest.mark.parametrize("name", NAMES)
def test_words_keep_within_their_boxes_and_the_picture(name: str) -> None:
    import how_it_works

    canvas = how_it_works.DRAWINGS[name]()
    for word in canvas.words:
        font = "DejaVuSans-Bold" if word.size == 13 else "DejaVuSans"
        length = ImageFont.truetype(FONTS / f"{font}.ttf", word.size).getlength(word.text)
        assert not word.room or length <= word.room, (word, length)
    for text in ElementTree.fromstring(canvas.svg()).iter(f"{SVG}text"):
        left = "left" in str(text.get("class"))
        size = 11 if "small" in str(text.get("class")) else 13
        font = ImageFont.truetype(FONTS / "DejaVuSans.ttf", size)
        reach = font.getlength(str(text.text)) / (1 if left else 2)
        assert float(str(text.get("x"))) + reach <= canvas.width, text.text
        assert 0 < float(str(text.get("y"))) < canvas.height


@pytest.mark.parametrize("name", NAMES)
def test_files_and_functions_that_it_names_are_there(name: str) -> None:
    source = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    for file in re.findall(r"[a-z_/]+\.py", source):
        found = [path for room in ("engine", "service") for path in (ROOT / room).rglob("*.py")]
        assert any(path.as_posix().endswith(f"/{file}") for path in found), file
    for file, functions in re.findall(r">([a-z_/]+\.py): ([a-z_, ]+)<", source):
        (path,) = (ROOT / "engine").rglob(Path(file).name)
        for function in functions.split(", "):
            assert f"def {function}(" in path.read_text(encoding="utf-8"), function
