"""What the threads of a VMM, its ioctls and the kernel do by chance: one function for each of ``fault_lab.plan.acts``.

Each is a generator that yields commands and is sent the reply of each, or the ``Refused``. It chooses among what is
there now; what cannot be done at the moment is refused by the host, or is no command at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fault_lab.sim import kernel_acts, signal_acts, task_acts, vmm_acts
from fault_lab.sim.hand import Act, Hand

#: Every act by its name.
PLAYED: Final[dict[str, Callable[[Hand], Act]]] = (
    task_acts.PLAYED | signal_acts.PLAYED | kernel_acts.PLAYED | vmm_acts.PLAYED
)
