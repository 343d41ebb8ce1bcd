"""``fpstated ctl vcpus`` and ``sessions``."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer
from fpstate.v1 import session_pb2, session_pb2_grpc, vcpu_pb2, vcpu_pb2_grpc, vm_pb2, vm_pb2_grpc

from fpstated.ctl.complete import complete_vcpu, complete_vm
from fpstated.ctl.connection import Connection, connection
from fpstated.ctl.names import vcpu_name, vm_name
from fpstated.ctl.show import Json, mask, print_fields, print_json, print_table, seconds, size, word

vcpus = typer.Typer(help="The vCPUs of VMs.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)
sessions = typer.Typer(
    help="The sessions of guest agents.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

VcpuArgument = Annotated[
    str,
    typer.Argument(
        metavar="VCPU", help="VM/INDEX or vms/VM/vcpus/INDEX.", autocompletion=complete_vcpu, show_default=False
    ),
]


def _stub(found: Connection) -> vcpu_pb2_grpc.VcpuServiceStub:
    return vcpu_pb2_grpc.VcpuServiceStub(found.channel)


@vcpus.command("list")
def list_vcpus(
    ctx: typer.Context,
    vm: Annotated[
        str, typer.Argument(metavar="[VM]", help="Nothing for all VMs.", autocompletion=complete_vm, show_default=False)
    ] = "",
    as_json: Json = False,
) -> None:
    """List the vCPUs of a VM, or of all.

    Example: fpstated ctl vcpus list a
    """
    found = connection(ctx)
    answer = all_vcpus(found, [vm_name(vm)] if vm else None)
    if as_json:
        print_json(answer)
        return
    columns = ("NAME", "STATE", "XCR0", "XFD", "SIZE>", "NEXT>", "EXIT")
    print_table(columns, map(_row, answer.vcpus))


def all_vcpus(found: Connection, vms: list[str] | None) -> vcpu_pb2.ListVcpusResponse:
    """The vCPUs of these VMs, of all for None, as one answer with the first one's header. A VM may go meanwhile."""
    merged = vcpu_pb2.ListVcpusResponse()
    if vms is None:
        listed = found.pages(vm_pb2_grpc.VmServiceStub(found.channel).ListVms, vm_pb2.ListVmsRequest())
        merged.header.CopyFrom(listed.header)
        vms = [vm.name for vm in listed.vms]
    for vm in vms:
        answer = found.pages(_stub(found).ListVcpus, vcpu_pb2.ListVcpusRequest(parent=vm))
        merged.vcpus.extend(answer.vcpus)
        if not merged.HasField("header"):
            merged.header.CopyFrom(answer.header)
    return merged


def _row(vcpu: vcpu_pb2.Vcpu) -> tuple[object, ...]:
    state = word(vcpu_pb2.VcpuState, vcpu.state)
    return (
        vcpu.name,
        state,
        mask(vcpu.xcr0),
        mask(vcpu.xfd),
        size(vcpu.fpstate.size_bytes),
        vcpu.next_seq,
        vcpu.exit.rpartition("/")[2],
    )


@vcpus.command("get")
def get_vcpu(ctx: typer.Context, vcpu: VcpuArgument, as_json: Json = False) -> None:
    """Show one vCPU with its container.

    Example: fpstated ctl vcpus get a/0
    """
    found = connection(ctx)
    answer = found.call(_stub(found).GetVcpu, vcpu_pb2.GetVcpuRequest(name=vcpu_name(vcpu)))
    if as_json:
        print_json(answer)
    else:
        _print(answer.vcpu)


