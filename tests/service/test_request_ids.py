"""A request id makes every call that changes something safe to send twice, to this process or to the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.fault.v1 import fault_pb2
from fpstate.v1 import exit_pb2, host_pb2, session_pb2, task_pb2, vcpu_pb2, vm_pb2
from google.protobuf import message_factory
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from host_agent.commands import CreateVm
from host_agent.machine import HostMachine
from host_agent.service.access.matrix import MATRIX
from host_agent.state import HostConfig
from tests.journal.rig import FaultyDisk
from tests.service.calls import method_descriptor
from tests.service.test_durable import started
from tests.service.world import TIMEOUT_S, XCR0_AMX, World, error_info

V, FAULT = "/fpstate.v1.", "/fpstate.fault.v1.FaultService/"


@dataclass
class Scene:
    """What was there before the calls: VM `a` with a vCPU that is parked on an exit, VM `b` with one and two tasks."""

    session: str = ""
    epoch: int = 0
    control: exit_pb2.AcquireControlResponse = field(default_factory=exit_pb2.AcquireControlResponse)
    fault: str = ""
    xsave: bytes = b""


async def set_up(world: World) -> Scene:
    """Make it."""
    guest = await world.guest(lease_s=3600)
    await world.fail_next_growth()
    await guest.submit(guest.enable_tiles())
    await world.vm("b")
    await world.vm("c", vcpus=2)
    await world.vm("d")
    await world.vm("e")
    for task in ("t", "u"):
        await world.tasks.CreateTask(task_pb2.CreateTaskRequest(parent="vms/b", task_id=task))
    await world.fail_next_growth(vcpu="vms/b/vcpus/0")
    armed = (await world.faults.ListFaults(fault_pb2.ListFaultsRequest())).faults
    control = await world.control()
    xsave = (
        await world.vcpus.GetXsave(
            vcpu_pb2.GetXsaveRequest(name="vms/b/vcpus/0", ioctl=vcpu_pb2.XSAVE_IOCTL_GET_XSAVE2)
        )
    ).xsave
    return Scene(guest.session, guest.epoch, control, armed[-1].name, xsave)


def calls(scene: Scene) -> Iterator[tuple[str, Message, Message | None]]:
    """A method, a request of it, and another one; none where the call's other fields cannot differ."""
    b, vcpu, task = "vms/b", "vms/b/vcpus/0", "vms/b/tasks/t"
    mask = FieldMask(paths=["byte_limit"])
    settings = host_pb2.HostSettings
    yield (
        f"{V}HostService/UpdateHost",
        host_pb2.UpdateHostRequest(settings=settings(byte_limit=1 << 30), update_mask=mask),
        host_pb2.UpdateHostRequest(settings=settings(byte_limit=1 << 31), update_mask=mask),
    )
    yield f"{V}VmService/CreateVm", vm_pb2.CreateVmRequest(vm_id="x"), vm_pb2.CreateVmRequest(vm_id="y")
    yield (
        f"{V}VmService/UpdateVm",
        vm_pb2.UpdateVmRequest(vm=vm_pb2.Vm(name=b, labels={"k": "1"}), update_mask=FieldMask(paths=["labels"])),
        vm_pb2.UpdateVmRequest(vm=vm_pb2.Vm(name=b, labels={"k": "2"}), update_mask=FieldMask(paths=["labels"])),
    )
    yield f"{V}VmService/ResetVm", vm_pb2.ResetVmRequest(name="vms/c"), vm_pb2.ResetVmRequest(name=b)
    yield (
        f"{V}VmService/RequestPermission",
        vm_pb2.RequestPermissionRequest(name="vms/d", scope=vm_pb2.PERMISSION_SCOPE_HOST, feature=18),
        vm_pb2.RequestPermissionRequest(name="vms/d", scope=vm_pb2.PERMISSION_SCOPE_HOST, feature=17),
    )
    yield (
        f"{V}VmService/SetCpuid",
        vm_pb2.SetCpuidRequest(name="vms/d", xcr0_mask=XCR0_AMX),
        vm_pb2.SetCpuidRequest(name="vms/d", xcr0_mask=7),
    )
    yield (
        f"{V}VmService/DeleteVm",
        vm_pb2.DeleteVmRequest(name="vms/e", force=True),
        vm_pb2.DeleteVmRequest(name="vms/c", force=True),
    )
    yield (
        f"{V}TaskService/CreateTask",
        task_pb2.CreateTaskRequest(parent=b, task_id="n"),
        task_pb2.CreateTaskRequest(parent=b, task_id="m"),
    )
    yield (
        f"{V}TaskService/CloneTask",
        task_pb2.CloneTaskRequest(task=task, new_task_id="o", thread=True),
        task_pb2.CloneTaskRequest(task=task, new_task_id="p", thread=True),
    )
    yield (
        f"{V}TaskService/ScheduleTask",
        task_pb2.ScheduleTaskRequest(task=task, cpu=1),
        task_pb2.ScheduleTaskRequest(task=task, cpu=2),
    )
    yield (
        f"{V}TaskService/UseFeature",
        task_pb2.UseFeatureRequest(task=task, feature=2, length=1),
        task_pb2.UseFeatureRequest(task=task, feature=2, length=2),
    )
    yield (
        f"{V}TaskService/SetAltstack",
        task_pb2.SetAltstackRequest(task=task, size_bytes=65536),
        task_pb2.SetAltstackRequest(task=task, size_bytes=131072),
    )
    yield (
        f"{V}TaskService/KernelFpu",
        task_pb2.KernelFpuRequest(task=task),
        task_pb2.KernelFpuRequest(task="vms/b/tasks/u"),
    )
    yield (
        f"{V}TaskService/PreemptTask",
        task_pb2.PreemptTaskRequest(task=task),
        task_pb2.PreemptTaskRequest(task="vms/b/tasks/u"),
    )
    yield (
        f"{V}TaskService/ExitTask",
        task_pb2.ExitTaskRequest(task="vms/b/tasks/u"),
        task_pb2.ExitTaskRequest(task=task),
    )
    yield (
        f"{V}VcpuService/CreateVcpu",
        vcpu_pb2.CreateVcpuRequest(parent=b, index=7),
        vcpu_pb2.CreateVcpuRequest(parent=b, index=8),
    )
    yield (
        f"{V}VcpuService/SetXsave",
        vcpu_pb2.SetXsaveRequest(name=vcpu, xsave=scene.xsave),
        vcpu_pb2.SetXsaveRequest(name="vms/c/vcpus/0", xsave=scene.xsave),
    )
    xcrs = [vcpu_pb2.Xcr(xcr=0, value=3)]
    yield (
        f"{V}VcpuService/SetXcrs",
        vcpu_pb2.SetXcrsRequest(name=vcpu, xcrs=xcrs),
        vcpu_pb2.SetXcrsRequest(name=vcpu, xcrs=[vcpu_pb2.Xcr(xcr=0, value=7)]),
    )
    yield (
        f"{V}VcpuService/SetMsrs",
        vcpu_pb2.SetMsrsRequest(name=vcpu, entries=[vcpu_pb2.MsrEntry(index=0x1C4, value=0)]),
        vcpu_pb2.SetMsrsRequest(name=vcpu, entries=[vcpu_pb2.MsrEntry(index=0x1C4, value=1 << 18)]),
    )
    yield (
        f"{V}VcpuService/DeleteVcpu",
        vcpu_pb2.DeleteVcpuRequest(name="vms/c/vcpus/0"),
        vcpu_pb2.DeleteVcpuRequest(name="vms/c/vcpus/1"),
    )
    yield (
        f"{V}GuestSessionService/OpenSession",
        session_pb2.OpenSessionRequest(vcpus=[vcpu]),
        session_pb2.OpenSessionRequest(vcpus=["vms/c/vcpus/1"]),
    )
    yield (
        f"{V}ExitService/AcquireControl",
        exit_pb2.AcquireControlRequest(scope=b, controller_name="k"),
        exit_pb2.AcquireControlRequest(scope="vms/c", controller_name="k"),
    )
    decided = exit_pb2.ResolveExitRequest(name="vms/a/vcpus/0/exits/1", generation=1, control=scene.control.control)
    decided.control_epoch = scene.control.epoch
    otherwise = exit_pb2.ResolveExitRequest()
    otherwise.CopyFrom(decided)
    decided.decision.retry.SetInParent()
    otherwise.decision.inject_gp.SetInParent()
    yield f"{V}ExitService/ResolveExit", decided, otherwise
    control, epoch = scene.control.control, scene.control.epoch
    yield (
        f"{V}ExitService/ReleaseControl",
        exit_pb2.ReleaseControlRequest(control=control, epoch=epoch),
        None,  # of a control that is not held any more every release is the same
    )
    yield (
        f"{V}GuestSessionService/CloseSession",
        session_pb2.CloseSessionRequest(session=scene.session, epoch=scene.epoch),
        None,  # as above
    )
    fault = fault_pb2.Fault(
        point="fpstate.realloc.alloc",
        action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=12)),
    )
    other = fault_pb2.Fault()
    other.CopyFrom(fault)
    other.scope.vm = b
    yield f"{FAULT}ArmFault", fault_pb2.ArmFaultRequest(fault=fault), fault_pb2.ArmFaultRequest(fault=other)
    yield f"{FAULT}DisarmFault", fault_pb2.DisarmFaultRequest(name=scene.fault), None
    yield f"{FAULT}RenewFaults", fault_pb2.RenewFaultsRequest(owner="x"), fault_pb2.RenewFaultsRequest(owner="y")
    yield f"{V}TaskService/ExecTask", task_pb2.ExecTaskRequest(task="vms/c/tasks/main"), None
    yield (
        f"{V}HostService/DrainHost",
        host_pb2.DrainHostRequest(resume_target="unix:/elsewhere"),
        host_pb2.DrainHostRequest(resume_target="unix:/nowhere"),
    )


