"""Who there is in a plan, by number, and what a small world can be."""

from __future__ import annotations

from dataclasses import dataclass

from fpstate.fault.v1 import plan_pb2

from fault_lab.sim.workload import Part, part_of


class ExploreError(ValueError):
    """A plan that cannot be explored. The text names the field and what was expected."""


@dataclass(frozen=True, slots=True)
class PlayedVcpu:
    """One vCPU: its name, the number of its VM, and what it plays (None: it is idle)."""

    name: str
    vm: int
    part: Part | None


@dataclass(frozen=True, slots=True)
class Cast:
    """The host, the VMs with their vCPUs, and the controllers of a plan."""

    host: plan_pb2.PlannedHost
    vms: tuple[plan_pb2.PlannedVm, ...]
    vcpus: tuple[PlayedVcpu, ...]
    controllers: tuple[plan_pb2.PlannedController, ...]

    @classmethod
    def of(cls, plan: plan_pb2.Plan) -> Cast:
        """Read a plan. Raises ``ExploreError`` for what a small world does not have."""
        there = plan.topology
        if len(there.hosts) != 1:
            raise ExploreError(f"topology.hosts: expected one host to explore, got {len(there.hosts)}")
        if plan.schedule.hits:
            raise ExploreError("schedule: expected none, since every placement of faults is explored")
        if plan.workload.tasks:
            raise ExploreError("workload.tasks: expected none to explore, since tasks of their own are not")
        vcpus = []
        for nr, vm in enumerate(there.vms):
            for index in range(vm.vcpus or 1):
                name = f"vms/{vm.name}/vcpus/{index}"
                part = part_of(plan, name, plan.seed)
                if part is not None and part.rounds != 1:
                    raise ExploreError(f"workload: {name}: rounds: expected 1 to explore, got {part.rounds}")
                vcpus.append(PlayedVcpu(name, nr, part))
        return cls(there.hosts[0], tuple(there.vms), tuple(vcpus), tuple(there.controllers))

    def vm_name(self, vm: int) -> str:
        """``vms/{vm}``, which is its agent's node as well."""
        return f"vms/{self.vms[vm].name}"

    def vcpus_of(self, vm: int) -> tuple[int, ...]:
        """The numbers of a VM's vCPUs."""
        return tuple(nr for nr, vcpu in enumerate(self.vcpus) if vcpu.vm == vm)

    def decides_about(self, controller: int, vcpu: int) -> bool:
        """Whether a controller's scope has a vCPU."""
        scope = self.controllers[controller].vm
        return scope in ("", self.vms[self.vcpus[vcpu].vm].name)
