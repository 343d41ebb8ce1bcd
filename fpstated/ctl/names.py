"""Names as people type them: `a` for vms/a, `a/0` for its vCPU 0, `a/0/7` for that one's exit 7. Full names stay."""

from __future__ import annotations

import re
from typing import Final

import typer

_VM: Final = re.compile(r"(?:vms/)?([a-z][a-z0-9-]{0,62})")
_VCPU: Final = re.compile(r"(?:vms/)?([a-z][a-z0-9-]{0,62})/(?:vcpus/)?(\d{1,20})")
_EXIT: Final = re.compile(r"(?:vms/)?([a-z][a-z0-9-]{0,62})/(?:vcpus/)?(\d{1,20})/(?:exits/)?(\d{1,20})")

_MIGRATION: Final = re.compile(r"(?:vms/)?([a-z][a-z0-9-]{0,62})/(?:migrations/)?([a-z0-9-]{1,126})")


def vm_name(text: str) -> str:
    """`vms/{vm}`. Raises typer.BadParameter."""
    match = _matched(_VM, text, "a VM: NAME or vms/NAME")
    return f"vms/{match[1]}"


def vcpu_name(text: str) -> str:
    """`vms/{vm}/vcpus/{index}`. Raises typer.BadParameter."""
    match = _matched(_VCPU, text, "a vCPU: VM/INDEX or vms/VM/vcpus/INDEX")
    return f"vms/{match[1]}/vcpus/{int(match[2])}"


def exit_name(text: str) -> str:
    """`vms/{vm}/vcpus/{index}/exits/{seq}`. Raises typer.BadParameter."""
    match = _matched(_EXIT, text, "an exit: VM/INDEX/NUMBER or vms/VM/vcpus/INDEX/exits/NUMBER")
    return f"vms/{match[1]}/vcpus/{int(match[2])}/exits/{int(match[3])}"


def migration_name(text: str) -> str:
    """`vms/{vm}/migrations/{migration}`. Raises typer.BadParameter."""
    match = _matched(_MIGRATION, text, "a migration: VM/ID or vms/VM/migrations/ID")
    return f"vms/{match[1]}/migrations/{match[2]}"


def _matched(pattern: re.Pattern[str], text: str, expected: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"expected {expected}, got {text!r}")
    return match


_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_BYTES: Final = re.compile(r"(\d{1,20})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def byte_limit(text: str) -> int | None:
    """A number of bytes, `10752`, `64K`, `1GiB`; None for `none`. Raises typer.BadParameter."""
    if text.lower() == "none":
        return None
    match = _BYTES.fullmatch(text)
    if match is None or (value := int(match[1]) * _UNITS[match[2].lower()]) >= 1 << 64:
        raise typer.BadParameter(f"expected bytes (10752, 64K, 1GiB) or none, got {text!r}")
    return value
