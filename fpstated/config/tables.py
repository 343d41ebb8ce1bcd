"""The tables: every setting of `fpstated host`, of `fpstated controller` and of `fpstated ctl`, said once."""

from __future__ import annotations

from typing import Final

from fpstated.config.setting import Setting, Table, choice, file_mode, number, path, switch, text, texts

_TLS: Final = (
    Setting(
        key="tls-cert",
        kind=path(),
        default=None,
        help="PEM file: the certificate for mutual TLS, with --tls-key and --tls-ca.",
    ),
    Setting(key="tls-key", kind=path(), default=None, help="PEM file: its key, mode 0600."),
    Setting(
        key="tls-ca", kind=path(), default=None, help="PEM file: the CA that the other side's certificate is from."
    ),
)
_LOG: Final = (
    Setting(key="log-format", kind=choice("text", "json"), default="text", help="Lines for people, or JSON lines."),
    Setting(
        key="log-level",
        kind=choice("debug", "info", "warning", "error"),
        default="warning",
        help="The least that is logged, to standard error.",
    ),
    Setting(
        key="trace-export",
        kind=choice("none", "console", "otlp"),
        default="none",
        help="Export OpenTelemetry spans; otlp goes where OTEL_EXPORTER_OTLP_ENDPOINT says. Needs fpstated[otel].",
    ),
)
_JOURNAL: Final = (
    Setting(
        key="state-dir",
        kind=path(),
        default=None,
        default_text="fpstated/NAME in the state home",
        metavar="DIR",
        help="Where every command is written down before it is answered. The state home is $STATE_DIRECTORY, "
        "$XDG_STATE_HOME or ~/.local/state.",
    ),
    Setting(
        key="ephemeral",
        kind=switch(),
        default=False,
        help="Keep everything in memory; it is gone when the host stops.",
    ),
    Setting(
        key="snapshot-every",
        kind=number(1, whole=True),
        default=50_000,
        help="Events between two snapshots: what a start replays at most.",
    ),
    Setting(
        key="history",
        kind=number(0, whole=True),
        default=100_000,
        help="Records kept beyond those that a start may need.",
    ),
)
_FAULT_POINTS: Final = Setting(
    key="fault-points",
    kind=text("ADDRESS"),
    default="",
    default_text="none",
    help="Ask here (FaultService.Evaluate) what is to go wrong at points outside of a host's machine: docs/live.md.",
)
_TIMELINE: Final = Setting(
    key="timeline", kind=switch(), default=False, help="Write the timeline as JSON lines to standard output."
)

