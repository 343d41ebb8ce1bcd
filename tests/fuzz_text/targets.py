"""Every parser: what it is called with, the error that it may raise, and inputs to begin with."""

from __future__ import annotations

import atexit
import base64
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fpstate.v1 import event_pb2

from fpstated.config.show import print_config
from fpstated.config.sources import ConfigError, read_settings
from fpstated.config.tables import CONTROLLER, HOST, TABLES
from fpstated.link.http import HttpListener, health_page, loopback_address
from fpstated.link.trace import parse_traceparent
from fpstated.timeline import parse_any
from fpu_core.config import boot
from fpu_core.cpuid import builtin_profile, format_cpuid_dump, parse_cpuid_dump
from fpu_core.errors import FieldError
from fpu_core.rules import KERNEL_RULES
from guest_agent.channel import check_address
from guest_agent.kvm import GrowthOrder
from guest_agent.run import shipped_script
from guest_agent.script_parser import ScriptError, parse_script
from host_agent import commands as c
from host_agent.events import GuestEvent, RegisterWrite, Wrmsr
from host_agent.journal.command import BadCommandError, pack_command, unpack_command
from host_agent.journal.outcome import outcome_text, pack_outcome
from host_agent.journal.record import BadRecordError, pack_record, unpack_record
from host_agent.journal.snapshot import SnapshotError, read_snapshot, snapshot_bytes
from host_agent.log import LogError, config_line, read_log, record_line
from host_agent.machine import HostMachine
from host_agent.service.access.principal import IdentityError, local_principal, principal_of
from host_agent.service.address import AddressError, parse_address
from host_agent.service.errors import Failure
from host_agent.service.paging import page
from host_agent.service.translate.packed import decode
from host_agent.state import HostConfig
from vmm_controller.policy import parse_policies
from vmm_controller.policy.parse import PolicyTextError

_SCRATCH: Final = Path(tempfile.mkdtemp(prefix="fpstated-fuzz-text-"))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Target:
    """A parser of bytes. ``errors`` are what it documents; ``says`` has to be in the text of each such error."""

    name: str
    call: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = ()
    says: str = ""
    seeds: tuple[bytes, ...] = ()

    def check(self, raw: bytes) -> None:
        """Call it. Raises what is not documented, and ``AssertionError`` for an error that does not say its words."""
        try:
            self.call(raw)
        except self.errors as error:
            if self.says not in str(error):
                raise AssertionError(f"{error!r} does not say {self.says!r}") from error


def _text(raw: bytes) -> str:
    """Any text that a caller can have: with lone surrogates too, as file names and arguments bring them."""
    return raw.decode(errors="surrogateescape")


def _script(raw: bytes) -> None:
    parse_script(_text(raw), name="f")


def _config(raw: bytes) -> None:
    path = _SCRATCH / "config.toml"
    path.write_bytes(raw)
    for table in (HOST, CONTROLLER):
        print_config(read_settings(table, {}, config=path, environment={}, others=TABLES))


def _environment(raw: bytes) -> None:
    """``NAME=VALUE`` lines, as an environment."""
    pairs = (line.partition("=") for line in _text(raw).splitlines())
    read_settings(HOST, {}, config=_empty(), environment={name: value for name, _, value in pairs}, others=TABLES)


def _empty() -> Path:
    path = _SCRATCH / "empty.toml"
    path.touch()
    return path


def _cpuid(raw: bytes) -> None:
    """Read a dump, write it, and boot what it says under each kernel's rules."""
    profile = parse_cpuid_dump(_text(raw), name="dump")
    format_cpuid_dump(profile)
    for rules in KERNEL_RULES.values():
        boot(profile, rules)


def _log(raw: bytes) -> None:
    read_log(_text(raw).splitlines())


def _snapshot(raw: bytes) -> None:
    """A snapshot whose checksum fits: what only another release, or a bug, would have written."""
    read_snapshot(raw + hashlib.sha256(raw).digest(), "f")


def _page(raw: bytes) -> None:
    """A page token whose base64 is right: what is inside is the caller's as well."""
    page((), lambda _item: (), size=1, token=base64.urlsafe_b64encode(raw).decode())


def _packed(raw: bytes) -> None:
    decode("packed", event_pb2.PackedEvents(vcpus=["vms/a/vcpus/0", "vms/a/vcpus/1"], records=raw))


def _http(raw: bytes) -> None:
    HttpListener("127.0.0.1", 0, {"/healthz": health_page(lambda: True)})._answer(raw)


def _made() -> HostMachine:
    machine = HostMachine(HostConfig())
    machine.apply(c.CreateVm(vm_id="a"), 0)
    machine.apply(c.CreateVcpu(vm="vms/a", index=0), 0)
    return machine


