"""ServerOptions: what a server is told that its machine need not know."""

from __future__ import annotations

from dataclasses import dataclass, field

from host_agent.service.access.principal import local_principal
from host_agent.service.credentials import TlsFiles
from host_agent.service.limit_layer import PeerLimits
from host_agent.service.limits import STREAM_MAX_AGE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Who may talk to a host, and how much. Raises ``ValueError`` (``IdentityError``) for what cannot be right."""

    #: Mutual TLS for TCP; without it TCP is plaintext, and loopback's alone.
    tls: TlsFiles | None = None
    socket_mode: int = 0o600
    #: The group of the socket; empty for the process's own.
    socket_group: str = ""
    #: Who the peers without a certificate are: whoever may open the socket is this.
    socket_identity: str = "operator/local"
    #: How old a stream may become, in seconds, a tenth more or less; 0 for no such limit.
    stream_max_age_s: float = STREAM_MAX_AGE_S
    peer_limits: PeerLimits = field(default_factory=PeerLimits)
    #: Whether generic clients may ask for the contract (gRPC reflection).
    reflection: bool = True
    #: Where metrics and /healthz are served over HTTP; empty for nowhere. Beyond loopback only where that is said.
    metrics: str = ""
    metrics_anywhere: bool = False
    #: Where channelz is served over gRPC, a unix socket or loopback; empty for nowhere.
    admin: str = ""

    def __post_init__(self) -> None:
        local_principal(self.socket_identity)
