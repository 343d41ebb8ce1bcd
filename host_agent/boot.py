"""A boot: a process takes a history up where the one before it stopped.

Everything survives it: VMs, vCPUs, tasks, sessions with their epochs, controls, exits, outcomes, request ids, armed
faults. Time goes on where it stopped, so that a lease or a deadline has left what it had left. New are the settings of
the configuration; the host serves again if it was draining.

The boot id stays, since it names the history that revisions are of. A history that was restored from a backup, or cut
off, is another one from there on: it has another boot id, and goes on with serials and epochs beyond any that may have
been handed out in what is lost.
"""

from __future__ import annotations

from typing import Final

from host_agent.commands import Boot
from host_agent.errors import invalid
from host_agent.state import HostState

#: What a history is made with and keeps: everything that is in it depends on it.
FIXED: Final = ("host", "cpus")
#: More than were ever handed out of one history.
_BEYOND: Final = 1 << 32


def boot(state: HostState, command: Boot) -> None:
    """Go on with ``command.config``. A limit that was set while running stands until the configured one changes."""
    before, config = state.config, command.config
    for name in FIXED:
        was, now = getattr(before, name), getattr(config, name)
        if was != now:
            raise invalid(name, f"{was!r}, which this host was made with", now)
    if config.byte_limit != before.byte_limit:
        state.allocator.host.set_limit(config.byte_limit)
    if not config.faults:
        state.faults.armed.clear()
    if config.boot_id != before.boot_id:
        state.serial += _BEYOND
        state.epoch += _BEYOND
    state.draining = False
    state.config = config