HOST: Final = Table(
    "host",
    (
        Setting(
            key="listen",
            kind=text("ADDRESS"),
            default="",
            default_text="a socket of the user's",
            help="unix:PATH, or HOST:PORT with --tls-cert, --tls-key and --tls-ca, or on loopback with --insecure-tcp.",
        ),
        Setting(
            key="socket-mode", kind=file_mode(), default=0o600, help="Mode of the socket: 0600, or 0660 for a group."
        ),
        Setting(
            key="socket-group",
            kind=text("GROUP"),
            default="",
            default_text="the process's",
            help="Group of the socket.",
        ),
        Setting(
            key="socket-identity",
            kind=text("ROLE/NAME"),
            default="operator/local",
            help="Who the peers without a certificate are.",
        ),
        Setting(
            key="insecure-tcp", kind=switch(), default=False, help="Allow plaintext TCP, on loopback addresses only."
        ),
        *_TLS,
        Setting(key="name", kind=text(), default="host", help="The host's name, as every reply carries it."),
        *_JOURNAL,
        Setting(
            key="profile",
            kind=text(),
            default="sapphire-rapids",
            help="Processor of VMs that name none: a built-in one, 'native', or @FILE in cpuid -r form.",
        ),
        Setting(key="kernel-rules", kind=text(), default="6.18", help="Kernel of VMs that name none: 6.18 or 6.12."),
        Setting(
            key="cpus",
            kind=number(1, 1024, whole=True),
            default=4,
            help="Modelled CPUs of each kind of processor.",
        ),
        Setting(
            key="byte-limit",
            kind=number(0, whole=True, unit="bytes"),
            default=None,
            default_text="none",
            help="Bytes that all containers may take together.",
        ),
        Setting(
            key="exit-deadline",
            kind=number(0.001, 86_400, unit="seconds"),
            default=30.0,
            help="Seconds a controller has before the default action.",
        ),
        Setting(
            key="exit-default",
            # host_agent.decision_rules.DEFAULT_ACTIONS, which a guest's install does not have.
            kind=choice("pause", "inject-gp", "hide-feature", "kill-vcpu", "kill-vm", "reset-vm"),
            default="pause",
            help="The default action, where no controller decides in time.",
        ),
        Setting(
            key="migration-deadline",
            kind=number(0.001, 86_400, unit="seconds"),
            default=300.0,
            help="Seconds a VM stands still for a migration before this host, its source, goes on with it.",
        ),
        Setting(key="faults", kind=switch(), default=False, help="Let fault points be armed over the wire."),
        _FAULT_POINTS,
        Setting(
            key="check-invariants", kind=switch(), default=False, help="Check every invariant after every command."
        ),
        Setting(
            key="record",
            kind=path(),
            default=None,
            help="Write every command of a host that begins to a new FILE; `fpstated replay` reads it.",
        ),
        _TIMELINE,
        Setting(
            key="grace",
            kind=number(0, 3600, unit="seconds"),
            default=5.0,
            help="Seconds that streams have to end when the host stops.",
        ),
        Setting(key="reflection", kind=switch(), default=True, help="Offer gRPC reflection."),
        Setting(
            key="sessions",
            kind=number(1, 1_000_000, whole=True),
            default=10_000,
            help="Sessions at once; of as many that have ended it is known how.",
        ),
        Setting(
            key="request-ids",
            kind=number(1, 1_000_000, whole=True),
            default=100_000,
            help="Answers that are kept for repeated request ids: some 10 KiB each where it made a vCPU.",
        ),
        Setting(
            key="settled-exits",
            kind=number(1, 1_000_000, whole=True),
            default=10_000,
            help="Exits that are kept when they are over.",
        ),
        Setting(
            key="calls-per-principal",
            kind=number(1, 1_000_000, whole=True),
            default=4096,
            help="Calls of one principal at once, streams apart.",
        ),
        Setting(
            key="streams-per-principal",
            kind=number(1, 1_000_000, whole=True),
            default=1024,
            help="Streams of one principal at once.",
        ),
        Setting(
            key="stream-max-age",
            kind=number(0, 86_400, unit="seconds"),
            default=1800.0,
            help="Seconds after which the client of a stream comes back on a new one, a tenth more or less; 0: never.",
        ),
        Setting(
            key="calls-per-second",
            kind=number(0, 1_000_000),
            default=5000.0,
            help="Calls of one principal a second, in the long run; 0 for no limit.",
        ),
        Setting(
            key="calls-burst",
            kind=number(1, 1_000_000, whole=True),
            default=10_000,
            help="Calls of one principal at once after a pause.",
        ),
        Setting(
            key="metrics",
            kind=text("HOST:PORT"),
            default="",
            default_text="none",
            help="Serve Prometheus metrics and /healthz over HTTP here; on loopback unless --metrics-anywhere.",
        ),
        Setting(
            key="metrics-anywhere",
            kind=switch(),
            default=False,
            help="Allow --metrics beyond loopback: plaintext, and open to whoever gets there.",
        ),
        Setting(
            key="admin",
            kind=text("ADDRESS"),
            default="",
            default_text="none",
            help="Serve channelz and health over gRPC here: unix:PATH, or HOST:PORT on loopback.",
        ),
        *_LOG,
    ),
)

CONTROLLER: Final = Table(
    "controller",
    (
        Setting(
            key="host",
            kind=text("ADDRESS"),
            default="",
            default_text="the user's socket",
            help="The host: unix:PATH or HOST:PORT.",
        ),
        *_TLS,
        Setting(
            key="scope",
            kind=text("VM"),
            default="",
            default_text="the whole host",
            help="vms/NAME, or nothing for the whole host.",
        ),
        Setting(
            key="policy",
            kind=texts("[vms/NAME=]POLICY"),
            default=(),
            default_text="by cause",
            help="retry, retry-after:base=0.1,factor=2,tries=5,then=pause, inject-gp, pause, kill-vcpu, kill-vm; "
            "for one VM or for all. May be given several times. Default: by cause.",
        ),
        Setting(key="name", kind=text(), default="controller", help="The controller's name, as decisions carry it."),
        Setting(key="seed", kind=number(0, whole=True), default=0, help="What jitter is drawn from."),
        Setting(
            key="lease",
            kind=number(0, 86_400, unit="seconds"),
            default=0.0,
            help="Seconds the control lease is wished for; 0: the host's own.",
        ),
        Setting(
            key="metrics",
            kind=text("HOST:PORT"),
            default="",
            default_text="none",
            help="Serve Prometheus metrics and /healthz over HTTP here, on loopback. Needs fpstated[host].",
        ),
        _FAULT_POINTS,
        _TIMELINE,
        *_LOG,
    ),
)

CTL: Final = Table(
    "ctl",
    (
        Setting(
            key="address",
            kind=text("ADDRESS"),
            default="",
            default_text="the user's socket",
            help="The host: unix:PATH or HOST:PORT.",
        ),
        *_TLS,
        Setting(
            key="timeout",
            kind=number(0.1, 86_400, unit="seconds"),
            default=30.0,
            help="Seconds that one call may take; a watch and an image may take longer.",
        ),
        Setting(
            key="name",
            kind=text(),
            default="fpstated-ctl",
            help="The name under which `resolve` takes control and decides.",
        ),
    ),
)

#: Every section that a file may have.
TABLES: Final = (HOST, CONTROLLER, CTL)
