"""The layer that gives each principal its share: calls and streams at once, and calls a second.

Streams are counted apart, since they last: a principal with all its streams open can still call. Whoever has no calls
left is refused at once, before its request costs anything, and hears when the next one is admitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from host_agent.service.access.principal import current_principal
from host_agent.service.clock import Clock
from host_agent.service.errors import Failure
from host_agent.service.layers import Context, Layer, Method
from host_agent.state import NS_PER_S

#: Principals of whom nothing is under way are forgotten from here on, those heard of least lately first.
_PRINCIPALS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLimits:
    """What each principal has. Raises ``ValueError`` naming the field that cannot be right."""

    #: Calls at once that are no streams; one that waits for an outcome is one.
    calls_max: int = 4096
    #: Streams at once: Attach, WatchExits, and the like.
    streams_max: int = 1024
    #: Calls a second, streams included, in the long run; 0 for no such limit.
    calls_per_s: float = 5000.0
    #: Calls at once after a pause.
    burst: int = 10_000

    def __post_init__(self) -> None:
        for name in ("calls_max", "streams_max", "burst"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 <= self.calls_per_s < 1e9:
            raise ValueError(f"calls_per_s: expected 0 or more, got {self.calls_per_s}")


@dataclass(slots=True)
class TokenBucket:
    """So many tokens a second, saved up to ``size``. Times are the agent's clock, in nanoseconds."""

    per_s: float
    size: int
    tokens: float
    filled_ns: int

    def take(self, now_ns: int) -> int:
        """Take a token: 0, or how many nanoseconds it will be until there is one."""
        grown = self.tokens + (now_ns - self.filled_ns) * self.per_s / NS_PER_S
        self.tokens, self.filled_ns = min(float(self.size), grown), now_ns
        if self.tokens >= 1:
            self.tokens -= 1
            return 0
        return max(1, round((1 - self.tokens) * NS_PER_S / self.per_s))


@dataclass(slots=True)
class _Peer:
    """What a principal has under way, and its bucket where calls are counted by the second."""

    bucket: TokenBucket | None
    under_way: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})

    @property
    def idle(self) -> bool:
        return not any(self.under_way.values())


class LimitLayer(Layer):
    """Refuses what is too much of one principal: LIMIT_REACHED, RATE_LIMITED."""

    def __init__(self, limits: PeerLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._peers: dict[str, _Peer] = {}

    def enter(self, method: Method, request: Any, context: Context) -> tuple[Any, _Peer]:  # noqa: ANN401
        """Admit the call, and count it."""
        principal = current_principal.get().id
        peer = self._peer(principal)
        if peer.bucket is not None:
            self._admit(principal, peer.bucket)
        self._check_room(principal, peer, streams=method.is_stream)
        peer.under_way[method.is_stream] += 1
        return request, peer

    def leave(self, method: Method, context: Context, kept: _Peer, *, cancelled: bool) -> None:
        """It is over."""
        kept.under_way[method.is_stream] -= 1

    def under_way(self, *, streams: bool) -> int:
        """How many calls, or streams, all principals have under way."""
        return sum(peer.under_way[streams] for peer in self._peers.values())

    def _peer(self, principal: str) -> _Peer:
        peer = self._peers.pop(principal, None)
        if peer is None:
            self._forget_idle()
            limits = self._limits
            bucket = TokenBucket(limits.calls_per_s, limits.burst, limits.burst, self._clock.now_ns())
            peer = _Peer(bucket if limits.calls_per_s else None)
        self._peers[principal] = peer  # heard of latest
        return peer

    def _forget_idle(self) -> None:
        if len(self._peers) >= _PRINCIPALS_MAX:
            oldest = next((name for name, peer in self._peers.items() if peer.idle), None)
            if oldest is not None:
                del self._peers[oldest]

    def _admit(self, principal: str, bucket: TokenBucket) -> None:
        wait_ns = bucket.take(self._clock.now_ns())
        if wait_ns:
            wait_ms = -(-wait_ns // 1_000_000)
            text = f"{principal} makes more than {self._limits.calls_per_s:g} calls a second"
            raise Failure.because(
                "RATE_LIMITED",
                text,
                principal=principal,
                callsPerSecond=f"{self._limits.calls_per_s:g}",
                remainingMillis=wait_ms,
            )

    def _check_room(self, principal: str, peer: _Peer, *, streams: bool) -> None:
        maximum = self._limits.streams_max if streams else self._limits.calls_max
        if peer.under_way[streams] >= maximum:
            what, limit = ("streams", "streams_per_principal") if streams else ("calls", "calls_per_principal")
            text = f"{principal} has {maximum} {what} under way"
            raise Failure.because("LIMIT_REACHED", text, limit=limit, maximum=maximum)
