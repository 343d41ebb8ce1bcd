"""Where a host keeps its state, unless somebody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


class StateDirError(ValueError):
    """There is no such place; the text says what to give instead."""


def default_state_dir(name: str) -> Path:
    """The directory of the host called ``name``: of systemd's service, else under the user's state home.

    A host's name is its identity on the wire, and so in the file system: the same name goes on with the same state,
    wherever it listens. Raises ``StateDirError``.
    """
    service = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if service:
        return Path(service)
    if not name or "/" in name or name.startswith(".") or "\0" in name:
        raise StateDirError(f"the name {name!r} cannot name a directory: give --state-dir DIR, or --ephemeral")
    # Source: XDG Base Directory Specification: a relative path in the variable is to be ignored.
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not home.is_absolute():
        try:
            home = Path.home() / ".local" / "state"
        except RuntimeError as error:
            raise StateDirError(f"no state home ({error}): give --state-dir DIR, or --ephemeral") from error
    return home / "fpstated" / name
