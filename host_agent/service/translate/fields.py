"""Fields that many requests have: resource names, ids, texts, durations, masks of fields; each with its rule.

Every reader takes the field's path first, so that a refusal can name it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from fpstate.v1 import common_pb2
from google.protobuf import duration_pb2, field_mask_pb2

from host_agent.service.errors import field_invalid
from host_agent.state import HostState

_ID: Final = "[a-z][a-z0-9-]{0,62}"
_NUMBER: Final = "(?:0|[1-9][0-9]{0,19})"
_VM: Final = re.compile(f"vms/{_ID}")
_VCPU: Final = re.compile(f"vms/{_ID}/vcpus/{_NUMBER}")
_TASK: Final = re.compile(f"vms/{_ID}/tasks/{_ID}")
_EXIT: Final = re.compile(f"vms/{_ID}/vcpus/{_NUMBER}/exits/{_NUMBER}")
_HOSTS_OWN: Final = "[a-z0-9-]{1,126}"
_MIGRATION: Final = re.compile(f"vms/{_ID}/migrations/{_HOSTS_OWN}")
_SESSION: Final = re.compile(f"sessions/{_HOSTS_OWN}")
_CONTROL: Final = re.compile(f"controls/{_HOSTS_OWN}")
_FAULT: Final = re.compile(f"faults/{_HOSTS_OWN}")

NS_PER_S: Final = 1_000_000_000


def header(state: HostState) -> common_pb2.ResponseHeader:
    """Who answers, and when in this host's history."""
    return common_pb2.ResponseHeader(host=state.config.host, boot_id=state.config.boot_id, revision=state.revision)


# -- names -------------------------------------------------------------------------------------------------------------


def vm_name(path: str, value: str) -> str:
    """`vms/{vm}`."""
    return _matching(_VM, path, "vms/{vm}", value)


def vcpu_name(path: str, value: str) -> str:
    """`vms/{vm}/vcpus/{index}`, the index without leading zeros."""
    return value if _is_vcpu_name(value) else _matching(_VCPU, path, "vms/{vm}/vcpus/{index}", value)


@lru_cache(maxsize=4096)
def _is_vcpu_name(value: str) -> bool:
    """Asked for every event, mostly of the same few."""
    return _VCPU.fullmatch(value) is not None


def task_name(path: str, value: str) -> str:
    """`vms/{vm}/tasks/{task}`."""
    return _matching(_TASK, path, "vms/{vm}/tasks/{task}", value)


def task_id_in(path: str, vm: str, value: str) -> str:
    """The last part of a task's name, which has to be one of ``vm``; empty for an empty name."""
    if not value:
        return ""
    task_name(path, value)
    if not value.startswith(f"{vm}/tasks/"):
        raise field_invalid(path, f"a task of {vm}", value)
    return value.rpartition("/")[2]


def exit_name(path: str, value: str) -> str:
    """`vms/{vm}/vcpus/{index}/exits/{seq}`."""
    return _matching(_EXIT, path, "vms/{vm}/vcpus/{index}/exits/{seq}", value)


def session_name(path: str, value: str) -> str:
    """`sessions/{session}`."""
    return _matching(_SESSION, path, "sessions/{session}", value)


def control_name(path: str, value: str) -> str:
    """`controls/{control}`."""
    return _matching(_CONTROL, path, "controls/{control}", value)


def fault_name(path: str, value: str) -> str:
    """`faults/{fault}`."""
    return _matching(_FAULT, path, "faults/{fault}", value)


def migration_name(path: str, value: str) -> str:
    """`vms/{vm}/migrations/{migration}`."""
    return _matching(_MIGRATION, path, "vms/{vm}/migrations/{migration}", value)


def _matching(pattern: re.Pattern[str], path: str, form: str, value: str) -> str:
    if not pattern.fullmatch(value):
        raise field_invalid(path, f"a name {form}", value)
    return value


# -- values ------------------------------------------------------------------------------------------------------------


def text(path: str, value: str, *, longest: int, required: bool = False) -> str:
    """A text for people, of a bounded length in characters."""
    if len(value) > longest or (required and not value):
        raise field_invalid(path, f"{1 if required else 0} to {longest} characters", value[: longest + 1])
    return value


def request_id(value: str) -> str:
    """The id that makes a repetition return the first call's response."""
    return text("request_id", value, longest=128)


def duration_ns(path: str, value: duration_pb2.Duration) -> int:
    """A duration of zero or more, in nanoseconds; an absent one reads as zero."""
    if not 0 <= value.seconds <= 315_576_000_000 or not 0 <= value.nanos < NS_PER_S:
        raise field_invalid(path, "a duration of 0 s to 10,000 years", f"{value.seconds} s {value.nanos} ns")
    return value.seconds * NS_PER_S + value.nanos


def duration(ns: int) -> duration_pb2.Duration:
    """Nanoseconds as a Duration; what is past already is 0."""
    seconds, nanos = divmod(max(0, ns), NS_PER_S)
    return duration_pb2.Duration(seconds=seconds, nanos=nanos)


def enum_name(path: str, names: Mapping[int, str], value: int) -> str:
    """The machine's name for an enum value; UNSPECIFIED and what this release does not know are refused."""
    found = names.get(value)
    if found is None:
        raise field_invalid(path, f"one of {', '.join(names.values())}", value)
    return found


def paths(path: str, mask: field_mask_pb2.FieldMask, known: Iterable[str]) -> tuple[str, ...]:
    """The paths of an update mask: at least one, each known; a repetition counts once."""
    found = tuple(dict.fromkeys(mask.paths))
    if not found or set(found) - set(known):
        raise field_invalid(path, f"paths out of: {', '.join(known)}", ",".join(found))
    return found


_LABEL_KEY: Final = re.compile(_ID)


def labels(path: str, value: Mapping[str, str]) -> dict[str, str]:
    """Labels: at most 64, with keys like ids and values of at most 256 characters."""
    if len(value) > 64:
        raise field_invalid(path, "at most 64 labels", len(value))
    for key, label in value.items():
        if not _LABEL_KEY.fullmatch(key):
            raise field_invalid(path, "keys that match [a-z][a-z0-9-]{0,62}", key)
        text(f"{path}[{key}]", label, longest=256)
    return dict(value)
