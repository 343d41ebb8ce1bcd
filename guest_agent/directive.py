"""Hearing what the host has decided, for a blocking session: a thread that reads an Attach stream for its directives.

Outcomes come to the ports by their own calls, so those that the stream brings as well are passed over. The thread
attaches again when the stream breaks; directives are sent until they are acknowledged, so none is missed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc
from fpstate.v1 import session_pb2 as pb

from fpstated.link.trace import trace_metadata
from guest_agent.error import HostError, host_error
from guest_agent.opening import SessionKey
from guest_agent.outcome import Directive, DirectiveKind
from guest_agent.recovery import Remedy, remedy
from guest_agent.session import Session
from guest_agent.wait import SessionLost
from guest_agent.wire import directive_from_proto

_PAUSE_S = 0.5


class DirectiveListener:
    """Carries out directives about `vcpus` of a session, in a thread of its own, for the time of a `with` block.

    `carry_out` is called for each, once, in order per vCPU; when it has returned the directive is acknowledged. A
    session that goes with its VM follows MOVED by itself, and the thread listens at the target then.
    """

    def __init__(self, session: Session, carry_out: Callable[[Directive], None], *, vcpus: Sequence[str]) -> None:
        self._session = session
        self._carry_out = carry_out
        self._vcpus = tuple(vcpus)
        self._done: dict[tuple[int, str], int] = {}  # the last directive carried out, per host and vCPU
        self._moves = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="fpstated-directives", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        with self._lock:
            self._closed.set()
            if self._call is not None:
                self._call.cancel()
        self._thread.join()

    def _run(self) -> None:
        """Be attached until closed, or until the session is another agent's."""
        while not self._closed.is_set():
            key, target = self._session.key, ""
            try:
                target = self._listen()
            except grpc.RpcError as error:
                refused = host_error(error)
                lost = remedy(refused.refusal) is Remedy.NONE
                if lost and self._session.key == key:
                    return
                target = refused.metadata.get("target", "") if remedy(refused.refusal) is Remedy.MOVE else ""
            except ValueError:  # the channel was closed: the session has moved, or is over
                if self._session.closed:
                    return
            if not target or not self._moved(key, target):
                self._closed.wait(_PAUSE_S)

    def _moved(self, key: SessionKey, target: str) -> bool:
        """Let the session go with its VM; where that cannot be had yet, it is tried again."""
        if not self._session.movable:
            return False
        try:
            self._session.move(key, target)
        except (HostError, SessionLost):
            return False  # whoever waits for an outcome hears why
        return True

    def _listen(self) -> str:
        """Be attached until the stream ends; or until the VM has moved, and then return where to."""
        self._moves = self._session.moves
        outgoing: queue.SimpleQueue[pb.AttachRequest | None] = queue.SimpleQueue()
        key = self._session.key
        outgoing.put(pb.AttachRequest(hello=pb.AttachHello(session=key.name, epoch=key.epoch, vcpus=self._vcpus)))
        with self._lock:
            if self._closed.is_set():
                return ""
            call = self._session.stub.Attach(_until_none(outgoing), metadata=trace_metadata())
            self._call = call
        try:
            for response in call:
                if response.HasField("directive"):
                    directive = directive_from_proto(response.directive)
                    outgoing.put(self._carried_out(directive))
                    if directive.kind is DirectiveKind.MOVED and self._session.movable:
                        return directive.target
        finally:
            call.cancel()
            outgoing.put(None)  # gRPC's thread that takes from the queue ends with it
        return ""

    def _carried_out(self, directive: Directive) -> pb.AttachRequest:
        """Carry a directive out that has not been; a move that the session follows is the session's own business."""
        of = self._moves, directive.vcpu
        follows = directive.kind is DirectiveKind.MOVED and self._session.movable
        if directive.id > self._done.get(of, 0) and not follows:
            self._carry_out(directive)
            self._done[of] = directive.id
        return pb.AttachRequest(directive_ack=pb.DirectiveAck(id=directive.id, vcpu=directive.vcpu))


def _until_none(outgoing: queue.SimpleQueue[pb.AttachRequest | None]) -> Iterator[pb.AttachRequest]:
    while (message := outgoing.get()) is not None:
        yield message
