"""The examples over TLS and with a key, against a server as anybody would start it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import programs
from support.patience import PATIENCE
from support.server_process import process

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent
OPENSSL = shutil.which("openssl")
ASKED = "Count from 3 to 7."
KEY = "an-example-key-of-32-characters!"

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl command here")


@dataclass(frozen=True)
class Place:
    """A server: its address, its authority, and a certificate of somebody else's."""

    address: str
    authority: Path
    stranger: Path


def environment(key: str | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
    given = {} if key is None else {"QUIRE_CLIENT_API_KEY": key}
    return {**kept, "OMP_NUM_THREADS": "1", **given}


def run(
    *command: str | Path, key: str | None = KEY, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    if command[0] in (sys.executable, BIN / "quire"):
        return programs.run(command, timeout=PATIENCE, given=stdin, env=environment(key))
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
        cwd=ROOT, env=environment(key), input=stdin,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """`quire serve` with a certificate of an authority of its own, and one key."""
    where = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30")
    for name in ("ca", "stranger"):
        made = run(
            *(str(OPENSSL), "req", "-x509", *key, "-keyout", where / f"{name}.key"),
            *("-out", where / f"{name}.crt", "-subj", f"/CN={name}"),
        )
        assert made.returncode == 0, made.stderr
    made = run(
        *(str(OPENSSL), "req", "-x509", *key, "-keyout", where / "tls.key"),
        *("-CA", where / "ca.crt", "-CAkey", where / "ca.key", "-out", where / "tls.crt"),
        *("-subj", "/CN=quire", "-addext", "subjectAltName=DNS:localhost"),
        *("-addext", "basicConstraints=CA:FALSE"),
    )
    assert made.returncode == 0, made.stderr
    line = run(BIN / "quire", "hash-key", "example", "--stdin", stdin=KEY)
    assert line.returncode == 0, line.stderr
    (where / "keys").write_text(line.stdout)
    tls = ("--tls-cert", str(where / "tls.crt"), "--tls-key", str(where / "tls.key"))
    with process("--model", "pocket", *tls, "--api-keys", str(where / "keys")) as server:
        port = server.address().rsplit(":", 1)[1]
        yield Place(f"localhost:{port}", where / "ca.crt", where / "stranger.crt")


def check(place: Place, *program: str | Path) -> None:
    """It answers with the key and the authority, and says what is wrong without either."""
    done = run(*program, ASKED, place.address, place.authority)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3, 4, 5, 6, 7" in done.stdout
    refused = run(
        *program, ASKED, place.address, place.authority, key="another-key-of-32-characters-xxx"
    )
    assert refused.returncode == 1 and "UNAUTHENTICATED" in refused.stderr
    mistrusted = run(*program, ASKED, place.address, place.stranger)
    assert mistrusted.returncode == 1 and "UNAVAILABLE" in mistrusted.stderr
    for done in (refused, mistrusted):
        assert KEY not in done.stdout + done.stderr


def test_python(place: Place) -> None:
    check(place, sys.executable, EXAMPLES / "python_tls.py")


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
@pytest.mark.skipif(
    not (EXAMPLES / "node" / "node_modules").is_dir(), reason="`make node` brings what it needs"
)
def test_node(place: Place) -> None:
    check(place, "node", EXAMPLES / "node" / "chat.js")


@pytest.mark.skipif(not (BIN / "buf").exists(), reason="no buf here")
def test_buf_curl_as_the_page_has_it(place: Place) -> None:
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```\n(buf curl [^`]*?--cacert[^`]*?)```", page)
    shown = command.replace("https://localhost:50051", f"https://{place.address}")
    shown = shown.replace("--cacert ca.crt", f"--cacert {place.authority}")
    assert place.address in shown and str(place.authority) in shown
    done = run("bash", "-c", f'PATH="{BIN}:$PATH"; {shown}')
    assert done.returncode == 0, done.stderr
    assert '"reason": "FINISH_REASON_' in done.stdout
    refused = run("bash", "-c", f'PATH="{BIN}:$PATH"; {shown}', key="another-key")
    assert refused.returncode != 0 and "unauthenticated" in refused.stderr


def test_no_lock_file_names_a_registry() -> None:
    assert not list((EXAMPLES / "node").glob("*lock*"))
