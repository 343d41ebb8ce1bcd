"""Certificates change under a running host: new connections see the new ones, and what stands goes on."""

from __future__ import annotations

import logging
import shutil
import stat
import subprocess
from pathlib import Path

import grpc
import pytest
from fpstate.v1 import host_pb2, host_pb2_grpc

from fpstated.certs import CertsError, describe, init_ca, issue
from fpstated.link.tls import ClientTls, client_tls
from host_agent.service.credentials import CredentialsError, LiveCredentials, TlsFiles
from host_agent.service.options import ServerOptions
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from tests.service.certificates import Certificates


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """A CA of this test alone."""
    return Certificates(tmp_path / "certs")


async def ask(channel: grpc.aio.Channel) -> str:
    """The boot id, or the code of the refusal."""
    try:
        answer = await host_pb2_grpc.HostServiceStub(channel).GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=60)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return answer.header.boot_id


def renew(certificates: Certificates) -> None:
    """A whole new CA with a new certificate for the host, as an expired CA is replaced."""
    for name in ("operator-o.pem", "operator-o.key"):
        (certificates.folder / name).unlink(missing_ok=True)
    init_ca(certificates.folder, trust_domain="test.example", force=True)
    issue(certificates.folder, "host/test", file_name="host", hosts=["localhost"], force=True)


@pytest.mark.asyncio
async def test_certificates_are_read_anew_while_the_host_runs(certificates: Certificates) -> None:
    """A connection of the old CA goes on, a new one of it is refused, and one of the new CA is let in. No restart."""
    options = ServerOptions(tls=certificates.host)
    async with HostServer(HostConfig(), "localhost:0", options=options) as server:
        assert server.credentials is not None
        old = certificates.client("operator/o").credentials()
        async with grpc.aio.secure_channel(server.address, old) as standing:
            assert await ask(standing) == "boot"
            renew(certificates)
            async with certificates.channel(server.address, "operator/o") as channel:
                assert await ask(channel) == "boot"
            local = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.secure_channel(server.address, old, options=local) as late:
                assert await ask(late) == "UNAVAILABLE"
            assert await ask(standing) == "boot"
        assert server.credentials.loads == 2


@pytest.mark.asyncio
async def test_half_a_renewal_changes_nothing(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    """A new key without its certificate is not taken, the host says so once, and the old pair serves."""
    options = ServerOptions(tls=certificates.host)
    async with HostServer(HostConfig(), "localhost:0", options=options) as server:
        before = certificates.host.key.read_bytes()
        issue(certificates.folder, "host/other", hosts=["localhost"])
        certificates.host.key.write_bytes((certificates.folder / "host-other.key").read_bytes())
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                async with certificates.channel(server.address, "operator/o") as channel:
                    assert await ask(channel) == "boot"
        assert [record.message.count("are not taken") for record in caplog.records] == [1]
        certificates.host.key.write_bytes(before)
        async with certificates.channel(server.address, "operator/o") as channel:
            assert await ask(channel) == "boot"


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        pytest.param(lambda files: files.key.unlink(), "host.key: No such file", id="a missing key"),
        pytest.param(lambda files: files.cert.write_text("x"), "no certificate and its key", id="no certificate"),
        pytest.param(lambda files: files.ca.write_text("x"), "holds no CA certificate", id="no CA"),
        pytest.param(lambda files: files.key.chmod(0o644), "mode 0644", id="a key that everybody may open"),
    ],
)
def test_what_no_tls_can_be_made_of_is_named(certificates: Certificates, break_it: object, complaint: str) -> None:
    """At the start, before anything listens."""
    assert callable(break_it)
    break_it(certificates.host)
    with pytest.raises(CredentialsError, match=complaint):
        LiveCredentials(certificates.host)


# -- fpstated certs ----------------------------------------------------------------------------------------------------


def test_what_is_issued_is_private_and_says_who_it_is(certificates: Certificates) -> None:
    """Mode 0600, an identity, an end in sight; the CA's own key is not shown."""
    issue(certificates.folder, "guest/web/vms/a/b", days=30)
    for path in certificates.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    lines = "\n".join(describe(certificates.folder))
    assert "guest-web.pem: spiffe://test.example/guest/web/vms/a/b, until " in lines
    assert "(29 days left)" in lines
    assert "host.pem: spiffe://test.example/host/test for localhost, 127.0.0.1, until " in lines


def test_nothing_is_written_over_unasked(certificates: Certificates) -> None:
    """A CA above all: what it has signed would be worth nothing."""
    before = {path: path.read_bytes() for path in certificates.folder.iterdir()}
    with pytest.raises(CertsError, match="is there already; --force"):
        init_ca(certificates.folder, trust_domain="test.example")
    with pytest.raises(CertsError, match="is there already; --force"):
        issue(certificates.folder, "host/test", file_name="host")
    assert {path: path.read_bytes() for path in certificates.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("identity", "options", "complaint"),
    [
        pytest.param("king/x", {}, "identity: expected", id="no role"),
        pytest.param("host/a/vms/b", {}, "expected host/NAME", id="a host with VMs"),
        pytest.param("guest/a", {"days": 10_000}, "days: expected 1 to 825", id="for ever"),
        pytest.param("guest/a", {"file_name": "../x"}, "name: expected", id="a file elsewhere"),
        pytest.param("guest/a", {"file_name": "ca"}, "not ca", id="the CA's own name"),
        pytest.param("host/a", {"hosts": ["a b"]}, "host: expected a DNS name", id="no host name"),
    ],
)
def test_what_cannot_be_issued_is_named(
    certificates: Certificates, identity: str, options: dict[str, object], complaint: str
) -> None:
    """And nothing is written."""
    before = sorted(certificates.folder.iterdir())
    with pytest.raises(CertsError, match=complaint):
        issue(certificates.folder, identity, **options)  # type: ignore[arg-type]
    assert sorted(certificates.folder.iterdir()) == before


def test_a_certificate_of_somebody_else_is_shown_as_what_it_is(tmp_path: Path) -> None:
    """Without an identity; and a CA that is none of ours signs nothing."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", str(tmp_path / "ca.key"), "-out", str(tmp_path / "ca.pem"), "-subj", "/CN=x", "-days", "30"]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here to make a certificate that is not ours")
    subprocess.run([*command, *files], check=True, capture_output=True)
    assert describe(tmp_path)[0].startswith("ca.pem: no identity, until ")
    with pytest.raises(CertsError, match="no CA of ours"):
        issue(tmp_path, "guest/a")
    with pytest.raises(CertsError, match="expected a folder"):
        describe(tmp_path / "nowhere")


def test_without_a_ca_nothing_is_issued(tmp_path: Path) -> None:
    """The complaint says what to do first."""
    with pytest.raises(CertsError, match="fpstated certs init"):
        issue(tmp_path, "guest/a")


def test_a_client_has_all_three_files_or_none(certificates: Certificates) -> None:
    """What is missing is named; what is no certificate too."""
    files: TlsFiles = certificates.host
    assert client_tls(None, None, None) is None
    with pytest.raises(ValueError, match="tls-ca: expected beside"):
        client_tls(files.cert, files.key, None)
    with pytest.raises(ValueError, match="expected a certificate, its key and a CA"):
        ClientTls(files.key, files.cert, files.ca).credentials()
    with pytest.raises(ValueError, match=r"nowhere\.pem: No such file"):
        ClientTls(Path("nowhere.pem"), files.key, files.ca).credentials()
