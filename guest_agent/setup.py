"""What has to exist before a guest can run: a VM, the permission to use tiles in it, and a vCPU."""

from __future__ import annotations

from collections.abc import Callable

from guest_agent.error import HostError
from guest_agent.host import Host
from guest_agent.request import AllocationPolicy, new_id

#: The processor whose tiles and XFD the guest programs are written for.
GUEST_PROFILE = "sapphire-rapids"


def create_guest(
    host: Host,
    vm_id: str,
    *,
    index: int = 0,
    profile: str = GUEST_PROFILE,
    policy: AllocationPolicy = AllocationPolicy.ON_SWAP,
    byte_limit: int | None = None,
    permission: bool = True,
    request_id: str = "",
) -> str:
    """Make the VM `vms/{vm_id}` and its vCPU `index` where they do not exist, and return the vCPU's name.

    `permission` asks for XTILE_DATA in guests, before the first vCPU locks the VM's permissions. `request_id`, where
    given, makes the whole repeatable: the same id, at most 100 characters, gives the first call's answers.

    Raises:
        HostError: the host refused; what was made before stays.
    """
    once = request_id or new_id()
    vm = f"vms/{vm_id}"

    def create_vm() -> None:
        host.create_vm(vm_id, profile=profile, policy=policy, byte_limit=byte_limit, request_id=f"{once}/vm")
        if permission:
            host.request_permission(vm, request_id=f"{once}/permission")

    _unless("VM_EXISTS", create_vm)
    _unless("VCPU_EXISTS", lambda: host.create_vcpu(vm, index=index, request_id=f"{once}/vcpu-{index}"))
    return f"{vm}/vcpus/{index}"


def _unless(reason: str, create: Callable[[], object]) -> None:
    try:
        create()
    except HostError as error:
        if error.reason != reason:
            raise
