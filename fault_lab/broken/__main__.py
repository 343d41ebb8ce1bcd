"""``python -m fault_lab.broken NAME COMMAND ...``: the command ``fpstated COMMAND ...`` in a process that is broken."""

from __future__ import annotations

import sys

from fault_lab.broken.versions import VERSIONS, UnknownVersionError, planted, version_lines
from fpstated.cli import main


def broken(words: list[str]) -> int:
    """Break this process, say so, and run the command in it."""
    if not words or words[0] in {"-h", "--help", "list"}:
        print(__doc__, *version_lines(), sep="\n", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    name, *sys.argv[1:] = words
    try:
        with planted(name):
            print(f"fault_lab.broken: {name}: {VERSIONS[name].what}", file=sys.stderr)
            main()
    except UnknownVersionError as error:
        print(f"fault_lab.broken: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(broken(sys.argv[1:]))
