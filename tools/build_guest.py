"""Build the guest programs, each .bin from the .S beside it, or check that they are what their sources build.

`python -m tools.build_guest` writes them, `--check` compares and ends with status 1 if one is stale. Needs GNU binutils
2.35 or newer (the tile mnemonics). An image is flat: no time, path or version of a tool goes into it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "guest_agent" / "kvm" / "guest.S"
SOURCES = (SOURCE, ROOT / "tests" / "differential" / "live_guest.S")
TEXT_ADDRESS = 0x10000


class BuildError(Exception):
    """binutils is missing, or could not build the source; the message is what it said."""


def missing_tools() -> str | None:
    """Return which of GNU as and ld is not on PATH, None if both are."""
    missing = [tool for tool in ("as", "ld") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not found (package binutils)" if missing else None


def build(source: Path = SOURCE) -> bytes:
    """Assemble and link `source`, and return the flat image.

    Raises:
        BuildError: as above.
    """
    missing = missing_tools()
    if missing:
        raise BuildError(missing)
    with tempfile.TemporaryDirectory() as folder:
        objects, image = Path(folder, "guest.o"), Path(folder, "guest.bin")
        _run("as", "--64", "-o", objects, source)
        link = ("-m", "elf_x86_64", "--oformat", "binary", "-Ttext", hex(TEXT_ADDRESS), "-e", hex(TEXT_ADDRESS))
        _run("ld", *link, "-o", image, objects)
        return image.read_bytes()


def main() -> int:
    """Run the command line; return its status."""
    parser = argparse.ArgumentParser(description="Build the guest programs from their sources.")
    parser.add_argument("--check", action="store_true", help="compare only; status 1 if one is stale")
    check: bool = parser.parse_args().check
    try:
        images = {source.with_suffix(".bin"): build(source) for source in SOURCES}
    except BuildError as error:
        print(f"build_guest: {error}", file=sys.stderr)
        return 1
    if not check:
        for path, image in images.items():
            path.write_bytes(image)
            print(f"{path.name}: {len(image)} bytes")
        return 0
    stale = [path for path, image in images.items() if path.read_bytes() != image]
    for path in images:
        print(f"{path.name}: {'stale, run python -m tools.build_guest' if path in stale else 'fresh'}")
    return 1 if stale else 0


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(done.stderr.strip())


if __name__ == "__main__":
    sys.exit(main())
