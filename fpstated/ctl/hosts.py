"""``fpstated ctl host``: what the host is and holds, its settings, and its end. ``limits`` and ``drain`` as well."""

from __future__ import annotations

from typing import Annotated

import typer
from fpstate.v1 import host_pb2, host_pb2_grpc, vm_pb2, vm_pb2_grpc
from google.protobuf import duration_pb2, field_mask_pb2

from fpstated.ctl.complete import complete_vm
from fpstated.ctl.connection import Connection, connection
from fpstated.ctl.names import byte_limit, vm_name
from fpstated.ctl.show import Json, print_fields, print_json, print_table, seconds, size, word

host = typer.Typer(help="The host itself.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)
limits = typer.Typer(help="What may be taken at most, of memory and of everything else.", no_args_is_help=True)


def _stub(found: Connection) -> host_pb2_grpc.HostServiceStub:
    return host_pb2_grpc.HostServiceStub(found.channel)


@host.command()
def info(ctx: typer.Context, as_json: Json = False) -> None:
    """Show what the host is, can do and holds.

    Example: fpstated ctl host info
    """
    found = connection(ctx)
    answer = found.call(_stub(found).GetHostInfo, host_pb2.GetHostInfoRequest())
    if as_json:
        print_json(answer)
        return
    usage = answer.usage
    print_fields(
        [
            ("host", answer.header.host),
            ("version", answer.version),
            ("protocol", answer.protocol_version),
            ("boot id", answer.header.boot_id),
            ("revision", answer.header.revision),
            ("state", word(host_pb2.DrainState, answer.drain_state)),
            ("VMs", usage.vms),
            ("vCPUs", usage.vcpus),
            ("sessions", usage.sessions),
            ("open exits", usage.open_exits),
            ("bytes used", size(usage.bytes_used)),
            ("byte limit", size(answer.settings.byte_limit if answer.settings.HasField("byte_limit") else None)),
            ("capabilities", " ".join(answer.capabilities)),
            ("profiles", " ".join(answer.profiles)),
            ("policies", " ".join(word(vm_pb2.AllocationPolicy, policy) for policy in answer.policies)),
            ("kernel rules", " ".join(answer.kernel_rules)),
        ]
    )


@host.command()
def update(
    ctx: typer.Context,
    limit: Annotated[
        str, typer.Option("--byte-limit", metavar="BYTES|none", help="What the containers of all VMs may take.")
    ],
    as_json: Json = False,
) -> None:
    """Change the host's settings. Below what is used, a limit stops growth alone.

    Example: fpstated ctl host update --byte-limit 1GiB
    """
    answer = _set_host_limit(connection(ctx), byte_limit(limit))
    if as_json:
        print_json(answer)
        return
    print(f"host: byte limit {size(answer.settings.byte_limit if answer.settings.HasField('byte_limit') else None)}")


def _set_host_limit(found: Connection, limit: int | None) -> host_pb2.UpdateHostResponse:
    request = host_pb2.UpdateHostRequest(
        settings=host_pb2.HostSettings(byte_limit=limit), update_mask=field_mask_pb2.FieldMask(paths=["byte_limit"])
    )
    return found.call(_stub(found).UpdateHost, request)


@host.command()
def drain(
    ctx: typer.Context,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=3600, help="How long streams are still served.")
    ] = 5.0,
    target: Annotated[
        str, typer.Option("--resume-target", metavar="ADDRESS", help="Where clients shall go on; nothing for here.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Take the host out of service. It stops by itself when nobody is left, or when the grace is over.

    Example: fpstated ctl drain --grace 30
    """
    found = connection(ctx)
    request = host_pb2.DrainHostRequest(
        grace=duration_pb2.Duration(seconds=int(grace), nanos=round(grace % 1 * 1e9)), resume_target=target
    )
    answer = found.call(_stub(found).DrainHost, request)
    if as_json:
        print_json(answer)
        return
    print(f"host: {word(host_pb2.DrainState, answer.drain_state)}, grace {grace:g} s")


@limits.command("show")
def show_limits(ctx: typer.Context, as_json: Json = False) -> None:
    """Show the byte limits of host and VMs with what is used of them, and everything else the host does not go beyond.

    Example: fpstated ctl limits show
    """
    found = connection(ctx)
    answer = found.call(_stub(found).GetHostInfo, host_pb2.GetHostInfoRequest())
    if as_json:
        print_json(answer)
        return
    vms = found.pages(vm_pb2_grpc.VmServiceStub(found.channel).ListVms, vm_pb2.ListVmsRequest()).vms
    settings = answer.settings
    limit = settings.byte_limit if settings.HasField("byte_limit") else None
    rows = [("host", size(answer.usage.bytes_used), size(limit))]
    rows += [(vm.name, size(vm.bytes_used), size(vm.byte_limit if vm.HasField("byte_limit") else None)) for vm in vms]
    print_table(("BYTES OF", "USED>", "LIMIT>"), rows)
    print()
    print_table(("LIMIT", "VALUE>"), _limits(answer.limits))


def _limits(found: host_pb2.HostLimits) -> list[tuple[str, str]]:
    """Each limit by the name of its field."""
    rows = []
    for field in found.DESCRIPTOR.fields:
        value = getattr(found, field.name)
        if field.message_type is None:
            rows.append((field.name, f"{value:,}"))
        elif found.HasField(field.name):  # type: ignore[arg-type]
            rows.append((field.name, seconds(value)))
    return rows


@limits.command("set")
def set_limit(
    ctx: typer.Context,
    target: Annotated[
        str, typer.Argument(metavar="host|VM", help="Whose limit.", autocompletion=complete_vm, show_default=False)
    ],
    limit: Annotated[str, typer.Argument(metavar="BYTES|none", help="10752, 64K, 1GiB; none for no limit.")],
    as_json: Json = False,
) -> None:
    """Set the byte limit of the host or of a VM. Below what is used, it stops growth alone.

    Examples: fpstated ctl limits set host 1GiB; fpstated ctl limits set a none
    """
    found, value = connection(ctx), byte_limit(limit)
    if target == "host":
        _answer(_set_host_limit(found, value), "host", value, as_json=as_json)
        return
    name = vm_name(target)
    request = vm_pb2.UpdateVmRequest(
        vm=vm_pb2.Vm(name=name, byte_limit=value), update_mask=field_mask_pb2.FieldMask(paths=["byte_limit"])
    )
    answer = found.call(vm_pb2_grpc.VmServiceStub(found.channel).UpdateVm, request)
    _answer(answer, name, value, as_json=as_json)


def _answer(
    answer: host_pb2.UpdateHostResponse | vm_pb2.UpdateVmResponse, name: str, limit: int | None, *, as_json: bool
) -> None:
    if as_json:
        print_json(answer)
    else:
        print(f"{name}: byte limit {size(limit)}")
