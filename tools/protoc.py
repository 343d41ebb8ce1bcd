"""The protobuf compiler of the tree, in a venv of its own.

build/gen-venv is made from tools/protoc-requirements.txt when it is missing or those change. The compiler is the oldest
grpcio-tools that we support and pins an old protobuf, which in the development venv would hold back the runtime that
the tests should see.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = PROTOS / "gen"
GEN_VENV = ROOT / "build" / "gen-venv"
REQUIREMENTS = ROOT / "tools" / "protoc-requirements.txt"

#: The plugins of mypy-protobuf, which write the stubs.
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


class CompilerMissingError(Exception):
    """The compiler's venv could not be made: no index in reach, or no wheel for this Python or machine."""


def run_protoc(*outputs: str) -> None:
    """Compile every proto below protos/ with the output options given, `--python_out=DIR` for instance.

    Raises:
        CompilerMissingError: the compiler's venv could not be made; pip has said why on stderr.
        subprocess.CalledProcessError: a proto is wrong; protoc has said why on stderr.
    """
    python = _generator_python()
    plugins = [f"--plugin={name}={python.parent / name}" for name in PLUGINS]
    include = [f"-I{PROTOS}", f"-I{_google_protos(python)}"]
    sources = [str(path.relative_to(PROTOS)) for path in proto_files()]
    subprocess.run([python, "-m", "grpc_tools.protoc", *plugins, *include, *outputs, *sources], check=True)


def proto_files() -> list[Path]:
    """Return our protos, sorted; those of Google that they import come with the compiler."""
    return sorted(path for path in PROTOS.rglob("*.proto") if GEN not in path.parents)


def _generator_python() -> Path:
    """Return the interpreter of the compiler's venv, which is made anew when its requirements or its place changed."""
    python = GEN_VENV / "bin" / "python"
    stamp = GEN_VENV / "made-from.txt"
    wanted = f"# {GEN_VENV}\n{REQUIREMENTS.read_text()}"
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        print(f"setting up {GEN_VENV.relative_to(ROOT)} (the protobuf compiler)", flush=True)
        _make_venv(python)
        stamp.write_text(wanted)
    return python


def _make_venv(python: Path) -> None:
    # Wheels alone: to build the compiler from source takes a C++ tool chain and a quarter of an hour.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(GEN_VENV)], check=True)
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    except subprocess.CalledProcessError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise CompilerMissingError(f"{REQUIREMENTS.relative_to(ROOT)} does not install on Python {version}") from error


def _google_protos(python: Path) -> Path:
    """Return the folder that holds google/rpc/*.proto: the compiler's own site-packages."""
    program = "import google.rpc; print(list(google.rpc.__path__)[0])"
    answer = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    return Path(answer.stdout.strip()).parent.parent