_MACHINE: Final = _made()
_SNAPSHOT: Final = snapshot_bytes(_MACHINE.state, 1, 2)[: -hashlib.sha256().digest_size]
_EVENTS: Final = (
    GuestEvent("vms/a/vcpus/0", 1, Wrmsr(0x1C4, 0)),
    GuestEvent("vms/a/vcpus/0", 2, RegisterWrite(2, 0, b"x")),
)
_BATCH: Final = c.SubmitBatch(session="sessions/s", epoch=1, events=_EVENTS, received=(("vms/a/vcpus/0", 1),))
_CREATE: Final = c.CreateVm(vm_id="a", labels={"a": "b"})
_SCRIPTS: Final = tuple(shipped_script(order).read_bytes() for order in GrowthOrder)
_TRACE: Final = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_HOST_TOML: Final = b"""[host]
listen = "unix:/run/fpstated/host.sock"
socket-mode = "0660"
byte-limit = 1_000_000_000
grace = 2.5
faults = true
[controller]
policy = ["vms/b=pause", "retry-after:base=0.1,factor=2,tries=5,then=pause"]
"""

TARGETS: Final = (
    Target("script", _script, (ScriptError,), "f:", _SCRIPTS),
    Target(
        "address",
        lambda raw: parse_address(_text(raw), allow_insecure_tcp=True),
        (AddressError,),
        "address:",
        (b"unix:/run/x", b"127.0.0.1:80", b"[::1]:1", b"localhost:65535", b"unix:///x"),
    ),
    Target(
        "target", lambda raw: check_address(_text(raw)), (ValueError,), "address:", (b"unix:/run/x", b"dns:x:1", b"h:1")
    ),
    Target("config", _config, (ConfigError,), "config.toml", (_HOST_TOML,)),
    Target(
        "environment",
        _environment,
        (ConfigError,),
        "FPSTATED_HOST_",
        (b"FPSTATED_HOST_CPUS=4\nFPSTATED_HOST_SOCKET_MODE=0660\nFPSTATED_HOST_GRACE=1\nFPSTATED_HOST_FAULTS=true",),
    ),
    Target("cpuid", _cpuid, (FieldError,), "", (format_cpuid_dump(builtin_profile("skylake-sp")).encode(),)),
    Target(
        "policy",
        lambda raw: parse_policies(_text(raw).splitlines()),
        (PolicyTextError,),
        "",
        (
            b"vms/b=pause\nretry-after:base=0.1,factor=2,tries=5,then=pause",
            b"raise-limit:to=1MiB,scope=vm\nmigrate:target=x",
        ),
    ),
    Target(
        "uri", lambda raw: principal_of(_text(raw)), (IdentityError,), "expected", (b"spiffe://a.b/guest/x/vms/y/z",)
    ),
    Target(
        "identity",
        lambda raw: local_principal(_text(raw)),
        (IdentityError,),
        "expected",
        (b"guest/x/vms/y", b"operator/local"),
    ),
    Target("traceparent", lambda raw: parse_traceparent(_text(raw)), (), "", (_TRACE,)),
    Target(
        "timeline",
        lambda raw: parse_any(_text(raw), wall_offset_ns=0),
        (),
        "",
        (
            b'{"t":1,"lane":"G","vcpu":"a/0","text":"x","tone":"plain"}',
            b'{"time_s":1.5,"event":"exit","state":"OPEN","errno_name":"ENOMEM","cause":"QUOTA","bytes_needed":1,"attempt":1}',
            b'{"time_s":1,"event":"decision","decision":"RETRY","delay_s":0.1,"attempt":1,"generation":1,"vcpu":"a"}',
        ),
    ),
    Target(
        "log",
        _log,
        (LogError,),
        "line ",
        (f"{config_line(HostConfig())}\n{record_line(5, _CREATE)}\n{record_line(6, _BATCH)}".encode(),),
    ),
    Target("command", unpack_command, (BadCommandError,), "", (pack_command(_BATCH), pack_command(_CREATE))),
    Target("outcome", outcome_text, (), "", (pack_outcome(_CREATE, None, []), b"\x01\x01\x14\x02\x0d" + bytes(12))),
    Target("record", lambda raw: unpack_record(raw, 0), (BadRecordError,), "", (pack_record(0, 1, 2, b"c", b"o")[0],)),
    Target("snapshot", _snapshot, (SnapshotError,), "f", (_SNAPSHOT,)),
    Target("page-token", _page, (Failure,), "page_token", (b'["vms/a"]', b'[1,"vms/a/vcpus/0/exits/1"]')),
    Target(
        "page-token-text",
        lambda raw: page((), lambda _item: (), size=1, token=_text(raw)),
        (Failure,),
        "page_token",
        (b"WyJhIl0=",),
    ),
    Target("packed", _packed, (Failure,), "packed", (bytes.fromhex("070000000000000000000000c4010000") + bytes(16),)),
    Target(
        "loopback", lambda raw: loopback_address(_text(raw)), (ValueError,), "expected", (b"127.0.0.1:80", b"[::1]:1")
    ),
    Target("http", _http, (), "", (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"HEAD /healthz HTTP/1.0\r\n\r\n")),
)
