"""Control: the hold on a scope, acquired, renewed at a third of its lease, released."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fpstate.v1 import exit_pb2 as pb
from fpstate.v1 import exit_pb2_grpc as pb_grpc

from fpstated.link.trace import trace_metadata
from vmm_controller.config import ControllerConfig
from vmm_controller.error import CallError, typed_errors
from vmm_controller.exit_proto import duration_of, seconds_of
from vmm_controller.policy import Draw
from vmm_controller.timeline import OnEvent, control_event, disconnected_event

#: How long giving control up may take before the lease is left to run out.
_RELEASE_TIMEOUT_S = 2.0


class Control:
    """A hold on the configured scope. `name` is empty while there is none."""

    def __init__(self, stub: pb_grpc.ExitServiceAsyncStub, config: ControllerConfig, draw: Draw, tell: OnEvent) -> None:
        self._stub = stub
        self._config = config
        self._draw = draw
        self._tell = tell
        self.name = ""
        self.epoch = 0
        self.lease_s = 0.0
        #: Of the host that granted it.
        self.boot_id = ""
        self._expires_at = 0.0

    @property
    def ran_out(self) -> bool:
        """Whether the lease has ended by our own clock, so that nobody need have fenced us."""
        return _now() >= self._expires_at

    async def acquire(self) -> None:
        """Take the scope once the host is there and nobody else holds it. Raises CallError for another refusal."""
        holder = None
        failures = 0
        while True:
            try:
                return await self._try_acquire()
            except CallError as error:
                if error.reason != "CONTROL_HELD" and not error.transient:
                    raise
                failures += 1
                delay_s = self._delay_s(failures)
                if error.reason != "CONTROL_HELD":
                    self._tell(disconnected_event(error, delay_s))
                elif holder != (holder := error.metadata.get("holder", "")):
                    self._tell(control_event("held-by-another", self._config.scope, holder=holder))
            await asyncio.sleep(delay_s)

    async def _try_acquire(self) -> None:
        config = self._config
        request = pb.AcquireControlRequest(
            scope=config.scope, controller_name=config.name, lease=duration_of(config.lease_s)
        )
        sent_at = _now()
        with typed_errors():
            reply = await self._stub.AcquireControl(request, timeout=config.call_timeout_s, metadata=trace_metadata())
        self.name, self.epoch, self.boot_id = reply.control, reply.epoch, reply.header.boot_id
        self._start_lease(sent_at, seconds_of(reply.lease))
        self._tell(
            control_event(
                "acquired",
                config.scope,
                control=self.name,
                epoch=self.epoch,
                lease_s=self.lease_s,
                revision=reply.header.revision,
            )
        )

    async def keep(self, on_renewed: Callable[[], None]) -> None:
        """Renew for ever. Raises CallError once the host says that the control is not ours any more."""
        while True:
            await asyncio.sleep(self.lease_s / 3)
            await self._renew()
            on_renewed()

    async def _renew(self) -> None:
        request = pb.RenewControlRequest(control=self.name, epoch=self.epoch)
        failures = 0
        while True:
            sent_at = _now()
            try:
                with typed_errors():
                    reply = await self._stub.RenewControl(
                        request, timeout=self._config.call_timeout_s, metadata=trace_metadata()
                    )
            except CallError as error:
                if not error.transient:
                    raise
                # The watch tells about a host that is away; here it is only tried again.
                failures += 1
                await asyncio.sleep(self._delay_s(failures))
            else:
                return self._start_lease(sent_at, seconds_of(reply.lease))

    async def release(self) -> None:
        """Give the scope up, if it is held and the host is there; otherwise the lease runs out by itself."""
        if not self.name:
            return
        request = pb.ReleaseControlRequest(control=self.name, epoch=self.epoch)
        try:
            with typed_errors():
                await self._stub.ReleaseControl(request, timeout=_RELEASE_TIMEOUT_S, metadata=trace_metadata())
            self._tell(control_event("released", self._config.scope, control=self.name, epoch=self.epoch))
        except CallError as error:
            self._tell(control_event("not-released", self._config.scope, control=self.name, reason=str(error)))
        self.name = ""

    def lost(self, error: CallError) -> None:
        """The host says that the control has ended."""
        self._tell(control_event("lost", self._config.scope, control=self.name, epoch=self.epoch, reason=error.reason))
        self.name = ""

    def _start_lease(self, sent_at: float, lease_s: float) -> None:
        """The lease began when the host had the request, which is after it was sent; its answer may come much later."""
        self.lease_s = lease_s
        self._expires_at = sent_at + lease_s

    def _delay_s(self, failures: int) -> float:
        return self._config.reconnect.delay_s(f"control/{self._config.name}", failures, self._draw)


def _now() -> float:
    """The loop's clock, in seconds."""
    return asyncio.get_running_loop().time()
