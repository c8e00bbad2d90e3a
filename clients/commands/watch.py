"""`quire watch`: a page on this machine that shows what a server does.

Invariant: nothing listens before the server has answered once with this key; what listens is on
loopback, and its URL holds a token that is new each time.
"""

import errno
import functools
import webbrowser
from typing import Annotated

import typer

from quire.clients.client import Client
from quire.clients.commands import common
from quire.clients.commands.terminal import warn
from quire.clients.errors import OptionError
from quire.clients.watch.server import LOOPBACK, Watched, WatchServer
from quire.clients.watch.source import PATIENCE, Source


@common.one_line_errors
def watch(
    port: Annotated[
        int, typer.Option(help="Port of the page on loopback; 0: a free one.", min=0, max=65535)
    ] = 0,
    interval: Annotated[
        float, typer.Option(help="Seconds between updates.", min=0.5, max=60.0)
    ] = 1.0,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Also open the page in a browser.")
    ] = False,
    address: common.Address = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = None,
) -> None:
    """Watch the server on a page in your browser.

    The page's address holds a token: whoever has it sees what your key may see, and can send
    prompts with it. Counters, requests and the block map need an operator's key, if the server has
    keys. Leave with Ctrl-C.
    """
    if address is not None and len(address) > 1:
        raise OptionError("--address: a page shows one server; name one, or start a second page")
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    with common.connected(address, api_key, secure, timeout) as client:
        with _page(client, port, interval) as server:
            print(f"watching {client.connection} at {server.url} (Ctrl-C to leave)", flush=True)
            if open_browser and not webbrowser.open(server.url):
                warn("no browser could be started: open the address yourself")
            server.serve_forever()


def _page(client: Client, port: int, interval: float) -> WatchServer:
    explain = functools.partial(common.explain, connection=client.connection)
    source = Source(client, explain)
    source.stats()  # a server that is not there, or a key that is refused, ends the command
    chat = client.model_info(timeout=PATIENCE).has_chat_template
    try:
        return WatchServer(Watched(client, source, chat, interval, explain), port)
    except OSError as error:
        busy = error.errno == errno.EADDRINUSE
        why = "is in use" if busy else f"cannot be had: {error.strerror}"
        common.fail(f"port {port} on {LOOPBACK} {why}: leave --port out, or name another")
