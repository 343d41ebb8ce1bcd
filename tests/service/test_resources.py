"""VMs, vCPUs and tasks: what they show, what they refuse, and how lists are read."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from fpstate.v1 import event_pb2, task_pb2, vcpu_pb2, vm_pb2

from host_agent.service.errors import Failure
from host_agent.service.paging import page
from tests.service.world import XCR0_AMX, XTILE_DATA, World, error_info

pytestmark = pytest.mark.asyncio


async def refused(call: Any) -> grpc.aio.AioRpcError:  # noqa: ANN401 -- a call has no public type
    """Await a call that has to be refused; return what it was refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


# -- VMs ---------------------------------------------------------------------------------------------------------------


async def test_a_vm_is_what_was_asked_for(world: World) -> None:
    """Defaults are filled in, and what the host makes is there."""
    name = await world.vm(
        "db", vcpus=0, byte_limit=1 << 20, owner=vm_pb2.Owner(pid=7, name="qemu"), labels={"rack": "3"}
    )
    vm = (await world.vms.GetVm(vm_pb2.GetVmRequest(name=name))).vm
    assert (vm.name, vm.profile, vm.kernel_rules) == ("vms/db", "sapphire-rapids", "6.18")
    assert vm.allocation_policy == vm_pb2.ALLOCATION_POLICY_ON_SWAP
    assert (vm.byte_limit, vm.owner.name, dict(vm.labels)) == (1 << 20, "qemu", {"rack": "3"})
    assert vm.guest_supported_xcr0 & XCR0_AMX == XCR0_AMX
    assert vm.guest_perm & XTILE_DATA
    assert vm.uid
    assert vm.etag


@pytest.mark.parametrize("policy", [each for each in vm_pb2.AllocationPolicy.values() if each])
async def test_a_vm_has_the_policy_it_asked_for(world: World, policy: vm_pb2.AllocationPolicy.ValueType) -> None:
    """All of the wire's policies are there."""
    name = await world.vm("db", vcpus=1, allocation_policy=policy)
    assert (await world.vms.GetVm(vm_pb2.GetVmRequest(name=name))).vm.allocation_policy == policy


