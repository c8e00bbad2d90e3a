"""`make screens`, its second half: pictures of `quire watch`'s page, over a real server.

    python tools/watch_screens.py [--out docs/screens]

Serves the embedded model twice, with a cache that suffices and with a tiny one, and takes the page
at rest, under load (light and dark), and where requests push one another out of the cache. Needs
Chromium (apt install chromium). Writes watch-rest, watch-load, watch-dark and watch-tiny, as PNG.
"""

import argparse
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import chromium
from demo import serving
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
QUIRE = str(Path(sys.executable).with_name("quire"))
WIDTH, HEIGHT = 1280, 900
COLOURS = 200  # of a picture: a page has few
SMALL, TINY = "640", "96"
PROMPT = "Tell me a short story about a fox."


def main() -> int:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description="Pictures of quire watch.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screens")
    out: Path = parser.parse_args().out
    if chromium.found() is None:
        print("watch_screens: no Chromium: type apt install chromium", file=sys.stderr)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    with chromium.browser(120.0) as page:
        with watched(SMALL) as (address, url):
            page.look(WIDTH, HEIGHT)
            page.open(url)
            ask(page, PROMPT)
            page.until("document.querySelector('.answer .fact').textContent.includes('prefill')")
            page.until("history.length >= 4")
            picture(page, out / "watch-rest.png")
            with load(address, "8"):
                page.until("shown.requests.running >= 3 && history.length >= 40")
                picture(page, out / "watch-load.png")
                page.look(WIDTH, HEIGHT, dark=True)
                page.until("shown.requests.running >= 3")
                picture(page, out / "watch-dark.png")
        with watched(TINY) as (address, url):
            page.look(WIDTH, HEIGHT)
            page.open(url)
            with load(address, "16"):
                page.until(
                    "shown !== null && shown.cache.preemptions > 0 && history.length >= 30"
                    " && shown.open.some((row) => row.preemptions > 0)"
                )
                picture(page, out / "watch-tiny.png")
    return 0


@contextlib.contextmanager
def watched(num_blocks: str) -> Iterator[tuple[str, str]]:
    """A server with so many blocks, and `quire watch` over it: its address, the page's."""
    arguments = ["--num-blocks", num_blocks, "--block-size", "16", "--max-num-seqs", "24"]
    with serving("pocket", arguments) as server:
        address = server.address()
        words = [QUIRE, "watch", "--address", address, "--interval", "0.5"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as viewer:
            try:
                assert viewer.stdout is not None
                found = re.search(r"http://\S+", viewer.stdout.readline())
                if found is None:
                    raise SystemExit("quire watch has said no address")
                yield address, found[0]
            finally:
                viewer.terminate()
        server.stop()


@contextlib.contextmanager
def load(address: str, rate: str) -> Iterator[None]:
    """Groups of prompts that share prefixes, until the block is left."""
    words = [
        "loadtest", "--address", address, "--workload", "shared-prefix", "--groups", "4",
        "--prompts-per-group", "400", "--prefix-tokens", "192", "--question-tokens", "16:64",
        "--output-tokens", "96:200", "--warmup", "0", "--rate", rate, "--arrivals", "poisson",
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([QUIRE, *words], **quiet) as running:
        try:
            yield
        finally:
            running.terminate()


def ask(page: chromium.Page, prompt: str) -> None:
    """Types a prompt into the page, and sends it."""
    page.until("document.querySelectorAll('.tile').length > 0")
    page.value("document.getElementById('prompt').focus()")
    page.type(prompt)
    page.value("document.getElementById('max-tokens').value = 64")
    page.value("document.getElementById('send').click()")


def picture(page: chromium.Page, path: Path) -> None:
    """The whole page, with few colours: small enough to be kept."""
    page.picture(path)
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True)
    print(f"wrote {path.name}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
