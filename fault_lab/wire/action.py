"""Actions: a reader and a writer for each kind.

A value that cannot be right raises ``FaultAttributeError``, whose ``field`` is the path that it was read under.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fpstate.fault.v1 import fault_pb2

from fault_lab.injection.action import (
    ERRNO_MAX,
    Action,
    Clock,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    FailErrno,
    FailStatus,
    Hold,
    Kill,
    Pause,
    Reorder,
)
from fault_lab.injection.attributes import FaultAttributeError
from fault_lab.injection.draw import PPM
from fault_lab.wire.duration import DAY_NS, duration, duration_ns

_COUNT_MAX: Final = 1_000
_MESSAGE_MAX: Final = 1_024


def action_from_proto(path: str, message: fault_pb2.FaultAction) -> Action:
    """Read a FaultAction, of which one kind has to be set."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise FaultAttributeError(path, f"one of {', '.join(_READERS)}", "none")
    return _READERS[kind](f"{path}.{kind}", getattr(message, kind))


def action_to_proto(action: Action) -> fault_pb2.FaultAction:
    """Write a FaultAction."""
    return fault_pb2.FaultAction(**_WRITERS[type(action)](action))


# -- reading -----------------------------------------------------------------------------------------------------------


def _errno(path: str, message: fault_pb2.ErrnoAction) -> Action:
    return FailErrno(_within(f"{path}.errno_value", message.errno_value, 1, ERRNO_MAX))


def _status(path: str, message: fault_pb2.StatusAction) -> Action:
    if len(message.message) > _MESSAGE_MAX:
        raise FaultAttributeError(f"{path}.message", f"at most {_MESSAGE_MAX} characters", len(message.message))
    return FailStatus(_within(f"{path}.code", message.code, 1, 16), message.message)


def _delay(path: str, message: fault_pb2.DelayAction) -> Action:
    least = duration_ns(f"{path}.min", message.min)
    most = duration_ns(f"{path}.max", message.max, least=least) if message.HasField("max") else least
    return Delay(least, most)


def _hold(path: str, message: fault_pb2.HoldAction) -> Action:
    return Hold(duration_ns(f"{path}.duration", message.duration))


def _kill(path: str, message: fault_pb2.KillAction) -> Action:
    if not message.HasField("restart_after"):
        return Kill()
    return Kill(duration_ns(f"{path}.restart_after", message.restart_after))


def _pause(path: str, message: fault_pb2.PauseAction) -> Action:
    return Pause(duration_ns(f"{path}.duration", message.duration, least=1))


def _clock(path: str, message: fault_pb2.ClockAction) -> Action:
    jump = duration_ns(f"{path}.jump", message.jump, least=-DAY_NS)
    drift = _within(f"{path}.drift_ppm", message.drift_ppm, 1 - PPM, PPM)
    if not jump and not drift:
        raise FaultAttributeError(path, "a jump or a drift_ppm", "neither")
    return Clock(jump, drift)


def _count(path: str, value: int) -> int:
    return _within(path, value or 1, 1, _COUNT_MAX)


def _within(path: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise FaultAttributeError(path, f"{least}..{most}", value)
    return value


_READERS: Final[dict[str, Callable[[str, Any], Action]]] = {
    "errno_action": _errno,
    "status_action": _status,
    "delay_action": _delay,
    "drop_action": lambda _path, _message: Drop(),
    "duplicate_action": lambda path, message: Duplicate(_count(f"{path}.copies", message.copies)),
    "reorder_action": lambda path, message: Reorder(_count(f"{path}.depth", message.depth)),
    "corrupt_action": lambda path, message: Corrupt(_count(f"{path}.bits", message.bits)),
    "hold_action": _hold,
    "kill_action": _kill,
    "pause_action": _pause,
    "clock_action": _clock,
}


# -- writing -----------------------------------------------------------------------------------------------------------


def _held(action: Hold) -> fault_pb2.HoldAction:
    return fault_pb2.HoldAction(duration=duration(action.for_ns) if action.for_ns else None)


def _killed(action: Kill) -> fault_pb2.KillAction:
    return fault_pb2.KillAction(restart_after=None if action.restart_ns is None else duration(action.restart_ns))


_WRITERS: Final[dict[type[Action], Callable[[Any], dict[str, Any]]]] = {
    FailErrno: lambda action: {"errno_action": fault_pb2.ErrnoAction(errno_value=action.errno)},
    FailStatus: lambda action: {"status_action": fault_pb2.StatusAction(code=action.code, message=action.message)},
    Delay: lambda action: {
        "delay_action": fault_pb2.DelayAction(min=duration(action.min_ns), max=duration(action.max_ns))
    },
    Drop: lambda _action: {"drop_action": fault_pb2.DropAction()},
    Duplicate: lambda action: {"duplicate_action": fault_pb2.DuplicateAction(copies=action.copies)},
    Reorder: lambda action: {"reorder_action": fault_pb2.ReorderAction(depth=action.depth)},
    Corrupt: lambda action: {"corrupt_action": fault_pb2.CorruptAction(bits=action.bits)},
    Hold: lambda action: {"hold_action": _held(action)},
    Kill: lambda action: {"kill_action": _killed(action)},
    Pause: lambda action: {"pause_action": fault_pb2.PauseAction(duration=duration(action.for_ns))},
    Clock: lambda action: {
        "clock_action": fault_pb2.ClockAction(jump=duration(action.jump_ns), drift_ppm=action.drift_ppm)
    },
}
