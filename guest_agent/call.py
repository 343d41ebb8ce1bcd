"""Blocking calls of a session: they outlive deadlines, lost connections and ended leases, and can be interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import grpc

from guest_agent.error import HostError, host_error
from guest_agent.opening import SessionKey
from guest_agent.outcome import Refusal
from guest_agent.recovery import Patience, Remedy, remedy
from guest_agent.wait import Interrupted, SessionLost

Reply = TypeVar("Reply")


class SessionHold(Protocol):
    """What a call needs of its session."""

    @property
    def key(self) -> SessionKey:
        """Name and epoch now."""

    @property
    def closed(self) -> bool:
        """Whether its owner has closed it."""

    def reopen(self, key: SessionKey) -> None:
        """Open a new session in place of the one of `key`."""

    def reopened(self, key: SessionKey) -> bool:
        """Whether another thread of ours has opened a session in place of the one of `key`."""

    def move(self, key: SessionKey, target: str) -> None:
        """Open a new session on another host in place of the one of `key`."""


#: A call that lasted so long, in seconds, was in a host's hands, where it waited for a decision: what ended it is a new
#: trouble. Where nobody is, a call fails sooner.
HELD_S: Final = 5.0


class BlockingCalls:
    """The calls of one vCPU. `until_answered` blocks its thread; `interrupt` comes from any other."""

    def __init__(self, session: SessionHold, *, reconnect_s: float) -> None:
        self._session = session
        self._reconnect_s = reconnect_s
        self._under_way: set[grpc.Future[Any]] = set()
        self._changed = threading.Condition(threading.RLock())
        self._interrupted = False

    def interrupt(self) -> None:
        """End the calls under way with `Interrupted`, or the next one if none is."""
        with self._changed:
            self._interrupted = True
            for call in self._under_way:
                call.cancel()
            self._changed.notify_all()

    def until_answered(
        self,
        start: Callable[[SessionKey], grpc.Future[Reply]],
        refusal_in: Callable[[Reply], Refusal | None] = lambda _reply: None,
    ) -> Reply:
        """Make a call again and again, in a new session where it must be, until the host answers it or refuses it.

        `refusal_in` finds in an answer why it is to be made again, as a refusal would have said it.

        Raises:
            HostError: refused; or nobody was there for `reconnect_s` seconds.
            Interrupted: `interrupt` was called. Whether the host has got the call is not known.
            SessionLost: the session can not be opened again where it was, or its channel was closed by its owner.
        """
        patience = Patience(total_s=self._reconnect_s)
        while True:
            key = self._session.key
            began_s = time.monotonic()
            try:
                reply = self._call(start, key)
            except HostError as error:
                if time.monotonic() - began_s >= HELD_S:
                    patience.reset()
                self._recover(error, key, patience)
                continue
            refusal = refusal_in(reply)
            if refusal is None:
                return reply
            self._recover(HostError(refusal), key, patience)

    def _call(self, start: Callable[[SessionKey], grpc.Future[Reply]], key: SessionKey) -> Reply:
        with self._changed:
            self._raise_interrupt()
            if self._session.closed:
                raise SessionLost(f"session {key.name} was closed by its owner")
            call = self._started(start, key)
            self._under_way.add(call)
        try:
            return call.result()
        except grpc.FutureCancelledError:
            with self._changed:
                self._raise_interrupt()
            raise HostError(Refusal("UNAVAILABLE", "the call was cancelled on the way")) from None
        except grpc.RpcError as error:
            raise host_error(error) from error
        finally:
            with self._changed:
                self._under_way.discard(call)

    def _started(self, start: Callable[[SessionKey], grpc.Future[Reply]], key: SessionKey) -> grpc.Future[Reply]:
        try:
            return start(key)
        except ValueError as error:  # which gRPC says of a closed channel
            if self._session.key == key:
                raise SessionLost("its channel was closed by its owner") from error
            raise HostError(Refusal("UNAVAILABLE", "the session has moved to another host meanwhile")) from None

    def _raise_interrupt(self) -> None:
        if self._interrupted:
            self._interrupted = False
            raise Interrupted("the wait was abandoned")

    def _recover(self, error: HostError, key: SessionKey, patience: Patience) -> None:
        """Do what makes the call worth repeating, or raise what it was refused with."""
        match remedy(error.refusal):
            case Remedy.AGAIN:
                patience.reset()
            case Remedy.LATER:
                self._pause(error, patience)
            case Remedy.REOPEN:
                self._again_in(lambda: self._session.reopen(key), patience)
            case Remedy.MOVE:
                self._again_in(lambda: self._session.move(key, error.metadata["target"]), patience)
            case Remedy.NONE:
                # Our own new session fences the one before off: a call that was under way meanwhile hears that.
                if error.reason != "SESSION_FENCED" or not self._session.reopened(key):
                    raise error

    def _again_in(self, open_session: Callable[[], None], patience: Patience) -> None:
        """Go on in another session, or try that again with the call."""
        try:
            open_session()
        except HostError as refused:
            if remedy(refused.refusal) not in (Remedy.AGAIN, Remedy.LATER):
                raise
            self._pause(refused, patience)

    def _pause(self, error: HostError, patience: Patience) -> None:
        if error.reason == "MIGRATION_IN_PROGRESS":
            patience.reset()  # somebody is there, and will not let the VM stand still for ever
        pause_s = patience.pause_s(error.retry_delay_s)
        if pause_s is None:
            raise error
        with self._changed:
            self._changed.wait_for(lambda: self._interrupted, timeout=pause_s)
            self._raise_interrupt()
