"""From the settings of `fpstated host` to what the host is started with, with errors that name the setting."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fpstated.config.sources import ConfigError, Settings
from fpstated.link.tls import client_tls
from fpstated.native_cpuid import NoCpuidError, native_profile
from fpstated.state_dir import StateDirError, default_state_dir
from fpu_core.cpuid import builtin_profile_names, format_cpuid_dump, parse_cpuid_dump
from fpu_core.errors import FieldError
from fpu_core.rules import KERNEL_RULES
from host_agent.exits import DecisionKind
from host_agent.journal.journal import JournalOptions
from host_agent.service.access.principal import IdentityError, local_principal
from host_agent.service.credentials import TlsFiles
from host_agent.service.limit_layer import PeerLimits
from host_agent.service.options import ServerOptions
from host_agent.state import NS_PER_S, HostConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRun:
    """One run of a host as a process: what it is, where it listens, and what is written about it."""

    config: HostConfig
    options: ServerOptions
    listen: str
    insecure_tcp: bool = False
    #: Where the host's history is; None for a host in memory.
    journal: JournalOptions | None = None
    #: Who is asked at the points of the disk under the journal; empty for nobody.
    fault_points: str = ""
    #: Receives every command as a line; like lane H it shows what is applied, which may be a commit ahead of the disk.
    record: Path | None = None
    #: Lane H as JSON lines on standard output, after a first line ``{"ready": ADDRESS}``.
    timeline: bool = False
    #: Seconds that streams have to end when the host stops.
    grace_s: float = 5.0
    log_format: str = "text"
    log_level: str = "warning"
    trace_export: str = "none"


def host_run(settings: Settings, default_address: str) -> HostRun:
    """Check what the settings mean together. Raises ``ConfigError``."""
    return HostRun(
        config=host_config(settings),
        options=server_options(settings),
        listen=settings["listen"] or default_address,
        insecure_tcp=settings["insecure-tcp"],
        journal=journal_options(settings),
        fault_points=fault_points(settings),
        record=settings["record"],
        timeline=settings["timeline"],
        grace_s=settings["grace"],
        log_format=settings["log-format"],
        log_level=settings["log-level"],
        trace_export=settings["trace-export"],
    )


def host_config(settings: Settings) -> HostConfig:
    """Make the machine's configuration; the boot id is drawn from the system. Raises ``ConfigError``."""
    kernel_rules = settings["kernel-rules"]
    if kernel_rules not in KERNEL_RULES:
        raise settings.wrong("kernel-rules", f"one of {', '.join(KERNEL_RULES)}")
    default_profile, dump = _processor(settings)
    return HostConfig(
        host=settings["name"],
        boot_id=os.urandom(8).hex(),
        default_profile=default_profile,
        default_cpuid_dump=dump,
        default_kernel_rules=kernel_rules,
        cpus=settings["cpus"],
        byte_limit=settings["byte-limit"],
        exit_deadline_ns=round(settings["exit-deadline"] * NS_PER_S),
        exit_default=DecisionKind[settings["exit-default"].upper().replace("-", "_")],
        migration_deadline_ns=round(settings["migration-deadline"] * NS_PER_S),
        faults=settings["faults"],
        check_invariants=settings["check-invariants"],
        max_sessions=settings["sessions"],
        max_request_ids=settings["request-ids"],
        max_resolved_exits=settings["settled-exits"],
    )


def journal_options(settings: Settings) -> JournalOptions | None:
    """Say where the journal is and how it is kept. Raises ``ConfigError``."""
    directory = settings["state-dir"]
    if settings["ephemeral"]:
        if directory is not None:
            given = " and ".join(f"{key} ({settings.source(key)})" for key in ("state-dir", "ephemeral"))
            raise ConfigError(f"{given} exclude each other: expected one of them")
        return None
    try:
        directory = directory or default_state_dir(settings["name"])
    except StateDirError as error:
        raise ConfigError(str(error)) from error
    return JournalOptions(directory=directory, snapshot_every=settings["snapshot-every"], history=settings["history"])


def fault_points(settings: Settings) -> str:
    """Say who is asked at points outside of the machine. Raises ``ConfigError`` where faults are not allowed."""
    address: str = settings["fault-points"]
    if address and not settings["faults"]:
        raise ConfigError(f"{settings.source('fault-points')}: expected --faults with it")
    return address


def server_options(settings: Settings) -> ServerOptions:
    """Make the server's. Raises ``ConfigError``."""
    try:
        local_principal(settings["socket-identity"])
    except IdentityError as error:
        raise settings.wrong("socket-identity", str(error).removeprefix("expected ").partition(", got")[0]) from error
    try:
        tls = client_tls(settings["tls-cert"], settings["tls-key"], settings["tls-ca"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return ServerOptions(
        tls=None if tls is None else TlsFiles(tls.cert, tls.key, tls.ca),
        socket_mode=settings["socket-mode"],
        socket_group=settings["socket-group"],
        socket_identity=settings["socket-identity"],
        peer_limits=PeerLimits(
            calls_max=settings["calls-per-principal"],
            streams_max=settings["streams-per-principal"],
            calls_per_s=settings["calls-per-second"],
            burst=settings["calls-burst"],
        ),
        stream_max_age_s=settings["stream-max-age"],
        reflection=settings["reflection"],
        metrics=settings["metrics"],
        metrics_anywhere=settings["metrics-anywhere"],
        admin=settings["admin"],
    )


def _processor(settings: Settings) -> tuple[str, str]:
    """Return (built-in name, dump), one of them empty."""
    profile = settings["profile"]
    try:
        if profile == "native":
            return "", format_cpuid_dump(native_profile())
        if profile.startswith("@"):
            text = Path(profile[1:]).read_text(encoding="utf-8")
            parse_cpuid_dump(text, name=profile)
            return "", text
    except (OSError, UnicodeDecodeError, NoCpuidError, FieldError) as error:
        raise settings.wrong("profile", f"a processor that can be read ({error})") from error
    if profile not in builtin_profile_names():
        raise settings.wrong("profile", f"{', '.join(builtin_profile_names())}, native or @FILE")
    return profile, ""
