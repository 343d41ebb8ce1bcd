"""``fpstated ctl vms``."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from fpstate.v1 import vm_pb2, vm_pb2_grpc

from fpstated.ctl.complete import complete_vm
from fpstated.ctl.connection import Connection, connection
from fpstated.ctl.names import byte_limit, vm_name
from fpstated.ctl.show import Json, mask, print_fields, print_json, print_table, size, word

vms = typer.Typer(help="Virtual machines.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)

VmArgument = Annotated[
    str, typer.Argument(metavar="VM", help="NAME or vms/NAME.", autocompletion=complete_vm, show_default=False)
]
Policy = Literal["on-swap", "on-write", "on-cpuid", "three-buffer"]

_POLICIES: Final = {
    "on-swap": vm_pb2.ALLOCATION_POLICY_ON_SWAP,
    "on-write": vm_pb2.ALLOCATION_POLICY_ON_WRITE,
    "on-cpuid": vm_pb2.ALLOCATION_POLICY_ON_CPUID,
    "three-buffer": vm_pb2.ALLOCATION_POLICY_THREE_BUFFER,
}


def _stub(found: Connection) -> vm_pb2_grpc.VmServiceStub:
    return vm_pb2_grpc.VmServiceStub(found.channel)


@vms.command("list")
def list_vms(ctx: typer.Context, as_json: Json = False) -> None:
    """List the VMs by name.

    Example: fpstated ctl vms list
    """
    found = connection(ctx)
    answer = found.pages(_stub(found).ListVms, vm_pb2.ListVmsRequest())
    if as_json:
        print_json(answer)
        return
    print_table(("NAME", "POLICY", "PROFILE", "RULES", "USED>", "LIMIT>", "LABELS"), map(_row, answer.vms))


def _row(vm: vm_pb2.Vm) -> tuple[object, ...]:
    policy = word(vm_pb2.AllocationPolicy, vm.allocation_policy)
    profile = vm.profile or ("dump" if vm.cpuid_dump else "")
    return vm.name, policy, profile, vm.kernel_rules, size(vm.bytes_used), _limit(vm), _labels(vm)


def _limit(vm: vm_pb2.Vm) -> str:
    return size(vm.byte_limit if vm.HasField("byte_limit") else None)


def _labels(vm: vm_pb2.Vm) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(vm.labels.items()))


@vms.command("get")
def get_vm(ctx: typer.Context, vm: VmArgument, as_json: Json = False) -> None:
    """Show one VM.

    Example: fpstated ctl vms get a
    """
    found = connection(ctx)
    answer = found.call(_stub(found).GetVm, vm_pb2.GetVmRequest(name=vm_name(vm)))
    if as_json:
        print_json(answer)
    else:
        _print(answer.vm)


def _print(vm: vm_pb2.Vm) -> None:
    owner = " ".join(str(part) for part in (vm.owner.name, vm.owner.pid or "") if part)
    print_fields(
        [
            ("name", vm.name),
            ("uid", vm.uid),
            ("profile", vm.profile or f"a dump of {len(vm.cpuid_dump.splitlines())} lines"),
            ("kernel rules", vm.kernel_rules),
            ("policy", word(vm_pb2.AllocationPolicy, vm.allocation_policy)),
            ("bytes used", size(vm.bytes_used)),
            ("byte limit", _limit(vm)),
            ("guest XCR0", mask(vm.guest_supported_xcr0)),
            ("guest permission", mask(vm.guest_perm)),
            ("protected state", "yes" if vm.has_protected_state else "no"),
            ("owner", owner),
            ("labels", _labels(vm)),
            ("etag", vm.etag),
        ]
    )


@vms.command("create")
def create_vm(  # noqa: PLR0913, PLR0917 -- one option each
    ctx: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="NAME", help="A new name: [a-z][a-z0-9-]{0,62}.")],
    profile: Annotated[str, typer.Option(help="A built-in processor; nothing for the host's default.")] = "",
    cpuid_dump: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A processor as `cpuid -r` text instead.", exists=True, dir_okay=False),
    ] = None,
    kernel_rules: Annotated[str, typer.Option(help="6.18 or 6.12; nothing for the host's default.")] = "",
    policy: Annotated[Policy, typer.Option(help="When memory for a larger container is taken.")] = "on-swap",
    limit: Annotated[
        str, typer.Option("--byte-limit", metavar="BYTES|none", help="What its containers may take.")
    ] = "none",
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be given several times.")] = None,
    owner: Annotated[str, typer.Option(help="Name of the VMM's process.")] = "",
    owner_pid: Annotated[int, typer.Option(min=0, help="Its process id.")] = 0,
    protected_state: Annotated[
        bool, typer.Option("--protected-state", help="A type of VM that shows no confidential vCPU's state.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a VM.

    Example: fpstated ctl vms create a --policy on-swap --byte-limit 64K --label tier=test
    """
    found = connection(ctx)
    request = vm_pb2.CreateVmRequest(
        vm_id=vm_name(vm).removeprefix("vms/"),
        vm=vm_pb2.Vm(
            profile=profile,
            cpuid_dump=cpuid_dump.read_text(encoding="utf-8") if cpuid_dump is not None else "",
            kernel_rules=kernel_rules,
            allocation_policy=_POLICIES[policy],
            byte_limit=byte_limit(limit),
            labels=_read_labels(label or []),
            owner=vm_pb2.Owner(pid=owner_pid, name=owner),
            has_protected_state=protected_state,
        ),
        request_id=str(uuid.uuid4()),
    )
    answer = found.call(_stub(found).CreateVm, request)
    if as_json:
        print_json(answer)
    else:
        _print(answer.vm)


