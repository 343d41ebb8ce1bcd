"""Where every vCPU is while a history is read: the states of the machine, with what its exit and its host add.

The words are those of ``VcpuState`` and ``ExitState``; a parked vCPU is told apart by its exit.
"""

from __future__ import annotations

from typing import Any, Final

from fault_lab.pictures.calls import DOWN
from fault_lab.pictures.recording import Record

NO_VCPU: Final = "no vCPU"
HOST_DOWN: Final = "host down"
FIRST: Final = "parked, generation 1"
LATER: Final = "parked, generation 2 on"
APPLYING: Final = "parked, applying"
#: Each state and what it means.
STATES: Final = {
    NO_VCPU: "the vCPU is not there, or not yet",
    "outside": "its thread is outside of KVM_RUN",
    "entered": "its thread is in KVM_RUN",
    FIRST: "its growth has failed once, an exit is open",
    LATER: "a retry has failed as well, or a pause is over: the same exit, a later generation",
    APPLYING: "a decision is being carried out: the delay of a RETRY_AFTER runs",
    "paused": "it waits without a deadline",
    "killed": "it was stopped for good",
    "broken": "our own bug",
    HOST_DOWN: "its host agent has ended and is not back yet",
}


def planned_vcpus(plan: Any) -> dict[str, str]:  # noqa: ANN401 -- a plan as JSON
    """The vCPUs of a plan as JSON, each with its host."""
    there = plan.get("topology", {})
    first = there.get("hosts", [{}])[0].get("name", "")
    return {
        f"vms/{vm['name']}/vcpus/{index}": vm.get("host") or first
        for vm in there.get("vms", [])
        for index in range(vm.get("vcpus") or 1)
    }


class VcpuStates:
    """The states so far. ``hosts`` says on which host each vCPU is."""

    def __init__(self, hosts: dict[str, str]) -> None:
        self._hosts = hosts
        self._down: set[str] = set()
        self._states: dict[str, str] = {}
        self._exits: dict[str, tuple[str, int]] = {}

    def see(self, record: Record) -> None:
        """Go on by one record."""
        state = record.text("state")
        match record.type:
            case "vcpu":
                self._states[record.text("vcpu")] = state
            case "exit":
                self._exits[record.text("exit").rpartition("/exits/")[0]] = state, record.number("generation")
            case "node" if state == "started":
                self._down.discard(record.text("node"))
            case "node" if state in DOWN:
                self._down.add(record.text("node"))
            case _:
                pass

    def of(self, vcpu: str) -> str:
        """Where a vCPU is: a key of ``STATES``."""
        if self._hosts.get(vcpu) in self._down:
            return HOST_DOWN
        state = self._states.get(vcpu, "gone")
        if state == "gone":
            return NO_VCPU
        if state != "parked":
            return state
        exit_state, generation = self._exits.get(vcpu, ("open", 1))
        return APPLYING if exit_state == "applying" else FIRST if generation <= 1 else LATER
