"""Names that a shell completes, asked of the host while somebody types: quickly, or not at all, and without a word."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

import typer

#: How long a key may be without an answer, in seconds.
_PATIENCE_S: Final = 0.5


def complete_vm(ctx: typer.Context, incomplete: str) -> list[str]:
    """The VMs, as `a` or as vms/a, whichever was begun."""
    return _found(ctx, incomplete, _vms)


def complete_vcpu(ctx: typer.Context, incomplete: str) -> list[str]:
    """The vCPUs, as `a/0` or vms/a/vcpus/0."""
    return _found(ctx, incomplete, _vcpus)


def complete_exit(ctx: typer.Context, incomplete: str) -> list[str]:
    """The exits that wait for a decision, as `a/0/7` or vms/a/vcpus/0/exits/7."""
    return _found(ctx, incomplete, _exits)


def _found(ctx: typer.Context, incomplete: str, names: Callable[[object], Iterator[str]]) -> list[str]:
    os.environ["GRPC_VERBOSITY"] = "NONE"  # before gRPC is imported: it would talk into the line
    from fpstated.ctl.connection import connected, ctl_settings

    try:
        flags = _flags(ctx)
        connection = connected(ctl_settings(flags, None))
        connection.timeout_s = _PATIENCE_S
        found = list(names(connection))
    except Exception:  # noqa: BLE001 -- whatever it is, the line being typed is not the place for it
        return []
    short = [name.replace("vms/", "").replace("vcpus/", "").replace("exits/", "") for name in found]
    return [name for name in (*short, *found) if name.startswith(incomplete)] if incomplete else short


def _flags(ctx: typer.Context) -> dict[str, object]:
    """What stands before the command on the line: --address and the rest of ctl's own."""
    above = ctx.parent
    while above is not None and "address" not in above.params:
        above = above.parent
    given = above.params if above is not None else {}
    keys = ("address", "tls_cert", "tls_key", "tls_ca")
    return {key.replace("_", "-"): given[key] for key in keys if given.get(key) is not None}


def _vms(connection: object) -> Iterator[str]:
    from fpstate.v1 import vm_pb2, vm_pb2_grpc

    from fpstated.ctl.connection import Connection

    assert isinstance(connection, Connection)
    stub = vm_pb2_grpc.VmServiceStub(connection.channel)
    yield from (vm.name for vm in connection.call(stub.ListVms, vm_pb2.ListVmsRequest()).vms)


def _vcpus(connection: object) -> Iterator[str]:
    from fpstate.v1 import vcpu_pb2, vcpu_pb2_grpc

    from fpstated.ctl.connection import Connection

    assert isinstance(connection, Connection)
    stub = vcpu_pb2_grpc.VcpuServiceStub(connection.channel)
    for vm in _vms(connection):
        answer = connection.call(stub.ListVcpus, vcpu_pb2.ListVcpusRequest(parent=vm))
        yield from (vcpu.name for vcpu in answer.vcpus)


def _exits(connection: object) -> Iterator[str]:
    from fpstate.v1 import exit_pb2, exit_pb2_grpc

    from fpstated.ctl.connection import Connection

    assert isinstance(connection, Connection)
    stub = exit_pb2_grpc.ExitServiceStub(connection.channel)
    states = [exit_pb2.EXIT_STATE_OPEN, exit_pb2.EXIT_STATE_APPLYING, exit_pb2.EXIT_STATE_PAUSED]
    answer = connection.call(stub.ListExits, exit_pb2.ListExitsRequest(states=states))
    yield from (each.name for each in answer.exits)