async def test_a_request_id_returns_the_first_answer(world: World) -> None:
    """The same id with another request is a mistake."""
    request = vm_pb2.CreateVmRequest(vm_id="a", request_id="r1")
    first = await world.vms.CreateVm(request)
    assert (await world.vms.CreateVm(request)).vm.uid == first.vm.uid
    error = await refused(world.vms.CreateVm(vm_pb2.CreateVmRequest(vm_id="b", request_id="r1")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(error).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    ("vm_id", "fields", "path"),
    [
        pytest.param("A", {}, "vm_id", id="a capital letter"),
        pytest.param("a", {"name": "vms/b"}, "vm.name", id="a name of the caller's"),
        pytest.param("a", {"profile": "z80"}, "vm.profile", id="an unknown processor"),
        pytest.param("a", {"cpuid_dump": "what?"}, "vm.cpuid_dump", id="a dump that is none"),
        pytest.param("a", {"kernel_rules": "2.4"}, "vm.kernel_rules", id="an unknown kernel"),
        pytest.param("a", {"allocation_policy": 99}, "vm.allocation_policy", id="an unknown policy"),
        pytest.param("a", {"owner": vm_pb2.Owner(pid=9_999_999)}, "vm.owner.pid", id="a pid too large"),
        pytest.param("a", {"labels": {"K": "v"}}, "vm.labels", id="a label's key"),
        pytest.param("a", {"labels": {"k": "v" * 257}}, "vm.labels[k]", id="a label too long"),
    ],
)
async def test_a_bad_vm_names_the_field(world: World, vm_id: str, fields: dict[str, Any], path: str) -> None:
    """INVALID_ARGUMENT with the path, and no VM."""
    error = await refused(world.vms.CreateVm(vm_pb2.CreateVmRequest(vm_id=vm_id, vm=vm_pb2.Vm(**fields))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(error).metadata["field"] == path
    assert not (await world.vms.ListVms(vm_pb2.ListVmsRequest())).vms


async def test_a_vm_changes_by_mask_and_etag(world: World) -> None:
    """What the mask names changes; a stale etag is ABORTED with the present one."""
    name = await world.vm(vcpus=0, byte_limit=100)
    old = (await world.vms.GetVm(vm_pb2.GetVmRequest(name=name))).vm
    request = vm_pb2.UpdateVmRequest(vm=vm_pb2.Vm(name=name, labels={"k": "v"}, etag=old.etag))
    request.update_mask.paths.extend(["labels", "byte_limit"])
    new = (await world.vms.UpdateVm(request)).vm
    assert (dict(new.labels), new.HasField("byte_limit")) == ({"k": "v"}, False)
    error = await refused(world.vms.UpdateVm(request))
    assert error.code() is grpc.StatusCode.ABORTED
    assert error_info(error).metadata["etag"] == new.etag
    request.update_mask.paths[:] = ["profile"]
    assert error_info(await refused(world.vms.UpdateVm(request))).metadata["field"] == "update_mask"


async def test_a_vm_with_vcpus_goes_by_force_only(world: World) -> None:
    """VM_NOT_EMPTY says how many; force takes everything along and gives the memory back."""
    name = await world.vm(vcpus=2)
    error = await refused(world.vms.DeleteVm(vm_pb2.DeleteVmRequest(name=name)))
    assert (error_info(error).reason, error_info(error).metadata["vcpus"]) == ("VM_NOT_EMPTY", "2")
    request = vm_pb2.DeleteVmRequest(name=name, force=True, request_id="bye")
    await world.vms.DeleteVm(request)
    await world.vms.DeleteVm(request)
    assert error_info(await refused(world.vms.GetVm(vm_pb2.GetVmRequest(name=name)))).reason == "VM_NOT_FOUND"
    assert world.server.agent.state.allocator.host.used_bytes == 0


async def test_permissions_answer_as_the_kernel_does(world: World) -> None:
    """EBUSY once there is a vCPU, EINVAL and EOPNOTSUPP for what is no feature; the errno is in the metadata."""
    name = await world.vm(permit=False)
    for feature, errno_name in ((18, "EBUSY"), (17, "EOPNOTSUPP"), (63, "EINVAL")):
        request = vm_pb2.RequestPermissionRequest(name=name, scope=vm_pb2.PERMISSION_SCOPE_GUEST, feature=feature)
        info = error_info(await refused(world.vms.RequestPermission(request)))
        assert (info.reason, info.metadata["errnoName"]) == ("KVM_ERRNO", errno_name)
    request = vm_pb2.RequestPermissionRequest(name=name, feature=18)
    assert error_info(await refused(world.vms.RequestPermission(request))).metadata["field"] == "scope"


async def test_permissions_can_be_read(world: World) -> None:
    """What the host supports, what each scope has of it, and whether it is too late for more."""
    name = await world.vm(vcpus=0)
    guest = await world.vms.GetPermission(vm_pb2.GetPermissionRequest(name=name, scope=vm_pb2.PERMISSION_SCOPE_GUEST))
    host = await world.vms.GetPermission(vm_pb2.GetPermissionRequest(name=name, scope=vm_pb2.PERMISSION_SCOPE_HOST))
    assert (guest.supported, guest.permitted, guest.locked) == (0x602E7, 0x602E7, False)
    assert (host.supported, host.permitted, host.locked) == (0x602E7, 0x202E7, False)
    await world.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=name))
    guest = await world.vms.GetPermission(vm_pb2.GetPermissionRequest(name=name, scope=vm_pb2.PERMISSION_SCOPE_GUEST))
    assert guest.locked
    error = await refused(world.vms.GetPermission(vm_pb2.GetPermissionRequest(name=name)))
    assert error_info(error).metadata["field"] == "scope"


async def test_signal_stacks_and_permission(world: World) -> None:
    """A stack too small for what the process may use is ENOMEM, a permission too large for a stack ENOSPC."""
    name = await world.vm(vcpus=0, permit=False)
    main = f"{name}/tasks/main"
    request = task_pb2.SetAltstackRequest(task=main, size_bytes=4096)
    assert (await world.tasks.SetAltstack(request)).task.altstack_bytes == 4096
    asked = vm_pb2.RequestPermissionRequest(name=name, scope=vm_pb2.PERMISSION_SCOPE_HOST, feature=18)
    assert error_info(await refused(world.vms.RequestPermission(asked))).metadata["errnoName"] == "ENOSPC"
    assert not (await world.tasks.SetAltstack(task_pb2.SetAltstackRequest(task=main))).task.altstack_bytes
    await world.vms.RequestPermission(asked)
    info = error_info(await refused(world.tasks.SetAltstack(request)))
    assert (info.reason, info.metadata["errnoName"], info.metadata["call"]) == ("KVM_ERRNO", "ENOMEM", "sigaltstack")
    assert not (await world.tasks.GetTask(task_pb2.GetTaskRequest(name=main))).task.altstack_bytes


async def test_cpuid_as_a_mask_or_as_a_table(world: World) -> None:
    """Both cut down what a guest may enable; after a vCPU has run a change is EINVAL."""
    guest = await world.guest()
    masked = await world.vms.SetCpuid(vm_pb2.SetCpuidRequest(name="vms/a", xcr0_mask=0x2E7))
    assert masked.guest_supported_xcr0 == 0x2E7
    leaf = vm_pb2.CpuidEntry(function=0xD, index=0, flags=1, eax=0x602E7)
    table = vm_pb2.CpuidTable(entries=[leaf])
    assert (
        await world.vms.SetCpuid(vm_pb2.SetCpuidRequest(name="vms/a", table=table))
    ).guest_supported_xcr0 == XCR0_AMX
    await guest.submit(guest.event(hlt=event_pb2.Hlt()))
    error = await refused(world.vms.SetCpuid(vm_pb2.SetCpuidRequest(name="vms/a", xcr0_mask=3)))
    assert error_info(error).metadata["errnoName"] == "EINVAL"
    long = vm_pb2.SetCpuidRequest(name="vms/a", table=vm_pb2.CpuidTable(entries=[leaf] * 257))
    assert error_info(await refused(world.vms.SetCpuid(long))).metadata["errnoName"] == "E2BIG"
    neither = vm_pb2.SetCpuidRequest(name="vms/a")
    assert error_info(await refused(world.vms.SetCpuid(neither))).metadata["field"] == "cpuid"


async def test_the_supported_cpuid_and_an_empty_one(world: World) -> None:
    """What is supported can be set as it is; nothing set is all of it, an empty table is none of it."""
    name = await world.vm(permit=False)
    supported = await world.vms.GetSupportedCpuid(vm_pb2.GetSupportedCpuidRequest(name=name))
    assert supported.xcomp_guest_supp == XCR0_AMX
    (leaf,) = (entry for entry in supported.cpuid.entries if (entry.function, entry.index) == (0xD, 0))
    assert (leaf.flags, leaf.eax, leaf.ecx) == (1, 0x2E7, 2696)
    for table, mask in ((supported.cpuid, 0x2E7), (vm_pb2.CpuidTable(), 0)):
        set_now = await world.vms.SetCpuid(vm_pb2.SetCpuidRequest(name=name, table=table))
        assert set_now.guest_supported_xcr0 == mask
    unknown = vm_pb2.GetSupportedCpuidRequest(name="vms/nobody")
    assert error_info(await refused(world.vms.GetSupportedCpuid(unknown))).reason == "VM_NOT_FOUND"


async def test_the_required_size_comes_from_the_permissions(world: World) -> None:
    """Whatever size the containers have now."""
    with_tiles = await world.vm("a")
    without = await world.vm("b", permit=False)
    sizes = [
        (await world.vms.GetRequiredSize(vm_pb2.GetRequiredSizeRequest(name=name))).bytes
        for name in (with_tiles, without)
    ]
    assert sizes == [11008, 4096]


async def test_lists_are_read_page_by_page(world: World) -> None:
    """By name; a token of another list, or none at all, is refused."""
    for vm_id in ("c", "a", "b"):
        await world.vm(vm_id, vcpus=0)
    first = await world.vms.ListVms(vm_pb2.ListVmsRequest(page_size=2))
    second = await world.vms.ListVms(vm_pb2.ListVmsRequest(page_size=2, page_token=first.next_page_token))
    assert [vm.name for vm in (*first.vms, *second.vms)] == ["vms/a", "vms/b", "vms/c"]
    assert second.next_page_token == ""
    for request in (vm_pb2.ListVmsRequest(page_token="WzFd"), vm_pb2.ListVmsRequest(page_size=-1)):
        error = await refused(world.vms.ListVms(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_page_loses_nothing_to_changes() -> None:
    """The token says after which key to go on, so removing what was seen moves nothing."""
    first, token = page([3, 1, 2], lambda item: (item,), size=2, token="")
    assert first == [1, 2]
    assert page([3, 4], lambda item: (item,), size=2, token=token) == ([3, 4], "")
    with pytest.raises(Failure, match="page_token"):
        page([1], lambda item: (item,), size=1, token="not base64!")


# -- vCPUs -------------------------------------------------------------------------------------------------------------


async def test_a_vcpu_shows_its_container(world: World) -> None:
    """Registers, container, interception and where its numbers go on."""
    guest = await world.guest()
    await guest.submit(guest.enable_tiles())
    vcpu = (await world.vcpus.GetVcpu(vcpu_pb2.GetVcpuRequest(name=guest.vcpu))).vcpu
    assert vcpu.state == vcpu_pb2.VCPU_STATE_ENTERED
    assert vcpu.fpstate.in_use
    assert vcpu.fpstate.xfeatures & XTILE_DATA
    assert (vcpu.next_seq, vcpu.incarnation, vcpu.exit) == (2, 1, "")
    assert vcpu.task == "vms/a/tasks/vcpu-0"
    assert not vcpu.intercepts.nm


async def test_looking_changes_nothing(world: World) -> None:
    """Reads leave the digest as it is."""
    name = await world.vm()
    before = world.server.agent.machine.digest()
    await world.vcpus.GetVcpu(vcpu_pb2.GetVcpuRequest(name=f"{name}/vcpus/0"))
    await world.vcpus.ListVcpus(vcpu_pb2.ListVcpusRequest(parent=name))
    await world.tasks.ListTasks(task_pb2.ListTasksRequest(parent=name))
    assert world.server.agent.machine.digest() == before


async def test_vcpus_are_listed_by_index(world: World) -> None:
    """As numbers: 10 comes after 9."""
    name = await world.vm(vcpus=11)
    listed = await world.vcpus.ListVcpus(vcpu_pb2.ListVcpusRequest(parent=name))
    assert [vcpu.name.rpartition("/")[2] for vcpu in listed.vcpus] == [str(index) for index in range(11)]


async def test_no_memory_means_no_vcpu(world: World) -> None:
    """CreateVcpu fails at once, with what was missing; there is nothing to decide."""
    name = await world.vm(vcpus=0, byte_limit=100)
    error = await refused(world.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=name)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(error).metadata["cause"] == "QUOTA"
    assert not (await world.vcpus.ListVcpus(vcpu_pb2.ListVcpusRequest(parent=name))).vcpus


async def test_a_vcpu_in_the_guest_is_not_deleted(world: World) -> None:
    """A container in use is not freed; once outside, and with the right etag, it goes."""
    guest = await world.guest()
    await guest.submit(guest.enable_tiles())
    error = await refused(world.vcpus.DeleteVcpu(vcpu_pb2.DeleteVcpuRequest(name=guest.vcpu)))
    assert error_info(error).reason == "VCPU_ALREADY_ENTERED"
    await guest.submit(guest.event(hlt=event_pb2.Hlt()))
    error = await refused(world.vcpus.DeleteVcpu(vcpu_pb2.DeleteVcpuRequest(name=guest.vcpu, etag='"x"')))
    etag = error_info(error).metadata["etag"]
    await world.vcpus.DeleteVcpu(vcpu_pb2.DeleteVcpuRequest(name=guest.vcpu, etag=etag))


async def test_the_thread_of_a_vcpu_is_one_of_its_vm(world: World) -> None:
    """Another VM's thread is refused by name."""
    await world.vm("a", vcpus=0)
    await world.vm("b", vcpus=0)
    request = vcpu_pb2.CreateVcpuRequest(parent="vms/a", task="vms/b/tasks/main")
    assert error_info(await refused(world.vcpus.CreateVcpu(request))).metadata["field"] == "task"


# -- tasks -------------------------------------------------------------------------------------------------------------


async def test_a_tasks_own_container_grows_beside_the_guests(world: World) -> None:
    """The host's lazy growth: #NM on the first use, and the guest's container stays as it is."""
    name = await world.vm(vcpus=1)
    request = vm_pb2.RequestPermissionRequest(name=name, scope=vm_pb2.PERMISSION_SCOPE_HOST, feature=18)
    await world.vms.RequestPermission(request)
    task = (await world.tasks.CreateTask(task_pb2.CreateTaskRequest(parent=name, task_id="worker"))).task
    data = b"\x5a" * 1024
    used = await world.tasks.UseFeature(task_pb2.UseFeatureRequest(task=task.name, feature=18, data=data, length=1024))
    assert used.result == task_pb2.USE_FEATURE_RESULT_DONE
    assert used.reallocated.new_bytes > used.reallocated.old_bytes
    assert used.data == data
    vcpu = (await world.vcpus.GetVcpu(vcpu_pb2.GetVcpuRequest(name=f"{name}/vcpus/0"))).vcpu
    assert not vcpu.fpstate.xfeatures & XTILE_DATA


async def test_without_permission_a_task_gets_sigill(world: World) -> None:
    """A signal is an answer, and no error of the call."""
    name = await world.vm(permit=False)
    used = await world.tasks.UseFeature(task_pb2.UseFeatureRequest(task=f"{name}/tasks/main", feature=18, data=b"x"))
    assert used.result == task_pb2.USE_FEATURE_RESULT_SIGILL


async def test_tasks_live_as_threads_and_processes_do(world: World) -> None:
    """Create, clone, schedule, preempt, the kernel's own use of the FPU, exec, exit."""
    name = await world.vm(vcpus=0)
    main = f"{name}/tasks/main"
    cloned = await world.tasks.CloneTask(task_pb2.CloneTaskRequest(task=main, new_task_id="t1", thread=True))
    assert cloned.task.guest_perm & XTILE_DATA
    placed = await world.tasks.ScheduleTask(task_pb2.ScheduleTaskRequest(task=cloned.task.name, cpu=2))
    assert (placed.task.HasField("cpu"), placed.task.cpu) == (True, 2)
    assert (await world.tasks.KernelFpu(task_pb2.KernelFpuRequest(task=placed.task.name))).task.name
    away = await world.tasks.PreemptTask(task_pb2.PreemptTaskRequest(task=placed.task.name))
    assert not away.task.HasField("cpu")
    error = await refused(world.tasks.PreemptTask(task_pb2.PreemptTaskRequest(task=placed.task.name)))
    assert error_info(error).reason == "TASK_NOT_RUNNING"
    await world.tasks.ExitTask(task_pb2.ExitTaskRequest(task=placed.task.name))
    executed = await world.tasks.ExecTask(task_pb2.ExecTaskRequest(task=main))
    assert not executed.task.guest_perm & XTILE_DATA
    listed = await world.tasks.ListTasks(task_pb2.ListTasksRequest(parent=name))
    assert [task.name for task in listed.tasks] == [main]
    error = await refused(world.tasks.GetTask(task_pb2.GetTaskRequest(name=placed.task.name)))
    assert error_info(error).reason == "TASK_NOT_FOUND"


async def test_what_the_mask_names_is_what_changes(world: World) -> None:
    """Owner, limit and labels each change alone; a field that the mask names and the request lacks is cleared."""
    name = await world.vm(vcpus=0, byte_limit=50_000, owner=vm_pb2.Owner(pid=7, name="vmm"), labels={"k": "v"})
    for path in ("owner", "byte_limit", "labels"):
        request = vm_pb2.UpdateVmRequest(vm=vm_pb2.Vm(name=name, owner=vm_pb2.Owner(pid=8, name="other")))
        request.update_mask.paths.append(path)
        vm = (await world.vms.UpdateVm(request)).vm
        assert (vm.owner.pid, vm.owner.name) == (8, "other")
        assert vm.HasField("byte_limit") == (path == "owner")
        assert bool(vm.labels) == (path != "labels")
