"""`quire tokenize`: a text's token ids, as `quire generate --ids` reads them."""

import json
import sys
from typing import Annotated

import typer

from quire.clients.commands import common, sampling
from quire.clients.commands.option_names import named
from quire.clients.commands.terminal import note, say


@common.one_line_errors
def tokenize(
    text: Annotated[str, typer.Argument(help="The text; `-` reads standard input.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Tokenize it as a chat with one user message.")
    ] = False,
    allow_special_tokens: sampling.AllowSpecialTokens = False,
    as_json: common.AsJson = False,
    address: common.Address = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = 10.0,
) -> None:
    """Show the token ids of a text, as the server's model reads it."""
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    words = sys.stdin.read() if text == "-" else text
    with common.connected(address, api_key, secure, timeout, named) as client:
        ids = client.tokenize(
            [{"role": "user", "content": words}] if chat else words,
            allow_special_tokens=allow_special_tokens or None,
        )
    if as_json:
        say(json.dumps({"token_ids": ids, "count": len(ids)}) + "\n")
    else:
        say(" ".join(map(str, ids)) + "\n")
        note(f"{len(ids)} tokens")
