"""The layer that asks who calls, and whether the matrix gives that role the call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final

from google.protobuf.message import Message

from host_agent.service.access.matrix import Grant, grant
from host_agent.service.access.ownership import check_own
from host_agent.service.access.principal import EXPECTED, IdentityError, Principal, current_principal, principal_of
from host_agent.service.errors import Failure
from host_agent.service.layers import Context, Layer, Method
from host_agent.state import HostState

#: Where gRPC puts a certificate's URI SANs. Source: grpc/include/grpc/grpc_security_constants.h.
_PEER_URI: Final = "peer_uri"


class AccessLayer(Layer):
    """Refuses what the matrix does not give. ``local`` is who everybody is; None where their certificates say."""

    def __init__(self, state: HostState, local: Principal | None) -> None:
        self._state = state
        self._local = local

    def enter(self, method: Method, request: Any, context: Context) -> tuple[Any, Any]:  # noqa: ANN401
        """Know the principal, and that it has the call."""
        principal = self._local or _principal(context)
        given = grant(method.path, principal.role)
        if given is Grant.NO:
            text = f"the role {principal.role.value} does not have {method.path}"
            raise Failure.because(
                "ROLE_NOT_ALLOWED", text, method=method.path, role=principal.role.value, principal=principal.id
            )
        if given is Grant.OWN:
            request = self._own(method, principal, request)
        current_principal.set(principal)
        return request, None

    def _own(self, method: Method, principal: Principal, request: Any) -> Any:  # noqa: ANN401
        """Check a request now, and the messages of a stream as they are read."""
        if not method.requests:
            check_own(self._state, principal, method.path, request)
            return request
        return self._checked(method, principal, request)

    async def _checked(
        self, method: Method, principal: Principal, requests: AsyncIterator[Message]
    ) -> AsyncIterator[Message]:
        """The first message names what the stream is about, and each later one may."""
        first = True
        async for message in requests:
            if first or message.WhichOneof("body") == "hello":
                check_own(self._state, principal, method.path, message)
            first = False
            yield message


def _principal(context: Context) -> Principal:
    """Who the peer's certificate says it is."""
    auth: Mapping[str, Iterable[bytes]] = context.auth_context()
    uris = [uri.decode(errors="replace") for uri in auth.get(_PEER_URI, ())]
    try:
        (uri,) = uris
        return principal_of(uri)
    except ValueError as error:
        text = str(error) if isinstance(error, IdentityError) else f"expected one URI SAN, got {len(uris)}"
        raise Failure.because("PRINCIPAL_UNKNOWN", f"the certificate: {text}", expected=EXPECTED) from error
