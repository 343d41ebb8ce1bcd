"""``python -m fault_lab.broken NAME COMMAND ...``: the command ``fpstated COMMAND ...`` in a process that is broken."""

from __future__ import annotations

import sys

from fault_lab.broken.versions import VERSIONS, UnknownVersionError, plant
from fpstated.cli import main


def broken(words: list[str]) -> int | None:
    """Break the process, say so, and run the command."""
    if not words or words[0] in {"-h", "--help"}:
        print(__doc__, *(f"  {name:16}{what}" for name, (what, _plant) in VERSIONS.items()), sep="\n")
        return 0 if words else 2
    try:
        plant(words[0])
    except UnknownVersionError as error:
        print(f"fault_lab.broken: {error}", file=sys.stderr)
        return 2
    print(f"fault_lab.broken: {words[0]}: {VERSIONS[words[0]][0]}", file=sys.stderr)
    sys.argv[1:] = words[1:]
    main()
    return None


if __name__ == "__main__":
    sys.exit(broken(sys.argv[1:]))
