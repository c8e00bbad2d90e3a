"""`make demo`: Quire in a minute. Serves the embedded model, talks to it as a client would, stops.

Runs with nothing but an installed Quire with its server. Exits with 0 only if everything that it
shows was really so: streamed text, a prefix found in the cache at the second asking, a clean stop.
`--plain` leaves the headings' colours out.
"""

import argparse
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from quire.clients import CallError, Client, Delta, Finished, Message, Started
from quire.clients.client import is_serving
from quire.clients.commands.stats import table

START_SECONDS = 240
STOP_SECONDS = 60
FACTS = (
    "Remember these facts. The code of Anna is 4812. The city of Tom is Oslo. The animal of Maria"
    " is a fox. The code of Peter is 7305. The colour of Lena is green. The tool of Oscar is a"
    " hammer. The fruit of Nina is a plum. The code of David is 2968. The job of Clara is baker."
)
STORY = "Tell me a short story about a cat."
RECALL = "What is the code of Peter?"


class DemoError(Exception):
    """Something was not as it should be."""


class Server:
    """`quire serve` as a process of its own, on a free port."""

    def __init__(self, model: str, arguments: list[str]) -> None:
        quire = Path(sys.executable).with_name("quire")
        words = ["serve", "--model", model, "--port", "0", "--http-port", "0"]
        words += ["--log-level", "warning", *arguments]
        command = [str(quire), *words]
        print(f"$ quire {' '.join(words)}", flush=True)
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def address(self) -> str:
        """Waits for `serving MODEL on HOST:PORT`."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise DemoError(f"the server was not ready in {START_SECONDS} s") from None
            if line is None:
                raise DemoError(f"the server ended with exit code {self._process.wait()}")
            print(line, flush=True)
            if line.startswith("serving ") and " on " in line:
                return line.rsplit(" on ", 1)[1]

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise DemoError(f"the server did not stop within {STOP_SECONDS} s") from None

    def kill(self) -> None:
        """Whatever happened: no server is left behind."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def serving(model: str, arguments: list[str]) -> Iterator[Server]:
    """A server, gone afterwards."""
    server = Server(model, arguments)
    try:
        yield server
    finally:
        server.kill()


def wait_until_serving(client: Client) -> None:
    """Asks grpc.health.v1 until it says SERVING."""
    deadline = time.monotonic() + START_SECONDS
    while not is_serving(client):
        if time.monotonic() > deadline:
            raise DemoError("health never said SERVING")
        time.sleep(0.1)


def ask(client: Client, question: str, max_tokens: int) -> tuple[str, Started, Finished]:
    """A question after the facts, the answer's words printed as they come."""
    messages = [Message("user", FACTS), Message("assistant", "Noted."), Message("user", question)]
    print(f"> {question}")
    text, started, finished = "", None, None
    for event in client.generate(messages, max_tokens=max_tokens, temperature=0.6, seed=11):
        if isinstance(event, Started):
            started = event
        elif isinstance(event, Delta):
            text += event.text
            print(event.text, end="", flush=True)
        else:
            finished = event
    print()
    if started is None or finished is None or finished.completion_tokens == 0:
        raise DemoError("the stream had no start, no tokens or no end")
    print(
        f"  [{finished.completion_tokens} tokens, {finished.reason}; prompt"
        f" {started.prompt_tokens} tokens, {started.cached_tokens} of them found in the cache;"
        f" prefill {finished.prefill_seconds * 1e3:.0f} ms,"
        f" decode {finished.decode_seconds * 1e3:.0f} ms]"
    )
    return text, started, finished


def show(client: Client, max_tokens: int, heading: str) -> None:
    """A chat, the same again, another one after the same beginning, and what the server says."""
    print(heading.format("A chat that begins with nine facts"))
    print(f"> {FACTS}\nNoted.")
    first, _, _ = ask(client, STORY, max_tokens)
    print(heading.format("The same again: its prefix is cached, its words are equal"))
    second, started, _ = ask(client, STORY, max_tokens)
    if started.cached_tokens == 0:
        raise DemoError("the second prompt found nothing in the prefix cache")
    if first != second:
        raise DemoError("the same seed gave another text")
    print(heading.format("The same beginning, another question"))
    ask(client, RECALL, max_tokens)
    from rich.console import Console

    print(heading.format("Stats"))
    Console().print(table(client.stats()))


def main() -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="Quire in a minute.")
    parser.add_argument("--model", default="pocket", help="what to serve (default: pocket)")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--plain", action="store_true", help="no colours")
    parser.add_argument("server_arguments", nargs="*", help="after --: more for `quire serve`")
    options = parser.parse_args()
    coloured = sys.stdout.isatty() and not options.plain
    heading = "\n\033[1m{}\033[0m" if coloured else "\n{}"
    try:
        with serving(options.model, options.server_arguments) as server:
            with Client(server.address()) as client:
                wait_until_serving(client)
                show(client, options.max_tokens, heading)
            code = server.stop()
        if code != 0:
            raise DemoError(f"the server stopped with exit code {code}")
    except (DemoError, CallError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print("\nThe server stopped cleanly. Now yours: quire serve, quire chat (in .venv/bin)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
