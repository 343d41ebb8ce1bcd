"""The second host of a migration: how a command names and reaches it, and the line that asks for the same again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from fpstate.v1 import host_pb2, host_pb2_grpc

from fpstated.ctl.connection import UNREACHABLE, Connection, complain, unreachable
from fpstated.link.tls import ClientTls, client_tls
from guest_agent.error import HostError

_SAME: Final = "For the target; as for the other host, if not given."
TargetCert = Annotated[Path | None, typer.Option("--target-tls-cert", metavar="FILE", help=_SAME)]
TargetKey = Annotated[Path | None, typer.Option("--target-tls-key", metavar="FILE", help=_SAME)]
TargetCa = Annotated[Path | None, typer.Option("--target-tls-ca", metavar="FILE", help=_SAME)]


def target_tls(source: ClientTls | None, cert: Path | None, key: Path | None, ca: Path | None) -> ClientTls | None:
    """Each file that is not given is the source's. Raises typer.BadParameter for what is incomplete."""
    try:
        return client_tls(
            cert or (source.cert if source else None),
            key or (source.key if source else None),
            ca or (source.ca if source else None),
        )
    except ValueError as error:
        raise typer.BadParameter(f"target: {error}") from error


@contextmanager
def both_answer(source: Connection, target: str, tls: ClientTls | None) -> Iterator[Connection]:
    """The connection to the target, once each of the two has answered and they are two.

    Raises typer.BadParameter for what is no address of another host, and HostError where a host refuses to answer.
    """
    try:
        found = Connection(target, tls, timeout_s=source.timeout_s, name=source.name)
    except ValueError as error:
        raise typer.BadParameter(str(error).replace("address:", "TARGET:", 1)) from error
    with found.channel:
        ids = {_boot_id(each) for each in (source, found)}
        if len(ids) == 1:
            raise typer.BadParameter(f"TARGET: {target} is the host itself; expected another one")
        yield found


def _boot_id(host: Connection) -> str:
    stub = host_pb2_grpc.HostServiceStub(host.channel)
    try:
        return host.call(stub.GetHostInfo, host_pb2.GetHostInfoRequest()).header.boot_id
    except HostError as error:
        if not unreachable(error):
            raise
        complain(f"no host answers at {host.address} ({error.refusal.message})")
        raise typer.Exit(UNREACHABLE) from None


def line_of(ctx: typer.Context, *words: str) -> str:
    """`fpstated ctl WORDS`, with the options that reach the two hosts as they were given."""
    above = ctx.parent
    assert above is not None, "ctl is above its commands"
    own = [*words, *_given(ctx, ("target_tls_cert", "target_tls_key", "target_tls_ca"))]
    return shlex.join(["fpstated", "ctl", *_given(above), *own])


def _given(ctx: Any, names: tuple[str, ...] = ()) -> Iterator[str]:  # noqa: ANN401 -- typer's own types
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        said = source is not None and source.name == "COMMANDLINE"
        if said and (not names or name in names) and name != "print_config":
            yield parameter.opts[0]
            yield str(ctx.params[name])
