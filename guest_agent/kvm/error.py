"""What goes wrong between this VMM and KVM, as one exception with the facts in fields."""

from __future__ import annotations


class KvmError(Exception):
    """KVM, or the guest under it, did something this VMM cannot go on from.

    Never raised for what a guest may legally do (that is an exit) nor for what a trap handler may answer.

    Attributes:
        exit_reason: KVM's name of the exit (``"KVM_EXIT_SHUTDOWN"``) or of the ioctl that failed (``"KVM_CREATE_VM"``).
        rip: guest RIP at that exit, None where there is none.
        suberror: KVM_EXIT_INTERNAL_ERROR's suberror or KVM_EXIT_FAIL_ENTRY's hardware reason, None elsewhere.
    """

    def __init__(self, what: str, *, exit_reason: str, rip: int | None = None, suberror: int | None = None) -> None:
        self.exit_reason = exit_reason
        self.rip = rip
        self.suberror = suberror
        place = "" if rip is None else f" at rip 0x{rip:x}"
        detail = "" if suberror is None else f" (suberror {suberror})"
        super().__init__(f"{exit_reason}{detail}{place}: {what}")