#: Not the machine's to remember: the fault lab's own calls.
ELSEWHERE = {f"{FAULT}ResetFaults", f"{FAULT}Evaluate", f"{FAULT}AdvanceClock"}
#: Asked again wherever an answer was lost, with two hosts: tests/test_migration_process.py.
ELSEWHERE |= {f"{V}MigrationService/{step}Migration" for step in ("Begin", "Stage", "Commit", "Abort")}


def test_every_call_with_a_request_id_is_tried() -> None:
    """Those of the contract that this release has."""
    methods = {path for path in MATRIX if path.startswith("/fpstate.")}
    with_id = {path for path in methods if "request_id" in method_descriptor(path).input_type.fields_by_name}
    assert {path for path, _, _ in calls(Scene())} == with_id - ELSEWHERE


async def answer(channel: grpc.aio.Channel, path: str, request: Message, request_id: str) -> Message:
    """Make a call; the answer without its header, which says when it was given."""
    request.request_id = request_id  # type: ignore[attr-defined]
    reply = message_factory.GetMessageClass(method_descriptor(path).output_type)
    call = channel.unary_unary(
        path, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
    )
    made: Any = await call(request, timeout=TIMEOUT_S)
    made.ClearField("header")
    assert isinstance(made, Message)
    return made


def known(world: World) -> str:
    """A digest of all that the host knows, but for the count of its commands."""
    machine = world.server.agent.machine
    revision, machine.state.revision = machine.state.revision, 0
    digest = machine.digest()
    machine.state.revision = revision
    return digest


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    """A disk that does not fail."""
    disk = FaultyDisk()
    yield disk
    disk.unregister()


