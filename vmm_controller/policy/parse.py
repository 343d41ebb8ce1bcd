"""Policies as text, for the command line.

    text     := name [ ":" parameter ("," parameter)* ]
    parameter:= key "=" value
    then=    := the last parameter, whose value is the rest of the text: the policy that follows when this one declines

    retry:tries=2,then=retry-after:base=0.1,factor=2,max=5,tries=5,then=inject-gp
    vms/web=kill-vm                                         the same, for one VM alone

Delays are seconds (`0.1`, `100ms`, `2s`), sizes bytes (`4096`, `64KiB`, `2MiB`, `1GiB`). `POLICIES` is the registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vmm_controller.policy.backoff import Backoff
from vmm_controller.policy.decide import PolicyBook, default_policy
from vmm_controller.policy.decision import (
    Decision,
    HideFeature,
    InjectGp,
    InjectNm,
    KillVcpu,
    KillVm,
    Migrate,
    Pause,
    RaiseLimit,
    ResetVm,
)
from vmm_controller.policy.rules import (
    Always,
    Chain,
    DeferPolicy,
    Policy,
    RaiseLimitPolicy,
    ReclaimPolicy,
    RetryAfterPolicy,
    RetryPolicy,
    Silent,
)


class PolicyTextError(ValueError):
    """A policy's text cannot be read; the message names the part and what was expected. `text` is the whole of it."""

    def __init__(self, text: str, complaint: str) -> None:
        super().__init__(f"policy {text!r}: {complaint}")
        self.text = text
        self.complaint = complaint


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the registry: what the parameters are called and read as, what they make, and a line of help."""

    make: Callable[..., Policy]
    parameters: Mapping[str, Callable[[str], object]]
    summary: str


def parse_policy(text: str) -> Policy:
    """Read one policy. Raises PolicyTextError."""
    own, then = _split_then(text)
    name, _, parameters = own.partition(":")
    entry = POLICIES.get(name)
    if entry is None:
        raise PolicyTextError(text, f"there is no policy {name!r}; expected one of {', '.join(POLICIES)}")
    policy = _make(text, name, entry, _arguments(text, name, entry, parameters))
    return policy if then is None else Chain((policy, _parse_rest(text, then)))


def parse_policies(texts: Iterable[str]) -> PolicyBook:
    """Read a list as given on a command line: `vms/{vm}=TEXT` for one VM, TEXT alone for all others, each at most once.

    Without a TEXT alone the others get the default policy. Raises PolicyTextError.
    """
    per_vm: dict[str, Policy] = {}
    otherwise: Policy | None = None
    for text in texts:
        vm, policy = _vm_and_policy(text)
        if vm in per_vm or (not vm and otherwise is not None):
            raise PolicyTextError(text, f"a second policy for {vm or 'all other VMs'}; expected one")
        if vm:
            per_vm[vm] = policy
        else:
            otherwise = policy
    return PolicyBook(otherwise or default_policy(), per_vm)


_VM_NAME = re.compile(r"vms/[a-z][a-z0-9-]{0,62}")


def _vm_and_policy(text: str) -> tuple[str, Policy]:
    if not text.startswith("vms/"):
        return "", parse_policy(text)
    vm, equals, rest = text.partition("=")
    if not _VM_NAME.fullmatch(vm):
        raise PolicyTextError(text, f"{vm!r} is no VM's name; expected vms/ and [a-z][a-z0-9-]{{0,62}}")
    if not equals:
        raise PolicyTextError(text, f"expected {vm}=POLICY")
    return vm, parse_policy(rest)


def _split_then(text: str) -> tuple[str, str | None]:
    found = re.search(r"[:,]then=", text)
    return (text[: found.start()], text[found.end() :]) if found else (text, None)


def _parse_rest(text: str, rest: str) -> Policy:
    try:
        return parse_policy(rest)
    except PolicyTextError as error:
        raise PolicyTextError(text, f"then: {error.complaint}") from error


def _arguments(text: str, name: str, entry: Entry, parameters: str) -> dict[str, object]:
    arguments: dict[str, object] = {}
    for part in parameters.split(",") if parameters else ():
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise PolicyTextError(text, f"{part!r}: expected key=value")
        read = entry.parameters.get(key)
        if read is None:
            expected = ", ".join([*entry.parameters, "then"])
            raise PolicyTextError(text, f"{name} has no parameter {key!r}; expected one of {expected}")
        if key in arguments:
            raise PolicyTextError(text, f"{key} is given twice")
        arguments[key] = _read(text, key, value, read)
    return arguments


def _read(text: str, key: str, value: str, read: Callable[[str], object]) -> object:
    try:
        return read(value)
    except ValueError as error:
        raise PolicyTextError(text, f"{key}: {error}") from error


def _make(text: str, name: str, entry: Entry, arguments: dict[str, object]) -> Policy:
    try:
        return entry.make(**arguments)
    except ValueError as error:
        raise PolicyTextError(text, f"{name}: {error}") from error


# -- values ------------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\d+(\.\d+)?|\.\d+")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0}
_BYTES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "": 1}


def _number(value: str) -> float:
    if not _NUMBER.fullmatch(value):
        raise ValueError(f"expected a number like 2 or 0.5, got {value!r}")
    return float(value)


def _count(value: str) -> int:
    if not (value.isascii() and value.isdecimal()):
        raise ValueError(f"expected a whole number, got {value!r}")
    return int(value)


def _seconds(value: str) -> float:
    number, unit = _split_unit(value)
    if unit not in _SECONDS or not _NUMBER.fullmatch(number):
        raise ValueError(f"expected a delay like 0.1, 100ms or 2s, got {value!r}")
    return float(number) * _SECONDS[unit]


def _bytes(value: str) -> int:
    number, unit = _split_unit(value)
    if unit not in _BYTES or not number.isdecimal():
        raise ValueError(f"expected a size like 4096, 64KiB or 2MiB, got {value!r}")
    return int(number) * _BYTES[unit]


def _split_unit(value: str) -> tuple[str, str]:
    number = value.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return number, value[len(number) :]


def _scope(value: str) -> bool:
    if value not in ("vm", "host"):
        raise ValueError(f"expected vm or host, got {value!r}")
    return value == "host"


# -- the registry ------------------------------------------------------------------------------------------------------


def _always(decision: Decision, summary: str) -> Entry:
    return Entry(lambda: Always(decision), {}, summary)


def _retry_after(tries: int = 5, **waits: float) -> RetryAfterPolicy:
    names = {"base": "base_s", "factor": "factor", "max": "max_s", "jitter": "jitter"}
    # Who asks for a longer first wait than the usual longest one wants that, and no complaint.
    waits.setdefault("max", max(Backoff().max_s, waits.get("base", 0.0)))
    return RetryAfterPolicy(tries=tries, backoff=Backoff(**{names[key]: value for key, value in waits.items()}))


def _default(**arguments: float) -> Policy:
    # The parameters are those of its RETRY_AFTER; `tries` arrives as the int that `_count` made.
    return default_policy(_retry_after(**arguments))  # type: ignore[arg-type]


def _raise_limit(to: int = 0, *, scope: bool = False) -> Policy:
    if not to:
        raise ValueError("expected to=SIZE, the new limit")
    return RaiseLimitPolicy(raised=RaiseLimit(to, of_host=scope))


def _migrate(target: str = "") -> Policy:
    return Always(Migrate(target))


_WAITS: Mapping[str, Callable[[str], object]] = {
    "base": _seconds,
    "factor": _number,
    "max": _seconds,
    "jitter": _number,
    "tries": _count,
}
_TRIES: Mapping[str, Callable[[str], object]] = {"tries": _count}

#: Every policy by its name.
POLICIES: dict[str, Entry] = {
    "default": Entry(_default, _WAITS, "#GP without permission; for memory wait, reclaim, pause; kill the VM on a bug"),
    "retry": Entry(RetryPolicy, _TRIES, "try again at once, `tries` times"),
    "retry-after": Entry(_retry_after, _WAITS, "try again after base, base*factor, ... up to max, less some jitter"),
    "raise-limit": Entry(_raise_limit, {"to": _bytes, "scope": _scope}, "raise the byte limit of the vm or the host"),
    "reclaim": Entry(ReclaimPolicy, _TRIES, "take memory from containers that do not need it, then try again"),
    "inject-gp": _always(InjectGp(), "refuse: #GP(0)"),
    "inject-nm": _always(InjectNm(), "refuse: #NM with XFD_ERR"),
    "defer": Entry(DeferPolicy, _TRIES, "skip the XFD write; the next use of the feature asks again"),
    "pause": _always(Pause(), "put the vCPU aside for somebody else's decision"),
    "kill-vcpu": _always(KillVcpu(), "kill the vCPU"),
    "kill-vm": _always(KillVm(), "kill the VM"),
    "reset-vm": _always(ResetVm(), "reset the VM"),
    "hide-feature": _always(HideFeature(), "refuse, and hide the feature from the next reset on"),
    "migrate": Entry(_migrate, {"target": str}, "let the instruction execute again on the host `target`"),
    "silent": Entry(Silent, {}, "decide nothing: the exit's deadline does"),
}
