"""What the core can tell an observer, in order: hardware operations, allocations, warnings.

A host runs without a tracer (``None``) and pays one test; the differential tests and the timeline of the demo listen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fpu_core.fpstate import Fpstate


class CoreTracer(Protocol):
    """The observer. Calls come in the order the operations happen; none may change anything."""

    def vzalloc(self, size_bytes: int, fpstate: Fpstate | None) -> None:
        """``size_bytes`` were taken for ``fpstate``, or could not be (None)."""

    def vfree(self, fpstate: Fpstate) -> None:
        """The memory of ``fpstate`` was given back."""

    def shrink(self, old: Fpstate, new: Fpstate) -> None:
        """``new`` stands in the first part of the memory of ``old``; what lay behind was given back."""

    def save(self, fpstate: Fpstate, rfbm: int) -> None:
        """Registers were saved into ``fpstate`` with requested-feature bitmap ``rfbm``."""

    def restore(self, fpstate: Fpstate, rfbm: int) -> None:
        """Registers were restored from ``fpstate`` with ``rfbm``."""

    def copy(self, to: Fpstate, of: Fpstate) -> None:
        """The image of ``of`` was copied to ``to`` in memory: under ``three_buffer`` only."""

    def write_xfd(self, value: int) -> None:
        """IA32_XFD was written."""

    def pr_err(self, text: str) -> None:
        """The kernel would print an error."""

    def warn(self, condition: str) -> None:
        """The kernel would WARN: ``condition``, in the kernel's spelling, holds and must not."""
