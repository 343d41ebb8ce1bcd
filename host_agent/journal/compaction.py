"""What is kept: the last two snapshots, the records since the older of them, and some history for whoever watches.

With the older snapshot and its records the newest may turn out to be bad without anything being lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from host_agent.journal.snapshot import snapshots
from host_agent.journal.store import Store

SNAPSHOTS_KEPT: Final = 2
#: Records deleted in one go: the commits between two goes do not wait for all of them.
_PORTION: Final = 2000


def forget_snapshots(directory: Path) -> int:
    """Delete all but the last two snapshots; returns the number of the older one, 0 where there are fewer."""
    found = snapshots(directory)
    for _, path in found[SNAPSHOTS_KEPT:]:
        path.unlink(missing_ok=True)
    return found[SNAPSHOTS_KEPT - 1][0] if len(found) >= SNAPSHOTS_KEPT else 0


def forget_parts(directory: Path) -> None:
    """Delete what a process that was killed has left of a snapshot."""
    for path in directory.glob("snapshot-*.part"):
        path.unlink(missing_ok=True)


def forget_records(store: Store, through: int) -> bool:
    """Delete a portion of the records up to a number; returns whether there may be more of them."""
    return store.forget(through, at_most=_PORTION) == _PORTION
