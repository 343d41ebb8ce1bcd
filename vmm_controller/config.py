"""What a controller is started with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from vmm_controller.policy import Backoff, PolicyBook

_SCOPE: Final = re.compile(r"(vms/[a-z][a-z0-9-]{0,62})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """What a controller is started with. Times in seconds. Raises ValueError naming the field that cannot be right."""

    #: For logs, for Exit.decided_by, and for the lease: the same name may take its own scope over, another has to wait.
    name: str = "controller"
    #: `vms/{vm}`, or empty for every VM of the host that has no controller of its own.
    scope: str = ""
    #: The lease wished for; 0 for the host's default.
    lease_s: float = 0.0
    policies: PolicyBook = field(default_factory=PolicyBook)
    #: What the jitter is drawn from.
    seed: int = 0
    #: What to do once somebody else has taken the scope while our lease should still run. (A lease that ended because
    #: the host was away, or a host that started anew, is not that: the scope is then asked for again.)
    on_fenced: Literal["stop", "reacquire"] = "stop"
    #: Decisions on their way to the host at once.
    decisions_max: int = 64
    #: Deadline of each unary call.
    call_timeout_s: float = 10.0
    #: Whether exits that somebody paused are decided too; normally they wait for a person.
    decide_paused: bool = False
    #: Who is asked at the point controller.decide, a gRPC target; empty: nobody, and nothing goes wrong on purpose.
    fault_points: str = ""
    #: How long to wait before the host is tried again.
    reconnect: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        _check("name", 1 <= len(self.name) <= 128, "1 to 128 characters", self.name)
        _check("scope", _SCOPE.fullmatch(self.scope) is not None, "nothing or vms/{vm}", self.scope)
        _check("lease_s", 0 <= self.lease_s <= 24 * 3600, "0 to 86,400", self.lease_s)
        _check("on_fenced", self.on_fenced in ("stop", "reacquire"), "stop or reacquire", self.on_fenced)
        _check("decisions_max", self.decisions_max >= 1, "1 or more", self.decisions_max)
        _check("call_timeout_s", self.call_timeout_s > 0, "above 0", self.call_timeout_s)


def _check(name: str, right: bool, expected: str, got: object) -> None:  # noqa: FBT001 -- the predicate itself
    if not right:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
