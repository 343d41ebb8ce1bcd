"""The core's tracer, printing: every hardware operation and allocation in the order they happen."""

from __future__ import annotations

from collections.abc import Callable

from fpu_core.config import FpuConfig
from fpu_core.fpstate import Fpstate
from fpu_core.xfeature import format_mask
from tests.scenarios.lanes import Lanes


class LaneTracer:
    """A ``fpu_core.trace.CoreTracer``. ``owner_of`` names whose container it is, empty for one just made."""

    def __init__(self, lanes: Lanes, config: FpuConfig, owner_of: Callable[[Fpstate], str]) -> None:
        self._lanes = lanes
        self._save, self._restore = _instructions(config)
        self._owner_of = owner_of

    def vzalloc(self, size_bytes: int, fpstate: Fpstate | None) -> None:
        """An allocation, image and header, or that there was no memory."""
        self._lanes.inner(f"vzalloc  {size_bytes} B", "" if fpstate is not None else "NULL")

    def vfree(self, fpstate: Fpstate) -> None:
        """A container given back."""
        self._lanes.inner(f"vfree    {fpstate.allocated_bytes} B")

    def shrink(self, old: Fpstate, new: Fpstate) -> None:
        """A container shrunk in place."""
        self._lanes.inner(f"vrealloc {old.allocated_bytes} B -> {new.allocated_bytes} B")

    def save(self, fpstate: Fpstate, rfbm: int) -> None:
        """Registers into a container."""
        self._operation(self._save, "->", fpstate, rfbm)

    def restore(self, fpstate: Fpstate, rfbm: int) -> None:
        """A container into registers."""
        self._operation(self._restore, "<-", fpstate, rfbm)

    def copy(self, to: Fpstate, of: Fpstate) -> None:
        """An image copied in memory."""
        target = self._owner_of(to) or "a new image"
        self._lanes.inner(f"memcpy   -> {target}, {of.size} B", f"from {self._owner_of(of)}")

    def write_xfd(self, value: int) -> None:
        """IA32_XFD changes."""
        self._lanes.inner(f"WRMSR    IA32_XFD = {format_mask(value)}")

    def pr_err(self, text: str) -> None:
        """What the kernel would log."""
        self._lanes.inner(f"pr_err: {text}")

    def warn(self, condition: str) -> None:
        """What the kernel would warn of."""
        self._lanes.inner(f"WARN({condition})")

    def _operation(self, name: str, arrow: str, fpstate: Fpstate, rfbm: int) -> None:
        owner = self._owner_of(fpstate) or "a new container"
        self._lanes.inner(f"{name:<8} {arrow} {owner}, {fpstate.size} B", f"rfbm={rfbm:#x}")


def _instructions(config: FpuConfig) -> tuple[str, str]:
    """What the kernel saves and restores with on this processor."""
    caps = config.caps
    if not config.xsave:
        return "FXSAVE", "FXRSTOR"
    if caps.XSAVES:
        return "XSAVES", "XRSTORS"
    if caps.XSAVEC:
        return "XSAVEC", "XRSTOR"
    return ("XSAVEOPT" if caps.XSAVEOPT else "XSAVE"), "XRSTOR"
