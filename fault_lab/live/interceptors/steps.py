"""What an interceptor is told to do at a point, whatever kind of client or server it is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from fault_lab.injection.action import Delay, Drop, Duplicate, FailStatus, Hold
from fault_lab.live.points import Firing

_NS: Final = 1_000_000_000
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait so long; ``seconds`` None: until ``fault`` does not stand any more."""

    seconds: float | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Fail:
    """The call ends with this status."""

    code: grpc.StatusCode
    details: str


@dataclass(frozen=True, slots=True)
class Lose:
    """The message is lost: the call's deadline tells."""


@dataclass(frozen=True, slots=True)
class Double:
    """The request is sent so many times more."""

    copies: int


Step = Wait | Fail | Lose | Double


def step_of(firing: Firing) -> Step:
    """The step that an action is."""
    match firing.action:
        case FailStatus(code, message):
            return Fail(CODES[code], message or f"{firing.fired.fault} at {firing.fired.point}")
        case Delay(min_ns=ns):
            return Wait(ns / _NS)
        case Hold(for_ns=ns):
            return Wait(ns / _NS if ns else None, firing.fired.fault)
        case Drop():
            return Lose()
        case Duplicate(copies):
            return Double(copies)
        case action:
            raise AssertionError(f"{firing.fired.point} takes no {type(action).__name__}")


if TYPE_CHECKING:  # generic to the type checker alone
    _Future = grpc.Future[Any]
else:
    _Future = grpc.Future


class InjectedError(grpc.RpcError, grpc.Call, _Future):
    """The failure of a blocking call that a fault has ended; it is the error and the call, as gRPC's own are."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        """The status."""
        return self._code

    def details(self) -> str:
        """What the fault says, or its name."""
        return self._details

    def initial_metadata(self) -> tuple[()]:
        """None came."""
        return ()

    def trailing_metadata(self) -> tuple[()]:
        """None came."""
        return ()

    def is_active(self) -> bool:
        """It is over."""
        return False

    def time_remaining(self) -> float:
        """It is over."""
        return 0.0

    def add_callback(self, callback: object) -> bool:  # noqa: ARG002 -- as grpc.Call has it
        """It is over: the callback will not be called."""
        return False

    def result(self, timeout: float | None = None) -> None:  # noqa: ARG002 -- as grpc.Future has it
        """As a future: raises itself."""
        raise self

    def exception(self, timeout: float | None = None) -> InjectedError:  # noqa: ARG002
        """As a future: itself."""
        return self

    def traceback(self, timeout: float | None = None) -> object:  # noqa: ARG002
        """As a future: where it was raised."""
        return self.__traceback__

    def done(self) -> bool:
        """As a future: it is."""
        return True

    def running(self) -> bool:
        """As a future: it is not."""
        return False

    def cancel(self) -> bool:
        """It is over."""
        return False

    def cancelled(self) -> bool:
        """Nobody did."""
        return False

    def add_done_callback(self, fn: object) -> None:
        """As a future: calls it at once."""
        assert callable(fn)
        fn(self)

    def __iter__(self) -> InjectedError:
        """As a stream of answers."""
        return self

    def __next__(self) -> None:
        """As a stream of answers: there are none."""
        raise self


def late() -> InjectedError:
    """What gRPC says when a deadline has passed."""
    return InjectedError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


def aio_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """The failure of an asynchronous call that a fault has ended."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def aio_late() -> grpc.aio.AioRpcError:
    """What gRPC says when a deadline has passed."""
    return aio_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
