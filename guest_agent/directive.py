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
from guest_agent.error import host_error
from guest_agent.outcome import Directive
from guest_agent.recovery import Remedy, remedy
from guest_agent.session import Session
from guest_agent.wire import directive_from_proto

_PAUSE_S = 0.5


class DirectiveListener:
    """Carries out directives about `vcpus` of a session, in a thread of its own, for the time of a `with` block.

    `carry_out` is called for each, once, in order per vCPU; when it has returned the directive is acknowledged.
    """

    def __init__(self, session: Session, carry_out: Callable[[Directive], None], *, vcpus: Sequence[str]) -> None:
        self._session = session
        self._carry_out = carry_out
        self._vcpus = tuple(vcpus)
        self._done = dict.fromkeys(self._vcpus, 0)  # the last directive carried out, per vCPU
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
            key = self._session.key
            try:
                self._listen()
            except grpc.RpcError as error:
                lost = remedy(host_error(error).refusal) is Remedy.NONE
                if lost and self._session.key == key:
                    return
            self._closed.wait(_PAUSE_S)

    def _listen(self) -> None:
        outgoing: queue.SimpleQueue[pb.AttachRequest | None] = queue.SimpleQueue()
        key = self._session.key
        outgoing.put(pb.AttachRequest(hello=pb.AttachHello(session=key.name, epoch=key.epoch, vcpus=self._vcpus)))
        with self._lock:
            if self._closed.is_set():
                return
            call = self._session.stub.Attach(_until_none(outgoing), metadata=trace_metadata())
            self._call = call
        try:
            for response in call:
                if response.HasField("directive"):
                    outgoing.put(self._carried_out(directive_from_proto(response.directive)))
        finally:
            call.cancel()
            outgoing.put(None)  # gRPC's thread that takes from the queue ends with it

    def _carried_out(self, directive: Directive) -> pb.AttachRequest:
        if directive.id > self._done.get(directive.vcpu, 0):
            self._carry_out(directive)
            self._done[directive.vcpu] = directive.id
        return pb.AttachRequest(directive_ack=pb.DirectiveAck(id=directive.id, vcpu=directive.vcpu))


def _until_none(outgoing: queue.SimpleQueue[pb.AttachRequest | None]) -> Iterator[pb.AttachRequest]:
    while (message := outgoing.get()) is not None:
        yield message
