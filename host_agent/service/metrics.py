"""The metrics of a host: one table of what there is, and where each value comes from.

What the machine counts is read when somebody asks; what only passes by, calls and settled exits, is counted here.
Names of gRPC's own are those of the grpc-ecosystem convention.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import grpc
from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from host_agent import commands as c
from host_agent.durations import Durations
from host_agent.effects import Effect, ExitChanged, FaultChanged, MigrationChanged, VcpusTaken
from host_agent.journal.durable import DurableJournal
from host_agent.service.layers import Context, Layer, Method

if TYPE_CHECKING:
    from host_agent.service.agent import HostAgent
    from host_agent.service.credentials import LiveCredentials
    from host_agent.service.limit_layer import LimitLayer

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric as Prometheus shows it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


_CALL: Final = ("grpc_type", "grpc_service", "grpc_method")

#: Every metric there is; docs/metrics.md is made from this.
METRICS: Final = (
    Spec("grpc_server_started_total", "counter", _CALL, "Calls that began."),
    Spec("grpc_server_handled_total", "counter", (*_CALL, "grpc_code"), "Calls that ended, by status code."),
    Spec("grpc_server_handling_seconds", "histogram", _CALL, "How long calls lasted, in seconds; streams too."),
    Spec("fpstated_calls_under_way", "gauge", ("kind",), "Calls being served now: kind is call or stream."),
    Spec("fpstated_attach_streams", "gauge", (), "Attach streams that are open."),
    Spec("fpstated_exit_watchers", "gauge", (), "WatchExits streams that are open."),
    Spec("fpstate_allocations_total", "counter", (), "Containers that memory was taken for."),
    Spec("fpstate_allocation_failures_total", "counter", (), "Allocations that failed: no memory, or a byte limit."),
    Spec("fpstate_bytes", "gauge", (), "What all containers take, in bytes."),
    Spec("fpstate_bytes_peak", "gauge", (), "The most they ever took, in bytes."),
    Spec("fpstate_bytes_limit", "gauge", (), "The host's byte limit; absent where there is none."),
    Spec("fpstate_swaps_total", "counter", (), "Swaps, in and out."),
    Spec(
        "fpstate_growths_total",
        "counter",
        ("outcome",),
        "Containers that were to grow: grown, no_memory, quota or no_permission.",
    ),
    Spec("fpstate_shrinks_total", "counter", (), "Containers that were taken back to their default size."),
    Spec("fpstated_vms", "gauge", (), "VMs."),
    Spec("fpstated_vcpus", "gauge", (), "vCPUs of all VMs."),
    Spec("fpstated_sessions", "gauge", (), "Sessions alive."),
    Spec("fpstated_sessions_opened_total", "counter", (), "Sessions that were opened."),
    Spec("fpstated_events_total", "counter", (), "Events of guests that were submitted, repetitions included."),
    Spec("fpstated_exits_open", "gauge", (), "Exits that wait for a decision, or for its effect."),
    Spec("fpstated_exits_opened_total", "counter", ("cause",), "Exits that were raised, by what stood in the way."),
    Spec(
        "fpstated_exits_settled_total",
        "counter",
        ("decision", "result"),
        "Exits that are over, by the last decision (NONE for none) and what it came to.",
    ),
    Spec("fpstated_migrations_open", "gauge", ("role",), "Migrations that are not over: role is SOURCE or TARGET."),
    Spec(
        "fpstated_migrations_total",
        "counter",
        ("role", "state"),
        "Migrations that came to a state: BEGUN, IMPORTED, STAGED, COMMITTED or ABORTED.",
    ),
    Spec(
        "fpstated_faults_armed",
        "gauge",
        (),
        "Faults that are armed, those included that have fired as often as they may.",
    ),
    Spec("fpstated_faults_fired_total", "counter", ("point",), "Faults that fired."),
    Spec("fpstated_draining", "gauge", (), "1 while the host takes nothing new, else 0."),
    Spec("fpstated_revision", "gauge", (), "The host's revision."),
    Spec("fpstated_journal_records_total", "counter", (), "Records that were committed; absent on an ephemeral host."),
    Spec("fpstated_journal_bytes_total", "counter", (), "What they take, in bytes; absent on an ephemeral host."),
    Spec(
        "fpstated_journal_commit_seconds",
        "histogram",
        (),
        "How long commits lasted, in seconds; absent on an ephemeral host.",
    ),
    Spec(
        "fpstated_journal_backlog",
        "gauge",
        (),
        "Records that are applied and not durable; absent on an ephemeral host.",
    ),
    Spec("fpstated_storage_full", "gauge", (), "1 while the disk is full, else 0; absent on an ephemeral host."),
    Spec(
        "fpstated_storage_failed",
        "gauge",
        (),
        "1 when the journal cannot be written and the host stops, else 0; absent on an ephemeral host.",
    ),
    Spec(
        "fpstated_certificate_loads_total",
        "counter",
        (),
        "How often TLS files were read and taken; absent without TLS.",
    ),
)
_SPECS: Final = {spec.name: spec for spec in METRICS}


class HostMetrics(Collector):
    """The registry of one host. Listens to its agent; ``layer`` goes around its calls."""

    def __init__(self, agent: HostAgent, limits: LimitLayer, credentials: LiveCredentials | None = None) -> None:
        self._agent = agent
        self._limits = limits
        self._credentials = credentials
        self._open: set[str] = set(agent.state.exits)
        self._shown: dict[str, dict[str, float]] = {}
        self.registry = CollectorRegistry()
        self.layer = MetricsLayer(self.registry)
        self._sessions = _counter("fpstated_sessions_opened_total", self.registry)
        self._events = _counter("fpstated_events_total", self.registry)
        self._opened = _counter("fpstated_exits_opened_total", self.registry)
        self._settled = _counter("fpstated_exits_settled_total", self.registry)
        self._faults_fired = _counter("fpstated_faults_fired_total", self.registry)
        self._migrations = _counter("fpstated_migrations_total", self.registry)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    # -- what passes by ------------------------------------------------------------------------------------------------

    def heard(self, command: c.Command, effects: list[Effect]) -> None:
        """Count what a command made known."""
        if isinstance(command, c.SubmitBatch):
            self._events.inc(len(command.events))
        for effect in effects:
            if isinstance(effect, VcpusTaken):
                self._sessions.inc()
            elif isinstance(effect, ExitChanged):
                self._exit(effect.exit)
            elif isinstance(effect, FaultChanged) and effect.hit is not None:
                self._faults_fired.labels(effect.fault.point).inc()
            elif isinstance(effect, MigrationChanged):
                self._migration(effect.migration)

    def _migration(self, name: str) -> None:
        record = self._agent.state.migrations.get(name)
        if record is not None:
            self._migrations.labels(record.role.name, record.state.name).inc()

    def rolled_back(self) -> None:
        """What was counted stays counted; which exits are open is as it was."""
        self._open = set(self._agent.state.exits)

    def _exit(self, name: str) -> None:
        """An exit may be raised and settled by one command, and may change after it was settled."""
        record = self._agent.exit_record(name)
        if record is None:
            return
        state = self._agent.state
        if name not in self._open and (record.open or record.created_revision == state.revision):
            self._open.add(name)
            self._opened.labels(record.cause.name).inc()
        if not record.open and name in self._open:
            self._open.discard(name)
            decision = record.decision.name if record.decision is not None else "NONE"
            self._settled.labels(decision, record.result.name if record.result is not None else "NONE").inc()

    # -- what is read when it is asked for -----------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """The machine's own numbers, as they are now."""
        state = self._agent.state
        host = state.allocator.host
        counts = [platform.host.counts for platform in state.platforms.values()]
        yield self._counted("fpstate_allocations_total", host.allocations)
        yield self._counted("fpstate_allocation_failures_total", state.allocator.failures)
        yield _value("fpstate_bytes", host.used_bytes)
        yield _value("fpstate_bytes_peak", host.peak_bytes)
        if host.limit_bytes is not None:
            yield _value("fpstate_bytes_limit", host.limit_bytes)
        yield self._counted("fpstate_swaps_total", sum(each.swaps for each in counts))
        yield self._counted("fpstate_shrinks_total", sum(each.shrinks for each in counts))
        growths: dict[str, int] = {}
        for outcome, number in (pair for each in counts for pair in each.growths.items()):
            growths[outcome] = growths.get(outcome, 0) + number
        yield _labelled("fpstate_growths_total", self._grown("fpstate_growths_total", growths))
        yield _value("fpstated_vms", len(state.vms))
        yield _value("fpstated_vcpus", sum(len(vm.kvm.vcpus) for vm in state.vms.values()))
        yield _value("fpstated_sessions", len(state.sessions))
        yield _value("fpstated_exits_open", len(state.exits))
        yield _labelled("fpstated_migrations_open", {"SOURCE": len(state.leaving), "TARGET": len(state.coming)})
        yield _value("fpstated_faults_armed", len(state.faults.armed))
        yield _value("fpstated_draining", int(state.draining))
        yield _value("fpstated_revision", state.revision)
        yield from self._connections()
        yield from self._journal()

    def _counted(self, name: str, value: float) -> Metric:
        return _value(name, self._grown(name, {"": value})[""])

    def _grown(self, name: str, values: Mapping[str, float]) -> Mapping[str, float]:
        """A counter never falls, which would be a restart to who reads it; a full disk sets the machine's back."""
        shown = self._shown.setdefault(name, {})
        for label, value in values.items():
            shown[label] = max(value, shown.get(label, 0.0))
        return shown

    def _connections(self) -> Iterator[Metric]:
        yield _value("fpstated_attach_streams", len(self._agent.attachments))
        yield _value("fpstated_exit_watchers", len(self._agent.exit_watchers))
        under_way = {kind: self._limits.under_way(streams=kind == "stream") for kind in ("call", "stream")}
        yield _labelled("fpstated_calls_under_way", under_way)
        if self._credentials is not None:
            yield _value("fpstated_certificate_loads_total", self._credentials.loads)

    def _journal(self) -> Iterator[Metric]:
        journal = self._agent.journal
        if not isinstance(journal, DurableJournal):
            return
        yield _value("fpstated_journal_records_total", journal.commits.records)
        yield _value("fpstated_journal_bytes_total", journal.commits.bytes)
        seconds = _histogram("fpstated_journal_commit_seconds")
        seconds.add_metric((), journal.commits.durations.buckets(), journal.commits.durations.seconds)
        yield seconds
        yield _value("fpstated_journal_backlog", journal.backlog)
        yield _value("fpstated_storage_full", int(journal.full is not None))
        yield _value("fpstated_storage_failed", int(journal.failure is not None))


