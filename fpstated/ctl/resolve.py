"""``fpstated ctl resolve``: take control, decide, give control up."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Final, Literal

import typer
from fpstate.v1 import exit_pb2
from google.protobuf import duration_pb2

from fpstated.ctl.complete import complete_vcpu
from fpstated.ctl.connection import Connection, connection
from fpstated.ctl.exits import ExitArgument, decision_text, exit_stub, print_exit
from fpstated.ctl.names import byte_limit, exit_name, vcpu_name
from fpstated.ctl.show import Json, print_json
from guest_agent.error import HostError

DecisionName = Literal[
    "retry",
    "retry-after",
    "raise-limit",
    "reclaim",
    "inject-gp",
    "inject-nm",
    "defer",
    "pause",
    "kill-vcpu",
    "kill-vm",
    "reset-vm",
    "hide-feature",
    "migrate",
]
#: The options of each decision that has some: what it needs first.
_OPTIONS: Final = {
    "retry-after": ("delay",),
    "raise-limit": ("bytes", "scope"),
    "reclaim": ("victim", "any"),
    "migrate": ("target",),
}
#: How long control is taken for: time enough to decide, and gone soon where this process is.
_LEASE_S: Final = 10


def resolve(  # noqa: PLR0913, PLR0917 -- one option each
    ctx: typer.Context,
    name: ExitArgument,
    decision: Annotated[DecisionName, typer.Argument(metavar="DECISION", help="What shall happen.")],
    delay: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.000_001, max=3600, help="retry-after: how long to wait.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option("--bytes", metavar="BYTES", help="raise-limit: the new limit, in all.")
    ] = None,
    scope: Annotated[Literal["vm", "host"] | None, typer.Option(help="raise-limit: whose limit. [vm]")] = None,
    victim: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VCPU",
            help="reclaim: whom to take from; may be given several times.",
            autocompletion=complete_vcpu,
        ),
    ] = None,
    any_victim: Annotated[bool | None, typer.Option("--any", help="reclaim: and from whomever the host finds.")] = None,
    target: Annotated[str | None, typer.Option(metavar="ADDRESS", help="migrate: where to.")] = None,
    generation: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only if the exit is still at this one; as it is now, if not given."),
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the audit.")] = "",
    as_json: Json = False,
) -> None:
    """Decide about an exit. DECISION is one of those that the exit takes: fpstated ctl exits get EXIT.

    retry, retry-after, raise-limit, reclaim, inject-gp, inject-nm, defer, pause, kill-vcpu, kill-vm, reset-vm,
    hide-feature, migrate.

    Control of the VM is taken for the moment (of the host, for raise-limit --scope host) and given up again; while a
    controller holds it, that one decides. The first decision of a generation wins.

    Examples: fpstated ctl resolve a/0/7 retry;
    fpstated ctl resolve a/0/7 retry-after --delay 0.5;
    fpstated ctl resolve a/0/7 raise-limit --bytes 64K --reason "a larger guest"
    """
    found, full = connection(ctx), exit_name(name)
    given: dict[str, object] = {
        "delay": delay,
        "bytes": limit,
        "scope": scope,
        "victim": victim or None,
        "any": any_victim,
        "target": target,
    }
    made = _decision(decision, given)
    stub = exit_stub(found)
    if generation is None:
        generation = found.call(stub.GetExit, exit_pb2.GetExitRequest(name=full)).exit.generation
    with _control(found, "" if scope == "host" else full.partition("/vcpus/")[0]) as control:
        request = exit_pb2.ResolveExitRequest(
            name=full,
            generation=generation,
            control=control.control,
            control_epoch=control.epoch,
            decision=made,
            request_id=str(uuid.uuid4()),
            decided_by=found.name,
            reason=reason,
        )
        answer = found.call(stub.ResolveExit, request)
    if as_json:
        print_json(answer)
        return
    print(f"{full}: decided {decision_text(made)}")
    print_exit(answer.exit)


@contextmanager
def _control(found: Connection, scope: str) -> Iterator[exit_pb2.AcquireControlResponse]:
    """Hold a scope. Raises HostError, CONTROL_HELD where somebody else does."""
    stub = exit_stub(found)
    lease = duration_pb2.Duration(seconds=_LEASE_S)
    asked = exit_pb2.AcquireControlRequest(
        scope=scope, controller_name=f"{found.name}-{uuid.uuid4().hex[:8]}", lease=lease
    )
    control = found.call(stub.AcquireControl, asked)
    try:
        yield control
    finally:
        released = exit_pb2.ReleaseControlRequest(control=control.control, epoch=control.epoch)
        with suppress(HostError):  # the lease runs out by itself
            found.call(stub.ReleaseControl, released)


def _decision(name: DecisionName, given: dict[str, object]) -> exit_pb2.Decision:
    """The decision with its options. Raises typer.BadParameter for one that is missing, or another decision's."""
    mine = _OPTIONS.get(name, ())
    strange = [f"--{option}" for option, value in given.items() if value is not None and option not in mine]
    if strange:
        takes = f"takes {', '.join(f'--{option}' for option in mine)}" if mine else "takes no options"
        raise typer.BadParameter(f"{name} {takes}, got {', '.join(strange)}")
    match name:
        case "retry-after":
            delay = _needed(name, "delay", given)
            assert isinstance(delay, float)
            nanos = round(delay * 1e9)
            after = exit_pb2.RetryAfter(delay=duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9))
            return exit_pb2.Decision(retry_after=after)
        case "raise-limit":
            return exit_pb2.Decision(raise_limit=_raise_limit(str(_needed(name, "bytes", given)), given["scope"]))
        case "reclaim":
            victims, any_victim = given["victim"], bool(given["any"])
            assert isinstance(victims, list | None)
            if not victims and not any_victim:
                raise typer.BadParameter("reclaim needs --victim VCPU or --any")
            reclaim = exit_pb2.Reclaim(victims=[vcpu_name(each) for each in victims or ()], any=any_victim)
            return exit_pb2.Decision(reclaim=reclaim)
        case "migrate":
            return exit_pb2.Decision(migrate=exit_pb2.Migrate(target=str(_needed(name, "target", given))))
        case _:
            made = exit_pb2.Decision()
            getattr(made, name.replace("-", "_")).SetInParent()
            return made


def _needed(name: str, option: str, given: dict[str, object]) -> object:
    value = given[option]
    if value is None:
        raise typer.BadParameter(f"{name} needs --{option}")
    return value


def _raise_limit(text: str, scope: object) -> exit_pb2.RaiseLimit:
    value = byte_limit(text)
    if not value:
        raise typer.BadParameter(f"--bytes: expected more than 0 bytes, got {text!r}")
    whose = exit_pb2.LIMIT_SCOPE_HOST if scope == "host" else exit_pb2.LIMIT_SCOPE_VM
    return exit_pb2.RaiseLimit(bytes=value, scope=whose)
