"""The audit: what clients were told against what there is.

lost         something was acknowledged and is not there
duplicated   something happened more often than it was asked for
diverged     something is there that nobody asked for, or is not what it must be
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from fpu_core.errors import Errno
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.xsave_ioctl import get_xsave2
from host_agent.state import HostState
from tests.crash import model
from tests.crash.record import Record
from tests.crash.twin import Twin

#: XMM0 in an XSAVE image. Source: SDM vol. 1, 13.4.1.
_XMM_OFFSET: Final = 160
_XMM_BYTES: Final = model.REGISTERS * model.REGISTER_BYTES

Finding = tuple[str, str]


def audit(record: Record, twin: Twin) -> Iterator[Finding]:
    """Yield what is wrong, as (how, text).

    A line of a client may still be on its way to the parent: what is right a moment later was never wrong.
    """
    with record.lock:
        state = twin.machine.state
        yield from _things(record, state)
        yield from _bumps(record, state)
        yield from _events(record, state)
        yield from _decisions(record, twin)


def _things(record: Record, state: HostState) -> Iterator[Finding]:
    there = {("vm", vm.id): vm.uid for vm in state.vms.values() if vm.id.partition("-")[0] == record.name}
    owned = [fault for fault in state.faults.armed.values() if fault.owner.partition(":")[0].startswith(record.name)]
    there |= {("fault", fault.owner): fault.name for fault in owned}
    for (kind, name), thing in record.things.items():
        if kind == "vcpu" or not thing.settled:
            continue
        found = there.get((kind, name))
        if found is None:
            yield "lost", f"{kind} {name} was acknowledged, and is not there"
        elif thing.answer not in ("", found):
            yield "duplicated", f"{kind} {name} was acknowledged as {thing.answer}, and is {found}"
    for extra in there.keys() - record.things.keys():
        yield "lost", f"{extra}: that it was deleted was acknowledged, and it is there"
    for owner, count in Counter(fault.owner for fault in owned).items():
        if count > 1:
            yield "duplicated", f"fault {owner} was armed {count} times"


def _bumps(record: Record, state: HostState) -> Iterator[Finding]:
    for name, asked in record.bumps_asked.items():
        done = record.bumps_done.get(name, 0)
        (vcpu,) = state.vm(f"vms/{name}").kvm.vcpus.values()
        if vcpu.incarnation - 1 < done:
            yield "lost", f"{done} resets of {name} were acknowledged, and {vcpu.incarnation - 1} have happened"
        if vcpu.incarnation - 1 > asked:
            yield "duplicated", f"{asked} resets of {name} were asked for, and {vcpu.incarnation - 1} have happened"


def _events(record: Record, state: HostState) -> Iterator[Finding]:
    for name, acked in record.acked.items():
        vm = name.split("/")[1]
        thing = record.things.get(("vm", vm))
        if thing is None or not thing.settled or f"vms/{vm}" not in state.vms:
            continue  # deleted, or about to be: what is missing of it is missed above
        through = state.side(state.vcpu(name)).next_seq - 1
        if through < acked:
            yield "lost", f"{name}: event {acked} was acknowledged, and {through} is the last one there"
        if through > record.sent[name]:
            yield "diverged", f"{name}: event {through} is there, and {record.sent[name]} was the last one sent"
        if ("vcpu", vm) in record.things:
            yield from _registers(state, name, through)


def _registers(state: HostState, name: str, through: int) -> Iterator[Finding]:
    """What a counting client's vCPU holds, against what only the numbers of its events explain."""
    inside = state.vcpu(name).state is VcpuState.ENTERED
    if inside != model.is_inside(through):
        yield "duplicated", f"{name}: {state.vcpu(name).state.name} after event {through}"
    if inside:
        return  # the registers are in the CPU, and only leaving would bring them out; the client's own READs look there
    image = get_xsave2(state.vcpu(name))
    assert not isinstance(image, Errno)
    if image[_XMM_OFFSET : _XMM_OFFSET + _XMM_BYTES] != model.registers(name, through):
        yield "diverged", f"{name}: the registers are not those of event {through}"


def _decisions(record: Record, twin: Twin) -> Iterator[Finding]:
    for exit_name, generation in record.decided:
        if generation not in twin.decided[exit_name]:
            yield "lost", f"a decision was acknowledged, and is not there: {exit_name}, generation {generation}"


def audit_decisions(twin: Twin) -> Iterator[Finding]:
    """Yield exits that were tried more often than somebody decided so: each decision of ours is one more attempt."""
    state = twin.machine.state
    for record in (*state.exits.values(), *state.resolved_exits.values()):
        if record.attempt > 1 + len(twin.decided[record.name]):
            decided = len(twin.decided[record.name])
            yield "duplicated", f"{record.name}: attempt {record.attempt} after {decided} decisions"
