"""`make check`: everything that can be said about the code without running its tests.

Style, types, import rules, the contract's style, stubs that match the contract, and the wheel:
built, installed outside the tree, and generating. Every step runs, also after one has failed; the
exit code says whether all passed. `python tools/check.py NAME…` runs only those.
"""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
ROOMS = ("engine", "kernels", "service", "clients")
PROTO = Path("quire/v1/inference.proto")
BASELINE = Path("proto/baseline.binpb")


class Failed(Exception):
    """A step did not pass; the message says why, where its own output does not."""


def run(*command: str | Path, cwd: Path = ROOT, then: str = "", **environment: str) -> None:
    """Runs a program; Failed unless it exits with 0. then: what to do about it."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(words)}: exit code {done.returncode}{then and '; ' + then}")


def tool(name: str) -> Path:
    """A program of this environment."""
    return BIN / name


def style() -> None:
    ruff = tool("ruff")
    run(ruff, "check", ".", then=f"much of it is mended by {ruff} check --fix .")
    run(ruff, "format", "--check", ".", then=f"mended by {ruff} format .")


def types() -> None:
    """mypy, strict."""
    _under_their_names()
    run(tool("mypy"), "--config-file", "pyproject.toml")


def _under_their_names() -> Path:
    """The rooms lie at the top of the tree; in this folder links show them as one package."""
    links = ROOT / ".types" / "quire"
    links.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        _link(links / room, ROOT / room)
    for file in ("__init__.py", "py.typed"):
        _link(links / file, ROOT / "quire" / file)
    _link(links / "v1", ROOT / "proto" / "quire" / "v1")
    return links.parent


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def imports() -> None:
    config = ROOT / "pyproject.toml"
    allowed = "who may import whom: docs/architecture.md, and the contracts in pyproject.toml"
    run(tool("lint-imports"), "--config", config, cwd=_under_their_names(), then=allowed)


def contract(root: Path = ROOT) -> None:
    """The contract's style, and that what is released can still be spoken: see CONTRIBUTING.md."""
    rules = "its rules: CONTRIBUTING.md, The contract"
    run(tool("buf"), "lint", cwd=root, then=rules)
    run(tool("buf"), "breaking", "--against", BASELINE, cwd=root, then=rules)


def stubs() -> None:
    """The committed stubs are those that the contract gives today."""
    python = ROOT / ".venv-proto" / "bin" / "python"
    if not python.exists():
        raise Failed("no .venv-proto: run `make check`, which makes it")
    with tempfile.TemporaryDirectory() as made:
        outputs = [f"--{kind}_out={made}" for kind in ("python", "pyi", "grpc_python")]
        run(python, "-m", "grpc_tools.protoc", "-I", ".", *outputs, PROTO, cwd=ROOT / "proto")
        fresh = sorted((Path(made) / PROTO.parent).iterdir())
        committed = ROOT / "proto" / PROTO.parent
        stale = [f.name for f in fresh if not _same(f, committed / f.name)]
    if stale or not fresh:
        raise Failed(f"not what the contract gives: {', '.join(stale)}; run `make proto`")


def _same(a: Path, b: Path) -> bool:
    return b.exists() and filecmp.cmp(a, b, shallow=False)


def wheel() -> None:
    """Build the wheel, install it away from the tree, and let it serve and generate."""
    # What an earlier build has left there would get into this wheel, deleted files included.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    with tempfile.TemporaryDirectory() as directory:
        away = Path(directory)
        run(
            sys.executable, "-m", "build", "--wheel", "--no-isolation",
            "--outdir", away / "dist", ROOT, cwd=away,
        )  # fmt: skip
        python = _environment(away / "venv")
        (built,) = (away / "dist").glob("*.whl")
        run(
            sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
            "--no-index", "--disable-pip-version-check", built, cwd=away,
        )  # fmt: skip
        where = (
            "import sys, pathlib, quire, quire.v1, quire.engine, quire.kernels, quire.service,"
            " quire.clients; from quire import Client, __version__;"
            " sys.exit(not all(str(pathlib.Path(m.__file__)).startswith(sys.argv[1])"
            " for m in (quire, quire.clients, sys.modules[Client.__module__])))"
        )
        run(python, "-c", where, away, cwd=away)
        demo = away / "demo.py"
        demo.write_bytes((ROOT / "tools" / "demo.py").read_bytes())
        run(python, demo, "--plain", cwd=away)


def _environment(where: Path) -> Path:
    """An environment that has this one's packages, but Quire's only once it is installed there.

    A directory named in a .pth file goes onto the path, yet the .pth files inside it are not read:
    so the editable install of this tree stays out.
    """
    venv.create(where, with_pip=False)
    python = where / "bin" / "python"
    packages = where / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(ours) + "\n")
    return python


STEPS: dict[str, Callable[[], None]] = {
    "style": style,
    "types": types,
    "imports": imports,
    "contract": contract,
    "stubs": stubs,
    "wheel": wheel,
}


def main(names: list[str]) -> int:
    """Runs the named steps, or all; returns the exit code."""
    unknown = set(names) - set(STEPS)
    if unknown:
        print(f"check: no step {sorted(unknown)[0]!r}; there are {', '.join(STEPS)}")
        return 2
    failed = []
    for name in names or list(STEPS):
        print(f"── {name}", flush=True)
        begin = time.monotonic()
        try:
            STEPS[name]()
        except Failed as error:
            failed.append(name)
            print(f"   failed: {error}", flush=True)
        else:
            print(f"   passed in {time.monotonic() - begin:.1f} s", flush=True)
    print(f"check: {'failed: ' + ', '.join(failed) if failed else 'all passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