@contextmanager
def refused_as_reused(path: str) -> Iterator[None]:
    """The same id again, and another request: a mistake that is named."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert error_info(caught.value).reason == "REQUEST_ID_REUSED", path


@pytest.mark.asyncio
async def test_a_repeated_request_has_its_first_answer(tmp_path: Path, disk: FaultyDisk) -> None:
    """Each call: again at once, with other contents, and both after a restart; nothing is done twice."""
    async with started(tmp_path, disk) as world, grpc.aio.insecure_channel(world.server.address) as channel:
        scene = await set_up(world)
        first: dict[str, Message] = {}
        for path, request, other in calls(scene):
            first[path] = await answer(channel, path, request, path)
            before = known(world)
            again = await answer(channel, path, request, path)
            if path != f"{V}HostService/DrainHost":  # which says how far the drain is now
                assert again == first[path], path
            if other is not None:
                with refused_as_reused(path):
                    await answer(channel, path, other, path)
            if path != f"{V}ExitService/ResolveExit":  # a repeated decision renews its control
                assert known(world) == before, f"{path} did something again"
    async with (
        started(tmp_path, disk, boot_id="boot-2") as world,
        grpc.aio.insecure_channel(world.server.address) as channel,
    ):
        await _as_before(channel, scene, first)
        assert not world.server.agent.state.draining, "a drain is the process's that was asked for it"


async def _as_before(channel: grpc.aio.Channel, scene: Scene, first: dict[str, Message]) -> None:
    for path, request, other in calls(scene):
        assert type(await answer(channel, path, request, path)) is type(first[path])
        if other is not None:
            with refused_as_reused(path):
                await answer(channel, path, other, path)


def test_so_many_ids_are_remembered_and_no_more() -> None:
    """The oldest is forgotten first, and its request is a new one then."""
    machine = HostMachine(HostConfig(max_request_ids=10))
    for nr in range(30):
        machine.apply(CreateVm(vm_id=f"v{nr}", request_id=f"r{nr}"), nr)
        assert len(machine.state.requests) <= 10
    assert machine.apply(CreateVm(vm_id="v29", request_id="r29"), 30).name == "vms/v29"
    again: Callable[[], object] = lambda: machine.apply(CreateVm(vm_id="v0", request_id="r0"), 31)  # noqa: E731
    with pytest.raises(Exception, match="exists"):
        again()
