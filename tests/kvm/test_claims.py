"""What the founding mail claims for its swap, checked by counting against the scheme it replaces.

"there is only _one_ buffer required and in case that TIF_NEED_FPU_RELOAD is set there is no memcpy() required either";
"No 4 copies of XFD"; "will only grow a single conditional in the hotpath"; nothing where XFD is not available.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from fpu_core import swap
from fpu_core.sched import switch_to
from tests.core.rig import Lines
from tests.core.world import Guest, World
from tests.kvm.test_xfd import AMX, entered

ON_DEMAND = ("on_swap", "on_write", "on_cpuid")
LARGEST = 10_752


def running(policy: str, profile: str = "sapphire-rapids") -> tuple[World, Guest]:
    """A vCPU in the guest, with everything its host has in its CPUID; saves and restores are not elided."""
    supported = World.create(profile).vms["a"].supported_xcr0
    world, guest = entered(profile, cpuid=supported, policy=policy, permitted=bool(supported >> 18 & 1))
    for cpu in world.cpus:
        cpu.eager = True
    return world, guest


@pytest.mark.parametrize("policy", [*ON_DEMAND, "three_buffer"])
def test_one_buffer_less(policy: str) -> None:
    """One thread and one vCPU are two containers, before growth and after it; with three buffers they are three."""
    world, guest = running(policy)
    for name in ("a/vcpu", "b/main", "b/vcpu"):
        world.exit(world.tasks[name])
    wanted = 3 if policy == "three_buffer" else 2
    assert len(world.view().containers) == wanted
    world.xsetbv(guest, AMX)
    assert guest.vcpu.xcr0 == AMX
    assert len(world.view().containers) == wanted
    world.leave(guest)
    assert len(world.view().containers) == wanted


@pytest.mark.parametrize("policy", [*ON_DEMAND, "three_buffer"])
def test_no_memcpy_where_the_state_is_saved_already(policy: str) -> None:
    """A thread that lost its CPU inside the guest leaves it without a save; with three buffers, by copying an image."""
    world, guest = running(policy)
    world.guest_write(guest, 1, 0, b"vector")
    fpu = guest.vcpu.fpu
    assert fpu is not None
    switch_to(world.cpus[0], None)
    switch_to(world.cpus[0], fpu)
    saves, copied = world.cpus[0].counters.saves, world.cpus[0].counters.bytes_copied
    world.leave(guest)
    assert world.cpus[0].counters.saves == saves
    assert world.cpus[0].counters.bytes_copied - copied == (LARGEST if policy == "three_buffer" else 0)
    world.check()


@pytest.mark.parametrize("policy", [*ON_DEMAND, "three_buffer"])
def test_no_copies_of_xfd(policy: str) -> None:
    """XFD is in the container and goes with it. Between three buffers each swap copies it, there and back."""
    world, guest = running(policy)
    fpu = world.tasks["a/main"].fpu
    counters = world.cpus[0].counters
    before = counters.xfd_copies
    for _run in range(10):
        world.leave(guest)
        world.enter(guest, fpu)
    assert counters.xfd_copies - before == (40 if policy == "three_buffer" else 0)


def test_the_same_guest_moves_the_same_register_bytes() -> None:
    """The copies come on top: what XSAVE and XRSTOR move per vcpu_run is the same under every policy."""
    moved = {policy: _per_run(policy) for policy in (*ON_DEMAND, "three_buffer")}
    assert len(set(moved.values())) == 1, moved


def _per_run(policy: str) -> tuple[int, ...]:
    world, guest = running(policy)
    world.xsetbv(guest, AMX)
    world.guest_write(guest, 18, 0, b"tiles")
    counters = world.cpus[0].counters
    before = counters.saves, counters.restores, counters.bytes_saved, counters.bytes_restored, counters.xfd_writes
    world.leave(guest)
    world.enter(guest, world.tasks["a/main"].fpu)
    after = counters.saves, counters.restores, counters.bytes_saved, counters.bytes_restored, counters.xfd_writes
    return tuple(b - a for a, b in zip(before, after, strict=True))


# -- the hot path ------------------------------------------------------------------------------------------------------


def test_a_swap_without_a_request_executes_one_condition_more() -> None:
    """Against the same function with the request taken out of its source: the same operations, and one condition.

    Two lines more are executed: one reads the request, the other tests it.
    """
    plain = _without_the_request()
    operations, lines = _leave_with(swap.swap_out)
    plain_operations, plain_lines = _leave_with(plain)
    assert operations == plain_operations
    assert len(lines) == len(plain_lines) + 2
    assert _conditions(_tree(swap.swap_out)) == _conditions(_tree_without()) + 1


def _tree(function: Callable[..., Any]) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _tree_without() -> ast.Module:
    """The source of swap_out without the two statements that speak of the request."""
    tree = _tree(swap.swap_out)
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    kept = [each for each in function.body if not _speaks_of_request(each)]
    assert len(function.body) - len(kept) == 2
    function.body = kept
    return tree


def _speaks_of_request(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "request" for node in ast.walk(statement))


def _without_the_request() -> Callable[..., Any]:
    found: dict[str, Any] = {}
    exec(compile(_tree_without(), "swap_out without a request", "exec"), vars(swap), found)  # noqa: S102 -- our source
    made: Callable[..., Any] = found["swap_out"]
    return made


def _conditions(tree: ast.AST) -> int:
    return sum(isinstance(node, ast.If | ast.IfExp | ast.While) for node in ast.walk(tree))


def _leave_with(function: Callable[..., Any]) -> tuple[list[str], list[int]]:
    """Leave the guest by ``function``; what the hardware did, and which lines of the function were executed."""
    world, guest = running("on_swap")
    world.guest_write(guest, 1, 0, b"vector")
    seen = Lines()
    for cpu in world.cpus:
        cpu.tracer = seen
    lines: list[int] = []

    def trace(frame: FrameType, event: str, _arg: object) -> Any:  # noqa: ANN401 -- as sys.settrace() has it
        if frame.f_code is function.__code__:
            if event == "line":
                lines.append(frame.f_lineno)
            return trace
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert function(world.tasks["a/main"].fpu, guest.vcpu.guest) is None
    finally:
        sys.settrace(before)
    return seen.lines, lines


@pytest.mark.parametrize("policy", [*ON_DEMAND, "three_buffer"])
def test_nothing_where_xfd_is_absent(policy: str) -> None:
    """On a processor without XFD nothing writes it, and a run does what it does elsewhere without those writes."""
    without, with_xfd = _operations(policy, "ice-lake"), _operations(policy, "sapphire-rapids")
    assert not any("xfd" in line for line in without)
    kinds = [line.split()[0] for line in with_xfd if "xfd" not in line]
    assert [line.split()[0] for line in without] == kinds


def _operations(policy: str, profile: str) -> list[str]:
    world, guest = running(policy, profile)
    world.xsetbv(guest, 0x2E7)
    seen = Lines()
    for cpu in world.cpus:
        cpu.tracer = seen
    for _run in range(3):
        world.guest_write(guest, 1, 0, b"vector")
        world.leave(guest)
        world.enter(guest, world.tasks["a/main"].fpu)
    return seen.lines