def _read_labels(texts: list[str]) -> dict[str, str]:
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"--label: expected KEY=VALUE, got {text!r}")
        labels[key] = value
    return labels


@vms.command("delete")
def delete_vm(
    ctx: typer.Context,
    vm: VmArgument,
    force: Annotated[bool, typer.Option("--force", help="With its vCPUs, whatever they do.")] = False,
    etag: Annotated[str, typer.Option(help="Only if it is still as it was then.")] = "",
    as_json: Json = False,
) -> None:
    """Delete a VM.

    Example: fpstated ctl vms delete a --force
    """
    found, name = connection(ctx), vm_name(vm)
    request = vm_pb2.DeleteVmRequest(name=name, force=force, etag=etag, request_id=str(uuid.uuid4()))
    answer = found.call(_stub(found).DeleteVm, request)
    if as_json:
        print_json(answer)
    else:
        print(f"{name}: deleted")


@vms.command("reset")
def reset_vm(ctx: typer.Context, vm: VmArgument, as_json: Json = False) -> None:
    """RESET every vCPU of a VM; its open exits are cancelled.

    Example: fpstated ctl vms reset a
    """
    found, name = connection(ctx), vm_name(vm)
    answer = found.call(_stub(found).ResetVm, vm_pb2.ResetVmRequest(name=name, request_id=str(uuid.uuid4())))
    if as_json:
        print_json(answer)
    else:
        print(f"{name}: reset")


@vms.command()
def permission(
    ctx: typer.Context,
    vm: VmArgument,
    request: Annotated[
        int | None, typer.Option(metavar="FEATURE", min=0, max=63, help="First ask for this one: 18 is XTILE_DATA.")
    ] = None,
    host: Annotated[bool, typer.Option("--host", help="For the VMM's own threads, not for its guests.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a VM's process may use, after asking for more: ARCH_GET_XCOMP_GUEST_PERM and ARCH_REQ_XCOMP_GUEST_PERM.

    Example: fpstated ctl vms permission a --request 18
    """
    found, name = connection(ctx), vm_name(vm)
    scope = vm_pb2.PERMISSION_SCOPE_HOST if host else vm_pb2.PERMISSION_SCOPE_GUEST
    if request is not None:
        asked = vm_pb2.RequestPermissionRequest(name=name, scope=scope, feature=request, request_id=str(uuid.uuid4()))
        found.call(_stub(found).RequestPermission, asked)
    answer = found.call(_stub(found).GetPermission, vm_pb2.GetPermissionRequest(name=name, scope=scope))
    if as_json:
        print_json(answer)
        return
    print_fields(
        [
            ("scope", word(vm_pb2.PermissionScope, scope)),
            ("supported", mask(answer.supported)),
            ("permitted", mask(answer.permitted)),
            ("locked", "yes" if answer.locked else "no"),
        ]
    )
