"""A development CA in a folder and what the tests issue from it."""

from __future__ import annotations

from pathlib import Path

import grpc

from fpstated.certs import init_ca, issue
from fpstated.link.tls import ClientTls
from host_agent.service.credentials import TlsFiles

#: What the host's certificate is for.
HOST = "localhost"


class Certificates:
    """A CA, a host certificate for ``localhost``, and clients' certificates on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        init_ca(folder, trust_domain="test.example")
        issue(folder, "host/test", file_name="host", hosts=[HOST, "127.0.0.1"])

    @property
    def host(self) -> TlsFiles:
        """The host's three files."""
        return TlsFiles(self.folder / "host.pem", self.folder / "host.key", self.folder / "ca.pem")

    def client(self, identity: str) -> ClientTls:
        """A client's files; issued the first time."""
        name = identity.replace("/", "-").lower()
        pem = self.folder / f"{name}.pem"
        if not pem.exists():
            issue(self.folder, identity, file_name=name)
        return ClientTls(pem, self.folder / f"{name}.key", self.folder / "ca.pem")

    def channel(self, target: str, identity: str) -> grpc.aio.Channel:
        """A channel with a client's certificate, on a connection of its own."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        return grpc.aio.secure_channel(target, self.client(identity).credentials(), options=options)