class MetricsLayer(Layer, Collector):
    """Counts every call with the code that its caller gets. On one loop, so that plain numbers do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls: dict[str, _Calls] = {}
        registry.register(self)

    def enter(self, method: Method, request: Any, context: Context) -> tuple[Any, tuple[_Calls, float]]:  # noqa: ANN401
        """Count the beginning."""
        calls = self._calls.get(method.path)
        if calls is None:
            calls = self._calls[method.path] = _Calls((method.kind, method.service, method.name))
        calls.started += 1
        return request, (calls, time.perf_counter())

    def leave(self, method: Method, context: Context, kept: tuple[_Calls, float], *, cancelled: bool) -> None:
        """Count the end."""
        calls, begin_s = kept
        calls.ended("CANCELLED" if cancelled else _code(context), time.perf_counter() - begin_s)

    def collect(self) -> Iterable[Metric]:
        """What was counted."""
        started, handled = _family("grpc_server_started_total"), _family("grpc_server_handled_total")
        seconds = _histogram("grpc_server_handling_seconds")
        for calls in self._calls.values():
            started.add_metric(calls.labels, calls.started)
            for code, number in calls.codes.items():
                handled.add_metric((*calls.labels, code), number)
            seconds.add_metric(calls.labels, calls.durations.buckets(), calls.durations.seconds)
        yield from (started, handled, seconds)


@dataclass(slots=True)
class _Calls:
    """The calls of one method."""

    labels: tuple[str, str, str]
    started: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    durations: Durations = field(default_factory=Durations)

    def ended(self, code: str, seconds: float) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1
        self.durations.add(seconds)


def _code(context: Context) -> str:
    """The name of the code that a call ends with; gRPC's asyncio server gives it as a number."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _CODES.get(code or 0, "UNKNOWN")


_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def _counter(name: str, registry: CollectorRegistry) -> Counter:
    spec = _SPECS[name]
    return Counter(spec.name, spec.help, spec.labels, registry=registry)


def _family(name: str) -> CounterMetricFamily:
    spec = _SPECS[name]
    return CounterMetricFamily(spec.name, spec.help, labels=spec.labels)


def _histogram(name: str) -> HistogramMetricFamily:
    spec = _SPECS[name]
    return HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)


def _value(name: str, value: float) -> Metric:
    spec = _SPECS[name]
    family = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    return family(spec.name, spec.help, value=value)


def _labelled(name: str, values: Mapping[str, float]) -> Metric:
    spec = _SPECS[name]
    family = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    made = family(spec.name, spec.help, labels=spec.labels)
    for label, value in values.items():
        made.add_metric([label], value)
    return made


def metrics_table() -> str:
    """The table of docs/metrics.md."""
    lines = ["| metric | type | labels | |", "|---|---|---|---|"]
    for spec in METRICS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        lines.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(lines) + "\n"
