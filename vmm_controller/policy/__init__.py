"""What to decide about an exit: pure, so that a simulated controller decides like a live one.

An ExitView and an ExitHistory go in, a Decision comes out (`decide`). Policies are values, put together in code
(`Chain`, `ByCause`) or as text (`parse_policy`).
"""

from __future__ import annotations

from vmm_controller.policy.backoff import Backoff, Draw, seeded_draw
from vmm_controller.policy.decide import PolicyBook, decide, default_policy
from vmm_controller.policy.decision import (
    Decision,
    Defer,
    HideFeature,
    InjectGp,
    InjectNm,
    KillVcpu,
    KillVm,
    Migrate,
    Pause,
    RaiseLimit,
    Reclaim,
    ResetVm,
    Retry,
    RetryAfter,
)
from vmm_controller.policy.exit_view import (
    NO_HISTORY,
    DecisionKind,
    ExitCause,
    ExitHistory,
    ExitResult,
    ExitState,
    ExitTrigger,
    ExitView,
)
from vmm_controller.policy.parse import POLICIES, PolicyTextError, parse_policies, parse_policy
from vmm_controller.policy.rules import (
    Always,
    ByCause,
    Case,
    Chain,
    Choice,
    DeferPolicy,
    Leave,
    Policy,
    RaiseLimitPolicy,
    ReclaimPolicy,
    RetryAfterPolicy,
    RetryPolicy,
    Silent,
)

__all__ = [
    "NO_HISTORY",
    "POLICIES",
    "Always",
    "Backoff",
    "ByCause",
    "Case",
    "Chain",
    "Choice",
    "Decision",
    "DecisionKind",
    "Defer",
    "DeferPolicy",
    "Draw",
    "ExitCause",
    "ExitHistory",
    "ExitResult",
    "ExitState",
    "ExitTrigger",
    "ExitView",
    "HideFeature",
    "InjectGp",
    "InjectNm",
    "KillVcpu",
    "KillVm",
    "Leave",
    "Migrate",
    "Pause",
    "Policy",
    "PolicyBook",
    "PolicyTextError",
    "RaiseLimit",
    "RaiseLimitPolicy",
    "Reclaim",
    "ReclaimPolicy",
    "ResetVm",
    "Retry",
    "RetryAfter",
    "RetryAfterPolicy",
    "RetryPolicy",
    "Silent",
    "decide",
    "default_policy",
    "parse_policies",
    "parse_policy",
    "seeded_draw",
]
