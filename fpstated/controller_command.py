"""``fpstated controller``: from its settings to a controller, with errors that name the setting."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO, cast

from fpstated.config.sources import ConfigError, Settings
from fpstated.console import HumanLines
from fpstated.link.http import loopback_address
from fpstated.link.spans import start_export
from fpstated.link.tls import ClientTls, client_tls
from fpstated.logs import set_up_logging
from vmm_controller.config import ControllerConfig
from vmm_controller.policy import parse_policies
from vmm_controller.run import run_controller

#: The settings behind the fields that a ControllerConfig may find wrong.
_KEYS = {"name": "name", "scope": "scope", "lease_s": "lease"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerRun:
    """One run of a controller as a process."""

    host: str
    config: ControllerConfig
    tls: ClientTls | None = None
    metrics: tuple[str, int] | None = None
    timeline: bool = False
    log_format: str = "text"
    log_level: str = "warning"
    trace_export: str = "none"


def controller_run(settings: Settings, default_address: str) -> ControllerRun:
    """Check what the settings mean together. Raises ``ConfigError``."""
    return ControllerRun(
        host=settings["host"] or default_address,
        config=_config(settings),
        tls=client_tls(settings["tls-cert"], settings["tls-key"], settings["tls-ca"]),
        metrics=_metrics(settings),
        timeline=settings["timeline"],
        log_format=settings["log-format"],
        log_level=settings["log-level"],
        trace_export=settings["trace-export"],
    )


def run(run: ControllerRun) -> int:
    """Run it until a signal; returns the exit status."""
    set_up_logging(run.log_format, run.log_level)
    out = None if run.timeline else cast("TextIO", HumanLines())
    try:
        if run.trace_export != "none":
            start_export(run.trace_export, service="fpstated-controller")
        return run_controller(run.host, run.config, tls=run.tls, out=out, metrics=run.metrics)
    except ImportError as error:
        flag, extra = ("--metrics", "host") if error.name == "prometheus_client" else ("--trace-export", "otel")
        print(f"fpstated controller: {flag} needs: pip install 'fpstated[{extra}]' ({error})", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fpstated controller: --metrics: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"fpstated controller: {error}", file=sys.stderr)
        return 2


def _metrics(settings: Settings) -> tuple[str, int] | None:
    if not settings["metrics"]:
        return None
    try:
        return loopback_address(settings["metrics"])
    except ValueError as error:
        raise settings.wrong("metrics", str(error).removeprefix("expected ").partition(", got")[0]) from error


def _config(settings: Settings) -> ControllerConfig:
    try:
        return ControllerConfig(
            name=settings["name"],
            scope=settings["scope"],
            lease_s=settings["lease"],
            policies=parse_policies(settings["policy"]),
            seed=settings["seed"],
            fault_points=settings["fault-points"],
        )
    except ValueError as error:
        field, _, rest = str(error).partition(": expected ")
        if field in _KEYS:
            raise settings.wrong(_KEYS[field], rest.partition(", got")[0]) from error
        raise ConfigError(f"{settings.source('policy')}: {error}") from error
