"""What is packaged is what is there: every package of the tree is named in pyproject.toml."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"engine": "engine", "kernels": "kernels", "service": "service", "clients": "clients"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def packages_on_disk() -> set[str]:
    found = {"quire", "quire.v1"}
    for name, directory in ROOMS.items():
        for file in (ROOT / directory).rglob("*.py"):
            parts = file.parent.relative_to(ROOT / directory).parts
            found.add(".".join(("quire", name, *parts)))
    return found


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    listed = set(project["tool"]["setuptools"]["packages"])
    missing = packages_on_disk() - listed
    assert not missing, f"these would vanish from the wheel: {sorted(missing)}"
    for name in listed - {"quire", "quire.v1"}:
        assert (ROOT.joinpath(*name.split(".")[1:])).is_dir(), name


def test_no_package_lacks_its_init(project: dict[str, Any]) -> None:
    for name in project["tool"]["setuptools"]["packages"]:
        parts = name.split(".")[1:]
        where = ROOT / "proto/quire/v1" if parts == ["v1"] else ROOT.joinpath(*parts or ["quire"])
        has_python = any(where.glob("*.py"))
        assert (where / "__init__.py").exists() or not has_python, name


def test_the_rooms_say_that_they_are_typed() -> None:
    for room in ("quire", *ROOMS.values()):
        assert (ROOT / room / "py.typed").exists(), room


def test_the_licence_is_told_by_its_spdx_name(project: dict[str, Any]) -> None:
    """setuptools announces that it builds nothing from a table any more."""
    assert project["project"]["license"] == "MIT"
    (file,) = project["project"]["license-files"]
    assert (ROOT / file).read_text(encoding="utf-8").startswith("MIT License")


def test_the_light_install_is_light(project: dict[str, Any]) -> None:
    heavy = ("torch", "triton", "transformers", "numpy", "jinja2", "safetensors", "matplotlib")
    base = " ".join(project["project"]["dependencies"]).lower()
    assert not [name for name in heavy if name in base]
    assert not [name for name in heavy if name in str(project["build-system"])]


def test_the_server_does_without_transformers(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    assert not [name for name in extras["server"] if name.startswith("transformers")]
    assert [name for name in extras["dev"] if name.startswith("transformers")]
    wanted = re.compile(r"^\s*(import|from) transformers\b", re.MULTILINE)
    for room in ROOMS.values():
        for file in (ROOT / room).rglob("*.py"):
            assert not wanted.search(file.read_text(encoding="utf-8")), file


def test_constraints_pin_every_direct_dependency(project: dict[str, Any]) -> None:
    pinned = {
        line.split("==")[0].lower().replace("-", "_"): line.split("==")[1]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    wanted = list(project["project"]["dependencies"])
    for extra in ("server", "loadtest", "course", "dev"):
        wanted += project["project"]["optional-dependencies"][extra]
    for requirement in wanted:
        name = requirement.split(">")[0].split("[")[0].split(";")[0].strip()
        assert name == "quire" or name.lower().replace("-", "_") in pinned, name
    assert pinned["torch"] == "2.13.0"


def test_entry_points_are_installed() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="quire")
    assert {e.value for e in scripts} == {"quire.clients.cli:main"}
    servers = importlib.metadata.entry_points(group="quire.commands")
    assert {e.value for e in servers} == {"quire.service.cli.commands:register"}


def test_the_front_door_offers_what_the_clients_do() -> None:
    import quire
    import quire.clients

    assert set(quire.__all__) == {*quire.clients.__all__, "__version__"}
    assert set(quire.__all__) <= set(dir(quire))
    for name in quire.clients.__all__:
        assert getattr(quire, name) is getattr(quire.clients, name)
    assert quire.__version__ == importlib.metadata.version("quire")
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = quire.nothing_such


def test_the_front_door_is_light() -> None:
    """Neither gRPC nor the clients are loaded before one of them is asked for."""
    program = (
        "import sys, quire; before = set(sys.modules); from quire import Client;"
        " print(sorted({'grpc', 'quire.clients', 'google.protobuf'} & before),"
        " 'grpc' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.split("\n")[0] == "[] True"


def test_nobody_is_told_to_install_by_name() -> None:
    """The name is not published: whoever owns it there is somebody else."""
    texts = [ROOT / "README.md", ROOT / "README.zh.md", *(ROOT / "docs").glob("*.md")]
    for room in (*ROOMS.values(), "benchmarks", "examples", "course"):
        texts += [*(ROOT / room).rglob("*.py"), *(ROOT / room).rglob("*.md")]
    by_name = re.compile(r"quire\[[a-z]|pip3? install ['\"]?quire\b")
    told = {str(path) for path in texts if by_name.search(path.read_text(encoding="utf-8"))}
    assert not told


def test_scripts_that_tests_import_have_names_of_their_own() -> None:
    """Their folders are on the path together in a process that collects all tests."""
    folders = ("course", "tools/pocket", "tests/shared")
    names = [path.stem for folder in folders for path in (ROOT / folder).glob("*.py")]
    assert sorted(names) == sorted(set(names))


def test_folders_that_tests_put_on_the_path_have_no_module_of_one_name() -> None:
    """Whichever came first would be imported for both in one process."""
    folders = [ROOT / name for name in ("benchmarks", "course", "tests/shared", "tools/pocket")]
    names = [file.stem for folder in folders for file in folder.glob("*.py")]
    assert sorted(names) == sorted(set(names))
