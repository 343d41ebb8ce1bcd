"""A client's side of a campaign: lines to the parent, and calls that are made again until the host has answered."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Final, TypeVar, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

T = TypeVar("T")
CALL_S: Final = 20.0
_PAUSE_S: Final = 0.02
OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
)
#: What a host says that is away for a moment.
_AWAY: Final = frozenset({"STORAGE_FULL", "STORAGE_FAILED", "HOST_DRAINING", "RATE_LIMITED"})
_GONE: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN}
)


def say(**line: object) -> None:
    """Tell the parent; when this returns the line survives this process."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def bad(how: str, text: str) -> None:
    """Tell the parent that something was lost, duplicated, or is not what it must be."""
    say(bad=how, text=text)


def reason_of(error: grpc.RpcError) -> str:
    """The reason of a refusal; empty where it is gRPC that speaks."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    if status is None or not status.details:
        return ""
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.reason)


def is_away(error: grpc.RpcError) -> bool:
    """Whether the host was away, so that the same call makes sense again."""
    reason = reason_of(error)
    if reason in _AWAY:
        say(away=reason)
    return reason in _AWAY or (not reason and cast("grpc.Call", error).code() in _GONE)


def until_answered(call: Callable[[], T]) -> T:
    """Make a call until the host answers it. Raises what it refuses for good."""
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if not is_away(error):
                raise
        time.sleep(_PAUSE_S)


def judge(error: grpc.RpcError, what: str) -> None:
    """Tell the parent what a refusal means that should not have been."""
    reason = reason_of(error) or cast("grpc.Call", error).code().name
    how = "duplicated" if reason.endswith("_EXISTS") else "lost" if reason.endswith("_NOT_FOUND") else "diverged"
    bad(how, f"{what}: {reason}: {cast('grpc.Call', error).details()}")
