"""The connection of one command to its host, and how a refusal becomes one line and a status.

0   done
1   the host has refused it, or what was found is not what was asked for
2   it was asked for wrongly
3   no host answered
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import typer
from google.protobuf.message import Message
from typer.core import TyperGroup

from fpstated.address import default_address
from fpstated.config.sources import Settings, read_settings
from fpstated.config.tables import CTL, TABLES
from fpstated.link.tls import ClientTls, client_tls
from guest_agent.channel import CHANNEL_OPTIONS, check_address
from guest_agent.error import HostError, host_error

REFUSED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

Answer = TypeVar("Answer")
#: More than the host gives at once anyway: as few calls as can be.
_PAGE_SIZE: Final = 1000
#: How long one attempt to connect may take. Where nobody listens it is over at once.
_CONNECT_MS: Final = 5_000


class Connection:
    """A host that is called one call after the other. It connects at the first."""

    def __init__(self, address: str, tls: ClientTls | None, *, timeout_s: float, name: str) -> None:
        """Raises ValueError for what is no address, and for files that no TLS can be made of."""
        self.address = check_address(address)
        self.tls = tls
        self.timeout_s = timeout_s
        #: Under which this command decides.
        self.name = name
        self.channel = _channel(address, tls)

    def call(self, method: Callable[..., Answer], request: Message) -> Answer:
        """Make a unary call. Raises HostError."""
        try:
            return method(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise host_error(error) from error

    def stream(self, method: Callable[..., Any], request: object) -> Iterator[Any]:
        """Make a call whose answers come one by one, without a deadline. Raises HostError."""
        call = method(request)
        try:
            yield from call
        except grpc.RpcError as error:
            raise host_error(error) from error
        finally:
            call.cancel()

    def pages(self, method: Callable[..., Answer], request: Any) -> Answer:  # noqa: ANN401 -- any List request
        """Make a List call page by page; the answer is the first one's with the entries of all. Raises HostError."""
        request.page_size = _PAGE_SIZE
        answer: Any = self.call(method, request)
        page: Any = answer
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = self.call(method, request)
            for field, value in page.ListFields():
                if field.is_repeated:
                    getattr(answer, field.name).extend(value)
        answer.ClearField("next_page_token")
        found: Answer = answer
        return found


def _channel(address: str, tls: ClientTls | None) -> grpc.Channel:
    """As a guest's, but for one thing: nobody's vCPU waits here, so a busy host gets more time to take a connection."""
    patient = ("grpc.min_reconnect_backoff_ms", _CONNECT_MS)
    options = (*(option for option in CHANNEL_OPTIONS if option[0] != patient[0]), patient)
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.credentials(), options=options)


def connection(ctx: typer.Context) -> Connection:
    """The one that the command's callback has made."""
    found = ctx.find_object(Connection)
    assert found is not None, "the callback of ctl comes first"
    return found


def connected(settings: Settings) -> Connection:
    """Make the connection that settings ask for. Raises ValueError (ConfigError)."""
    tls = client_tls(settings["tls-cert"], settings["tls-key"], settings["tls-ca"])
    address = settings["address"] or default_address()
    try:
        return Connection(address, tls, timeout_s=settings["timeout"], name=settings["name"])
    except ValueError as error:
        raise ValueError(str(error).replace("address:", f"{settings.source('address')}:", 1)) from error


def ctl_settings(flags: dict[str, object], config: Path | None) -> Settings:
    """Read the settings of `fpstated ctl`. Raises ConfigError."""
    return read_settings(CTL, flags, config=config, others=TABLES)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


class Group(TyperGroup):
    """The commands below, and the one place where what they raise becomes a line and a status."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 -- typer's own types
        """Run the command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            complain(f"{error.format_message()} (--help says more)")
            raise typer.Exit(USAGE) from None
        except HostError as error:
            complain(told(ctx, error))
            raise typer.Exit(UNREACHABLE if unreachable(error) else REFUSED) from None
        except BrokenPipeError:
            # Whoever read has seen enough. What Python would still flush goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def complain(text: str) -> None:
    """Say what is wrong, on standard error."""
    print(f"fpstated ctl: {text}", file=sys.stderr)


def unreachable(error: HostError) -> bool:
    """Whether no host has answered: gRPC itself says so, without a reason of the host's."""
    return not error.reason and error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def told(ctx: typer.Context, error: HostError) -> str:
    """A refusal in one line, with what to do about it where that is known."""
    found = ctx.find_object(Connection)
    if unreachable(error):
        where = found.address if found is not None else "the host"
        return f"no host answers at {where} ({error.refusal.message}); is it another --address, or: fpstated host"
    hint = _hint(error)
    text = error.refusal.message
    more = "".join(f"; {each.field}: {each.description}" for each in error.violations if each.field not in text)
    return f"{error.reason or error.refusal.code}: {text}{more}{f' ({hint})' if hint else ''}"


def _hint(error: HostError) -> str:
    """What to do about it, where that is known."""
    told = error.metadata
    match error.reason:
        case "ROLE_NOT_ALLOWED":
            return f"{told.get('principal')} needs another role; docs/security.md has who may what"
        case "NOT_OWNER":
            return "a guest's identity reaches its own VMs alone; name one of them"
        case "CONTROL_HELD":
            wait = f", free in {error.retry_delay_s:.0f} s at the latest" if error.retry_delay_s else ""
            return f"held by {told.get('holder')}{wait} unless it renews its lease"
        case "EXIT_ALREADY_RESOLVED":
            return f"what came of it: {told.get('result') or '-'}"
        case "EXIT_STALE_GENERATION":
            return "look at it again: fpstated ctl exits get EXIT"
        case "VM_NOT_EMPTY":
            return "--force takes its vCPUs with it"
        case "MIGRATION_NOT_FOUND":
            return "fpstated ctl migrations list shows what there is"
        case "VM_NOT_FOUND" | "VCPU_NOT_FOUND" | "EXIT_NOT_FOUND":
            return f"fpstated ctl {error.reason.split('_')[0].lower()}s list shows what there is"
        case _:
            return ""
