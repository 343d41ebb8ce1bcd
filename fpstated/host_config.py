"""From the words of the command line to a HostConfig, with errors that name the option."""

from __future__ import annotations

import os
from pathlib import Path

from fpstated.native_cpuid import NoCpuidError, native_profile
from fpu_core.cpuid import builtin_profile_names, format_cpuid_dump, parse_cpuid_dump
from fpu_core.errors import FieldError
from fpu_core.rules import KERNEL_RULES
from host_agent.state import NS_PER_S, HostConfig


class ConfigError(ValueError):
    """An option that cannot be right; the text names it and what would have been accepted."""


def host_config(
    *,
    name: str,
    profile: str,
    kernel_rules: str,
    cpus: int,
    byte_limit: int | None,
    exit_deadline_s: float,
    faults: bool,
    check_invariants: bool,
) -> HostConfig:
    """Check the options and make the configuration; the boot id is drawn from the system."""
    if kernel_rules not in KERNEL_RULES:
        raise ConfigError(f"--kernel-rules: expected one of {', '.join(KERNEL_RULES)}, got {kernel_rules!r}")
    default_profile, dump = _processor(profile)
    return HostConfig(
        host=name,
        boot_id=os.urandom(8).hex(),
        default_profile=default_profile,
        default_cpuid_dump=dump,
        default_kernel_rules=kernel_rules,
        cpus=cpus,
        byte_limit=byte_limit,
        exit_deadline_ns=round(exit_deadline_s * NS_PER_S),
        faults=faults,
        check_invariants=check_invariants,
    )


def _processor(profile: str) -> tuple[str, str]:
    """Return (built-in name, dump), one of them empty."""
    try:
        if profile == "native":
            return "", format_cpuid_dump(native_profile())
        if profile.startswith("@"):
            text = Path(profile[1:]).read_text(encoding="utf-8")
            parse_cpuid_dump(text, name=profile)
            return "", text
    except (OSError, UnicodeDecodeError, NoCpuidError, FieldError) as error:
        raise ConfigError(f"--profile {profile}: {error}") from error
    if profile not in builtin_profile_names():
        names = ", ".join(builtin_profile_names())
        raise ConfigError(f"--profile: expected {names}, native or @FILE, got {profile!r}")
    return profile, ""
