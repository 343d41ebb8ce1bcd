"""The decisions: one frozen class each, with what it needs. What each means to the guest is said in `exit.proto`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from vmm_controller.policy.exit_view import DecisionKind

#: What a host takes as a delay of RetryAfter, in seconds: above zero, at most one hour. Source: exit.proto, RetryAfter.
DELAY_S_MIN: Final = 0.001
DELAY_S_MAX: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again now."""

    kind: ClassVar[DecisionKind] = DecisionKind.RETRY


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again after `delay_s` seconds, 0.001 to 3,600."""

    kind: ClassVar[DecisionKind] = DecisionKind.RETRY_AFTER
    delay_s: float

    def __post_init__(self) -> None:
        if not DELAY_S_MIN <= self.delay_s <= DELAY_S_MAX:
            raise ValueError(f"delay_s: expected {DELAY_S_MIN} to {DELAY_S_MAX:g} seconds, got {self.delay_s!r}")


@dataclass(frozen=True, slots=True)
class RaiseLimit:
    """Set a byte limit to `limit_bytes` in all, then try again: the host's if `of_host`, else the VM's."""

    kind: ClassVar[DecisionKind] = DecisionKind.RAISE_LIMIT
    limit_bytes: int
    of_host: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.limit_bytes < 1 << 64:
            raise ValueError(f"limit_bytes: expected 1 to 2^64 - 1, got {self.limit_bytes!r}")


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Shrink containers of `victims` (vCPU names), then of others if `any_other`, then try again."""

    kind: ClassVar[DecisionKind] = DecisionKind.RECLAIM
    victims: tuple[str, ...] = ()
    any_other: bool = True


@dataclass(frozen=True, slots=True)
class InjectGp:
    """The guest gets #GP(0)."""

    kind: ClassVar[DecisionKind] = DecisionKind.INJECT_GP


@dataclass(frozen=True, slots=True)
class InjectNm:
    """The guest gets #NM with XFD_ERR naming the feature."""

    kind: ClassVar[DecisionKind] = DecisionKind.INJECT_NM


@dataclass(frozen=True, slots=True)
class Defer:
    """Skip the instruction without doing it."""

    kind: ClassVar[DecisionKind] = DecisionKind.DEFER


@dataclass(frozen=True, slots=True)
class Pause:
    """Put the vCPU aside, without a deadline, for somebody else's decision."""

    kind: ClassVar[DecisionKind] = DecisionKind.PAUSE


@dataclass(frozen=True, slots=True)
class KillVcpu:
    """Kill the vCPU."""

    kind: ClassVar[DecisionKind] = DecisionKind.KILL_VCPU


@dataclass(frozen=True, slots=True)
class KillVm:
    """Kill every vCPU of the VM."""

    kind: ClassVar[DecisionKind] = DecisionKind.KILL_VM


@dataclass(frozen=True, slots=True)
class ResetVm:
    """Reset the VM."""

    kind: ClassVar[DecisionKind] = DecisionKind.RESET_VM


@dataclass(frozen=True, slots=True)
class HideFeature:
    """Refuse with #GP(0), and hide the feature from the next reset on."""

    kind: ClassVar[DecisionKind] = DecisionKind.HIDE_FEATURE


@dataclass(frozen=True, slots=True)
class Migrate:
    """Let the instruction execute again on the host at `target`, a gRPC target."""

    kind: ClassVar[DecisionKind] = DecisionKind.MIGRATE
    target: str

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("target: expected a gRPC target, got an empty text")


Decision = (
    Retry
    | RetryAfter
    | RaiseLimit
    | Reclaim
    | InjectGp
    | InjectNm
    | Defer
    | Pause
    | KillVcpu
    | KillVm
    | ResetVm
    | HideFeature
    | Migrate
)
