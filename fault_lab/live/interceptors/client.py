"""The interceptor of blocking clients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from fault_lab.live.interceptors.calls import SEND, CallFaults, moment
from fault_lab.live.interceptors.steps import Double, Fail, InjectedError, Lose, Step, Wait, late

if TYPE_CHECKING:  # generic to the type checker alone
    Future = grpc.Future[Any]
else:
    Future = grpc.Future

Details = grpc.ClientCallDetails
#: gRPC's own: the details and the request, or an iterator of them; returns a call.
Continuation = Callable[[Any, Any], Any]


def client_interceptor(calls: CallFaults) -> ClientInterceptor:
    """For ``grpc.intercept_channel``: all four kinds of calls."""
    return ClientInterceptor(calls)


class ClientInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Asks ``rpc.client.send`` before a call, and ``rpc.client.receive`` for each answer."""

    def __init__(self, calls: CallFaults) -> None:
        self._calls = calls

    def intercept_unary_unary(self, continuation: Continuation, details: Details, request: Any) -> Any:  # noqa: ANN401
        """A request, a reply."""
        if self._calls.off:
            return continuation(details, request)
        until = moment(details.timeout)
        try:
            copies = self._open(details, until)
        except InjectedError as error:
            return error
        for _ in range(copies):
            _in_background(continuation, details, request)
        return _Answer(self._calls, continuation(details, request), _path(details), until)

    def intercept_unary_stream(self, continuation: Continuation, details: Details, request: Any) -> Any:  # noqa: ANN401
        """A request, a stream of answers."""
        if self._calls.off:
            return continuation(details, request)
        until = moment(details.timeout)
        try:
            self._open(details, until)
        except InjectedError as error:
            return error
        return _Answers(self._calls, continuation(details, request), _path(details), until)

    def intercept_stream_unary(self, continuation: Continuation, details: Details, requests: Any) -> Any:  # noqa: ANN401
        """A stream of requests, a reply."""
        if self._calls.off:
            return continuation(details, requests)
        until, over = moment(details.timeout), threading.Event()
        try:
            self._open(details, until)
        except InjectedError as error:
            return error
        call = continuation(details, self._sent(requests, _path(details), until, over))
        call.add_done_callback(lambda _call: over.set())
        return _Answer(self._calls, call, _path(details), until)

    def intercept_stream_stream(self, continuation: Continuation, details: Details, requests: Any) -> Any:  # noqa: ANN401
        """A stream of requests, a stream of answers."""
        if self._calls.off:
            return continuation(details, requests)
        until, over = moment(details.timeout), threading.Event()
        try:
            self._open(details, until)
        except InjectedError as error:
            return error
        call = continuation(details, self._sent(requests, _path(details), until, over))
        call.add_callback(over.set)
        return _Answers(self._calls, call, _path(details), until)

    def _open(self, details: Details, until: float | None) -> int:
        """What comes before any traffic; returns how many copies are to be sent. Raises ``InjectedError``."""
        copies = 0
        for step in self._calls.opening(SEND, _path(details), details.metadata):
            copies += step.copies if isinstance(step, Double) else _obey(self._calls, step, until)
        return copies

    def _sent(self, requests: Iterator[Any], path: str, until: float | None, over: threading.Event) -> Iterator[Any]:
        """The messages of a stream of requests, each of which may be late, or be lost with all behind it."""
        for request in requests:
            for step in self._calls.at(SEND, path):
                match step:
                    case Wait():
                        self._calls.block(step, until)
                    case Lose():
                        over.wait()  # to end here would be to say that nothing more comes
                        return
                    case _:
                        pass
            yield request


class _Call:
    """A call of gRPC's with something in front of its answers."""

    def __init__(self, calls: CallFaults, call: Any, path: str, until: float | None) -> None:  # noqa: ANN401
        self._calls, self._call, self._path, self._until = calls, call, path, until
        self._failed: InjectedError | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._call, name)

    def code(self) -> Any:  # noqa: ANN401
        """The status that its caller has."""
        return self._failed.code() if self._failed else self._call.code()

    def details(self) -> Any:  # noqa: ANN401
        """What goes with it."""
        return self._failed.details() if self._failed else self._call.details()

    def _heard(self, code: grpc.StatusCode | None) -> None:
        """An answer is there. Raises ``InjectedError`` where its caller is not to have it."""
        try:
            for step in self._calls.answered(self._path, code):
                _obey(self._calls, step, self._until)
        except InjectedError as error:
            self._failed = error
            self._call.cancel()
            raise


class _Answer(_Call, Future):
    """One reply, which is heard when its caller takes it: once, and by all who take it, as the same."""

    def __init__(self, calls: CallFaults, call: Any, path: str, until: float | None) -> None:  # noqa: ANN401
        super().__init__(calls, call, path, until)
        self._asked = False
        self._asking = threading.Lock()

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """The reply."""
        error = self._call.exception(timeout)
        with self._asking:  # a caller's own thread and gRPC's, which calls back, may both be here
            if self._failed is not None:
                raise self._failed
            if not self._asked:
                self._asked = True
                self._heard(self._call.code() if error is not None else grpc.StatusCode.OK)
        return self._call.result(timeout)

    def exception(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """The error, or None."""
        try:
            self.result(timeout)
        except grpc.RpcError as error:
            return error
        return None

    def traceback(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Of the error."""
        return self._call.traceback(timeout)

    def add_done_callback(self, fn: Any) -> None:  # noqa: ANN401
        """Call it with this when gRPC has the reply."""
        self._call.add_done_callback(lambda _call: fn(self))

    def cancel(self) -> bool:
        """Give up."""
        return bool(self._call.cancel())

    def cancelled(self) -> bool:
        """Whether it was given up."""
        return bool(self._call.cancelled())

    def done(self) -> bool:
        """Whether gRPC has the reply."""
        return bool(self._call.done())

    def running(self) -> bool:
        """Whether it has not."""
        return bool(self._call.running())


class _Answers(_Call):
    """A stream of answers, each of which is heard when its caller takes it."""

    def __iter__(self) -> Iterator[Any]:
        """As gRPC's."""
        return self

    def __next__(self) -> Any:  # noqa: ANN401
        """The next answer."""
        if self._failed is not None:
            raise self._failed
        answer = next(self._call)
        self._heard(None)
        return answer


def _obey(calls: CallFaults, step: Step, until: float | None) -> int:
    """Wait, or raise. What would double an answer does nothing: it counts once."""
    match step:
        case Wait():
            if not calls.block(step, until):
                raise late()
        case Fail(code, details):
            raise InjectedError(code, details)
        case Lose():
            calls.block(Wait(None), until)
            raise late()
        case Double():
            pass
    return 0


def _in_background(continuation: Continuation, details: Details, request: Any) -> None:  # noqa: ANN401
    """The copy of a request: its answer is nobody's."""
    threading.Thread(target=continuation, args=(details, request), daemon=True, name="doubled call").start()


def _path(details: Details) -> str:
    method: str | bytes = details.method
    return method if isinstance(method, str) else method.decode()
