"""The wheel, as a user gets it: built from the sdist, installed into an empty venv outside the clone, and run there.

Twice: with the versions of constraints.txt, and with the oldest ones that pyproject.toml admits. Only the base is
installed, so these tests also hold that a guest needs neither numpy nor anything else of the extras.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from fpstated import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"fpstated", "fpu_core", "host_agent", "guest_agent", "vmm_controller", "fault_lab", "fpstate"}

#: What pip says when the package index is out of reach, as opposed to a requirement that cannot be met.
NO_INDEX = re.compile("NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|ReadTimeoutError")

#: Prints where each package named on the command line was found, and whether its types count for a type checker.
LOCATE = """
import importlib.util, json, pathlib, sys
found = {name: pathlib.Path(importlib.util.find_spec(name).origin).parent for name in sys.argv[1:]}
print(json.dumps({name: [str(path), (path / "py.typed").is_file()] for name, path in found.items()}))
"""

#: Imports every module of the packages named on the command line; prints how many.
IMPORT_ALL = """
import importlib, pkgutil, sys
count = 0
for package in map(importlib.import_module, sys.argv[1:]):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
print(count)
"""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from the clone and the wheel from the sdist; return the wheel."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=["pinned", "oldest"])
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel's base into an empty venv outside the clone; return the venv's folder of programs."""
    home = tmp_path_factory.mktemp(request.param)
    oldest = home / "oldest.txt"
    oldest.write_text("".join(f"{name}=={version}\n" for name, version in _lower_bounds().items()))
    constraints = ROOT / "constraints.txt" if request.param == "pinned" else oldest
    venv.create(home / "venv", with_pip=False)
    _pip_install(home / "venv" / "bin" / "python", "-c", constraints, wheel)
    return home / "venv" / "bin"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    """Beside its metadata, the wheel holds the command's package, the five parts, and fpstate as itself."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert tops == PACKAGES | {f"fpstated-{__version__}.dist-info"}


def test_the_command_says_its_version(installed: Path) -> None:
    """`fpstated --version` prints the version of the tree that the wheel was built from."""
    assert _run(installed / "fpstated", "--version") == f"fpstated {__version__}\n"


def test_the_command_explains_itself(installed: Path) -> None:
    """`fpstated --help` works on the base install."""
    assert "Usage" in _run(installed / "fpstated", "--help")


def test_every_package_is_installed_and_typed(installed: Path) -> None:
    """Each package is found in the venv, not in the clone, and carries py.typed."""
    found = json.loads(_run(installed / "python", "-I", "-c", LOCATE, *sorted(PACKAGES)))
    outside = {name: path for name, (path, _) in found.items() if not Path(path).is_relative_to(installed.parent)}
    untyped = [name for name, (_, typed) in found.items() if not typed]
    assert (outside, untyped) == ({}, [])


def test_the_generated_modules_import_as_fpstate(installed: Path) -> None:
    """Every generated module imports under this grpcio and this protobuf, which refuse code newer than themselves."""
    assert int(_run(installed / "python", "-I", "-c", IMPORT_ALL, "fpstate")) > 0


def test_a_guest_needs_the_base_alone(installed: Path) -> None:
    """Every module of the guest agent imports where there is no numpy and none of the extras."""
    assert "numpy" not in _run(sys.executable, "-m", "pip", "--python", installed / "python", "list")
    _run(installed / "python", "-I", "-c", IMPORT_ALL, "guest_agent")


def _lower_bounds() -> dict[str, str]:
    """Return the oldest admitted version of each base dependency, from its `>=`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [re.match(r"([\w-]+)>=([\d.]+)", requirement) for requirement in project["dependencies"]]
    return {bound[1]: bound[2] for bound in bounds if bound}


def _pip_install(python: Path, *arguments: object) -> None:
    """Install with the development venv's pip, so that the empty venv stays empty; skip where there is no index."""
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
    try:
        _run(*pip, *arguments)
    except AssertionError as error:
        if NO_INDEX.search(str(error)):
            pytest.skip("the package index is out of reach, and the wheel's dependencies come from there")
        raise


def _run(*command: object) -> str:
    """Run a program away from the clone's folder; return its stdout, or fail with everything that it said."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)} ended with status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