def _print(vcpu: vcpu_pb2.Vcpu) -> None:
    fpstate, intercepts = vcpu.fpstate, vcpu.intercepts
    kept = {"XFD read": intercepts.xfd_read, "XFD write": intercepts.xfd_write, "#NM": intercepts.nm}
    print_fields(
        [
            ("name", vcpu.name),
            ("uid", vcpu.uid),
            ("incarnation", vcpu.incarnation),
            ("state", word(vcpu_pb2.VcpuState, vcpu.state)),
            ("exit", vcpu.exit),
            ("task", vcpu.task),
            ("next event", vcpu.next_seq),
            ("XCR0", f"{mask(vcpu.xcr0)} of {mask(vcpu.guest_supported_xcr0)}"),
            ("XFD", mask(vcpu.xfd)),
            ("XFD_ERR", mask(vcpu.xfd_err)),
            ("container", f"{size(fpstate.size_bytes)}, for userspace {size(fpstate.user_size_bytes)}"),
            ("has room for", mask(fpstate.xfeatures)),
            ("XSTATE_BV", mask(fpstate.xstate_bv)),
            ("XCOMP_BV", mask(fpstate.xcomp_bv)),
            ("in use", "yes" if fpstate.in_use else "no"),
            ("confidential", "yes" if fpstate.confidential else "no"),
            ("intercepted", ", ".join(what for what, on in kept.items() if on)),
            ("etag", vcpu.etag),
        ]
    )


@vcpus.command("create")
def create_vcpu(
    ctx: typer.Context,
    vcpu: Annotated[str, typer.Argument(metavar="VCPU", help="VM/INDEX: the VM must be there, the vCPU not.")],
    task: Annotated[str, typer.Option(metavar="TASK", help="The VMM's thread that runs it; made if not given.")] = "",
    confidential: Annotated[bool, typer.Option("--confidential", help="Its registers are the firmware's.")] = False,
    as_json: Json = False,
) -> None:
    """Make a vCPU.

    Example: fpstated ctl vcpus create a/0
    """
    found = connection(ctx)
    vm, _, index = vcpu_name(vcpu).partition("/vcpus/")
    request = vcpu_pb2.CreateVcpuRequest(
        parent=vm,
        index=_index(index),
        task=f"{vm}/tasks/{task}" if task and "/" not in task else task,
        confidential=confidential,
        request_id=str(uuid.uuid4()),
    )
    answer = found.call(_stub(found).CreateVcpu, request)
    if as_json:
        print_json(answer)
    else:
        _print(answer.vcpu)


def _index(text: str) -> int:
    value = int(text)
    if value >= 1 << 32:
        raise typer.BadParameter(f"expected an index below 2^32, got {text}")
    return value


@vcpus.command("delete")
def delete_vcpu(
    ctx: typer.Context,
    vcpu: VcpuArgument,
    etag: Annotated[str, typer.Option(help="Only if it is still as it was then.")] = "",
    as_json: Json = False,
) -> None:
    """Delete a vCPU that is outside the guest.

    Example: fpstated ctl vcpus delete a/0
    """
    found, name = connection(ctx), vcpu_name(vcpu)
    request = vcpu_pb2.DeleteVcpuRequest(name=name, etag=etag, request_id=str(uuid.uuid4()))
    answer = found.call(_stub(found).DeleteVcpu, request)
    if as_json:
        print_json(answer)
    else:
        print(f"{name}: deleted")


@sessions.command("list")
def list_sessions(
    ctx: typer.Context,
    vm: Annotated[
        str,
        typer.Option(metavar="VM", help="Only those that hold a vCPU of it.", autocompletion=complete_vm),
    ] = "",
    as_json: Json = False,
) -> None:
    """List the sessions that are alive. For operators.

    Example: fpstated ctl sessions list --vm a
    """
    found = connection(ctx)
    request = session_pb2.ListSessionsRequest(vm=vm_name(vm) if vm else "")
    answer = found.pages(session_pb2_grpc.GuestSessionServiceStub(found.channel).ListSessions, request)
    if as_json:
        print_json(answer)
        return
    columns = ("NAME", "EPOCH>", "CLIENT", "MODE", "LEASE>", "VCPUS")
    print_table(columns, map(_session_row, answer.sessions))


def _session_row(session: session_pb2.Session) -> tuple[object, ...]:
    held = " ".join(session.vcpus[:4]) + (f" and {len(session.vcpus) - 4} more" if len(session.vcpus) > 4 else "")
    mode = word(session_pb2.RunMode, session.run_mode)
    return session.name, session.epoch, session.client_name, mode, seconds(session.lease), held
