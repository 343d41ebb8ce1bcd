"""Generate protos/gen from protos/**/*.proto, or check that what is checked in is what would be generated.

python -m tools.gen_protos            write protos/gen anew
python -m tools.gen_protos --check    compare and change nothing; status 1 and the stale files' names if any differ
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.protoc import GEN, PROTOS, CompilerMissingError, run_protoc

#: Messages, their stubs, service classes, their stubs. Servicer methods are concrete in the stubs, as they are at run
#: time: one that a service leaves out answers UNIMPLEMENTED.
OUTPUTS = (
    "--python_out={out}",
    "--mypy_out=quiet:{out}",
    "--grpc_python_out={out}",
    "--mypy_grpc_out=quiet,generate_concrete_servicer_stubs:{out}",
)

PACKAGE_DOCSTRING = '"""Generated from protos/{folder} by tools/gen_protos.py; do not edit."""\n'


def generate(out: Path) -> None:
    """Write the whole generated tree into the directory `out`, which must exist and be empty.

    Raises:
        CompilerMissingError: there is no protoc, and none can be had.
        subprocess.CalledProcessError: a proto is wrong; protoc has said why on stderr.
    """
    run_protoc(*(option.format(out=out) for option in OUTPUTS))
    _remove_empty_service_modules(out)
    _write_package_files(out)


def stale_files(fresh: Path, checked_in: Path) -> list[str]:
    """Return one line per file that differs between two generated trees, sorted; empty when they are equal."""
    want, have = _contents(fresh), _contents(checked_in)
    lines = [f"missing   {name}" for name in want.keys() - have.keys()]
    lines += [f"left over {name}" for name in have.keys() - want.keys()]
    lines += [f"differs   {name}" for name in want.keys() & have.keys() if want[name] != have[name]]
    return sorted(lines, key=lambda line: line.split()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gen_protos", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is checked in and change nothing")
    check = parser.parse_args(arguments).check
    with tempfile.TemporaryDirectory(prefix="fpstate-gen-") as directory:
        fresh = Path(directory)
        try:
            generate(fresh)
        except CompilerMissingError as error:
            print(f"gen_protos: {error}", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as error:
            return error.returncode
        return _report(fresh) if check else _install(fresh)


def _report(fresh: Path) -> int:
    stale = stale_files(fresh, GEN)
    for line in stale:
        print(line)
    print("protos/gen is stale: run `make protos`" if stale else f"protos/gen is fresh ({len(_contents(GEN))} files)")
    return 1 if stale else 0


def _install(fresh: Path) -> int:
    """Make protos/gen equal to `fresh`, touching only files that change (what runs meanwhile keeps its modules)."""
    stale = stale_files(fresh, GEN)
    want, have = _contents(fresh), _contents(GEN)
    for name in have.keys() - want.keys():
        (GEN / name).unlink()
    for name, content in want.items():
        if have.get(name) != content:
            (GEN / name).parent.mkdir(parents=True, exist_ok=True)
            (GEN / name).write_bytes(content)
    print(f"protos/gen: {len(want)} files, {len(stale)} changed")
    return 0


def _remove_empty_service_modules(out: Path) -> None:
    """Remove the _pb2_grpc modules of protos that define no service: protoc writes them, with nothing in them."""
    for module in out.rglob("*_pb2_grpc.py"):
        proto = PROTOS / module.relative_to(out).with_name(module.name.replace("_pb2_grpc.py", ".proto"))
        if not any(line.startswith("service ") for line in proto.read_text().splitlines()):
            module.unlink()
            module.with_suffix(".pyi").unlink(missing_ok=True)


def _write_package_files(out: Path) -> None:
    """Make every folder a regular package and the top one typed: wheel, editable install and mypy then agree."""
    folders = {folder for module in out.rglob("*_pb2.py") for folder in module.relative_to(out).parents} - {Path()}
    for folder in folders:
        (out / folder / "__init__.py").write_text(PACKAGE_DOCSTRING.format(folder=folder))
        if folder.parent == Path():
            (out / folder / "py.typed").touch()


def _contents(tree: Path) -> dict[str, bytes]:
    """Return every file of a tree by its relative name; byte code caches are not part of it."""
    files = (path for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(tree)): path.read_bytes() for path in files}


if __name__ == "__main__":
    sys.exit(main())
