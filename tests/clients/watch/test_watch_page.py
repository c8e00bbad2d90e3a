"""The page in a real browser, where there is one: what it shows, and that text is text."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quire.clients.client import Client
from quire.clients.commands.common import explain
from quire.clients.watch.server import Watched, WatchServer
from quire.clients.watch.source import Source
from quire.v1 import inference_pb2 as pb

TOOLS = str(Path(__file__).resolve().parents[3] / "tools")
sys.path.insert(0, TOOLS)
try:
    import chromium
finally:
    sys.path.remove(TOOLS)  # its names are not everybody's

pytestmark = pytest.mark.skipif(chromium.found() is None, reason="needs Chromium")

HOSTILE = "<img src=x onerror=hacked=1><b>bold</b>"
FACT = "document.querySelector('.answer .fact').textContent"
CELLS = """
    (() => {
        const canvas = document.getElementById("map"), context = canvas.getContext("2d");
        const cell = (i) => [...context.getImageData(i * 16 + 4, 4, 1, 1).data];
        return [0, 1, 2, 3, 4, 5].map(cell);
    })()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Page]:
    """One for all tests of this file; each goes to a page of its own."""
    with chromium.browser() as page:
        page.look(1200, 900)
        yield page


@contextmanager
def shown(browser: chromium.Page, address: str) -> Iterator[WatchServer]:
    """A page over a server that looks twice a second, open and drawn."""
    with Client(address) as client:
        source = Source(client, explain)
        with WatchServer(Watched(client, source, True, 0.5, explain)) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                browser.open(server.url)
                browser.until("document.title.endsWith('· Quire')")
                yield server
                assert browser.complaints() == []
                assert all(url.startswith(server.url) for url in browser.requested())
            finally:
                browser.open("about:blank")
                browser.forget()
                server.shutdown()
                thread.join()


def text(browser: chromium.Page, selector: str) -> str:
    return str(browser.value(f"document.querySelector({json.dumps(selector)}).textContent"))


def send(browser: chromium.Page, prompt: str) -> None:
    browser.value("document.getElementById('prompt').focus()")
    browser.type(prompt)
    browser.value("document.getElementById('send').click()")


def test_it_shows_what_the_server_does(browser: chromium.Page, server: Any) -> None:
    with shown(browser, server.address):
        assert text(browser, "#model") == "fake on cpu"
        assert "6 blocks of 16 tokens, 50 % in use" in text(browser, "#map-words")
        tiles = browser.value("[...document.querySelectorAll('.tile')].map(t => t.textContent)")
        assert "25 %prompt tokens cached" in tiles, tiles
        assert "1 + 2 waitingrunning" in tiles
        a, b, c, d, e, f = browser.value(CELLS)  # in use, shared, cached, free, free, in use
        assert a == f and d == e and len({str(cell) for cell in (a, b, c, d)}) == 4
        assert browser.value("document.getElementById('ranks').hidden") is True


def test_text_is_text_whatever_it_says(
    browser: chromium.Page, server: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fake.stats

    def hostile(block_map: bool = False) -> pb.StatsResponse:
        told: pb.StatsResponse = plain(block_map)
        told.model.name = told.model.device = HOSTILE
        told.open_requests.add(
            request_id=HOSTILE, client=HOSTILE, started=True, n=1, prompt_tokens=9, preemptions=2
        )
        return told

    monkeypatch.setattr(fake, "stats", hostile)
    with shown(browser, server.address):
        assert text(browser, "#model") == f"{HOSTILE} on {HOSTILE}"
        assert text(browser, "#rows .id") == HOSTILE
        assert "preempted ×2" in text(browser, "#rows")
        send(browser, f"say {HOSTILE}")
        browser.until(f"{FACT}.includes(', stop;')")
        browser.until("document.querySelector('.answer .text').textContent.length > 0")
        assert text(browser, ".answer .asked") == f"say {HOSTILE}"
        assert text(browser, ".answer .text") == HOSTILE
        assert browser.value("document.querySelectorAll('img, b.bold, main script').length") == 0
        assert browser.value("typeof hacked") == "undefined"


def test_a_prompt_streams_and_can_be_stopped(browser: chromium.Page, server: Any) -> None:
    with shown(browser, server.address):
        send(browser, "forever")
        browser.until("document.querySelector('.answer .text')?.textContent.length > 3")
        assert "tokens so far" in text(browser, ".answer .fact")
        browser.value("document.querySelector('.answer .stop').click()")
        browser.until(
            "document.querySelector('.answer .fact').textContent.includes('stopped after')"
        )
        assert server.seen.cancelled.wait(60)


def test_what_is_wrong_is_said_on_the_page(browser: chromium.Page, fake: Any) -> None:
    with fake.FakeServer() as going:
        with shown(browser, going.address):
            send(browser, "fail RESOURCE_EXHAUSTED no room")
            browser.until("document.querySelector('.answer .failed') !== null")
            assert text(browser, ".answer .fact") == "no room (try again later)"
            going.__exit__()
            browser.until("!document.getElementById('trouble').hidden")
            assert "start one with `quire serve`" in text(browser, "#trouble")
            assert browser.value("document.body.classList.contains('stale')") is True


def test_the_policy_holds_in_a_browser(browser: chromium.Page, server: Any) -> None:
    with shown(browser, server.address):
        refused = """
            (() => { try { document.body.innerHTML = "<b>x</b>"; } catch (e) { return e.name; } })()
        """
        assert browser.value(refused) == "TypeError"
        foreign = "fetch('http://127.0.0.1:9/').then(() => 'let out', () => 'kept in')"
        assert browser.value(foreign) == "kept in"
        assert browser.value("document.cookie + Object.keys(localStorage)") == ""
        complaints = browser.complaints()
        assert len(complaints) >= 2 and any("connect-src" in told for told in complaints)
        browser.forget()  # what was provoked
