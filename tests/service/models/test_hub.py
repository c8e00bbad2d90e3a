"""A model from a Hub on loopback: what is fetched, and what is said when it cannot be."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.patience import PATIENCE

from quire.service.models import pocket

REPO, REVISION, COMMIT = "someone/small", "main", "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys
from quire.engine.config import EngineConfig
from quire.engine.errors import QuireError
from quire.service.models.resolve import resolve
try:
    config = EngineConfig(model=sys.argv[1], revision=sys.argv[2] or None)
    print(resolve(config, weights="bare" not in sys.argv).engine_model)
except QuireError as error:
    sys.exit(f"refused: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """Just enough of the Hub's interface: a listing, and files with their hashes."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        type(self).asked.append(path)
        if path in (f"/api/models/{REPO}/revision/{REVISION}", f"/api/models/{REPO}/revision/v1"):
            siblings = [{"rfilename": name} for name in self.files]
            listing = {"id": REPO, "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(listing).encode(), body=body)
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files.items()
            ]
            return self.send(200, json.dumps(tree).encode(), body=body)
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name in self.files:
            return self.send(200, self.files[name], body=body)
        missing = "RevisionNotFound" if f"/{REPO}/revision" in path else "RepoNotFound"
        return self.send(404, b"", body=body, error=missing)

    def send(self, status: int, content: bytes, *, body: bool, error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


CONFIG = pocket.directory() / "config.json"
_NAMES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
FILES = {
    "pytorch_model.bin": b"pickle",
    "modeling_x.py": b"evil()",
    "README.md": b"#",
    **{path.name: path.read_bytes() for path in (CONFIG, *map(CONFIG.with_name, _NAMES))},
}


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Hub,), {"files": FILES, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(
    endpoint: str, cache: Path, revision: str = "", repo: str = REPO, *words: str, **more: str
) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    kept |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, repo, revision, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**kept, **more},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return (done.stdout if done.returncode == 0 else done.stderr).strip()


def test_only_safetensors_and_json_are_fetched(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    directory = Path(fetch(endpoint, tmp_path, "v1"))
    fetched = {path.name for path in directory.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= fetched
    assert not fetched & {"pytorch_model.bin", "modeling_x.py", "README.md"}
    assert not any("pytorch_model" in path or "modeling" in path for path in asked)
    expected = (pocket.directory() / "model.safetensors").read_bytes()
    assert (directory / "model.safetensors").read_bytes() == expected
    # Once it is here, no network is needed.
    assert fetch("http://127.0.0.1:9", tmp_path, "v1", HF_HUB_OFFLINE="1") == str(directory)


def test_a_configuration_is_fetched_without_weights(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, asked = hub
    directory = Path(fetch(endpoint, tmp_path, "v1", REPO, "bare"))
    assert {path.name for path in directory.iterdir()} == {"config.json", "generation_config.json"}
    assert not any("safetensors" in path or "tokenizer" in path for path in asked)
    assert Path(fetch(endpoint, tmp_path, "v1")) == directory, "the same model, and now its weights"
    assert (directory / "model.safetensors").exists()


def test_what_cannot_be_run_is_refused_before_its_weights_are_fetched(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, asked = hub
    config = json.loads(CONFIG.read_bytes()) | {"quantization_config": {"quant_method": "awq"}}
    monkeypatch.setitem(FILES, "config.json", json.dumps(config).encode())
    said = fetch(endpoint, tmp_path).splitlines()[-1]
    assert said.startswith("refused: ") and "AWQ is not supported; supported: float32" in said
    assert not any("safetensors" in path or "tokenizer" in path for path in asked)


def test_what_cannot_be_fetched_is_one_line(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, _ = hub
    revision = fetch(endpoint, tmp_path, "v9").splitlines()[-1]
    assert revision.startswith("refused: ") and "v9" in revision
    missing = fetch(endpoint, tmp_path, repo="someone/else").splitlines()[-1]
    assert missing.startswith("refused: ") and "someone/else" in missing
    offline = fetch("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1").splitlines()[-1]
    assert offline.startswith("refused: ") and "cannot be reached" in offline
    nobody = fetch("http://127.0.0.1:9", tmp_path).splitlines()[-1]
    assert nobody.startswith("refused: ") and REPO in nobody
