"""A CA of one's own for development, and certificates with the identity that a host reads: `fpstated certs`.

    DIR/ca.pem, ca.key                the CA: EC P-256, ten years; its key signs and goes nowhere else
    DIR/NAME.pem, NAME.key            what is issued: EC P-256, 90 days unless told otherwise

Every key has mode 0600, and nothing is written over unless that is asked for. For production, issue the same URI SAN
from a CA that can revoke: SPIRE, cert-manager, Vault.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: The role of the host's own certificate; no client of a host can have it.
HOST_ROLE: Final = "host"
_CA_DAYS: Final = 3650
_DAYS_MAX: Final = 825
_FILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
#: Clocks differ a little: a certificate is good from a moment before it was made.
_SKEW: Final = dt.timedelta(minutes=5)


class CertsError(Exception):
    """Something that cannot be issued or written. The text names it."""


def init_ca(folder: Path, *, trust_domain: str, force: bool = False) -> Path:
    """Make the CA of ``trust_domain`` and return its certificate's path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fpstated development CA of {trust_domain}")])
    builder = (
        _builder(name, name, key.public_key(), days=_CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        # Source: SPIFFE X.509-SVID, section 4.1: a signing certificate's URI SAN is the trust domain's.
        .add_extension(x509.SubjectAlternativeName([_uri(f"spiffe://{trust_domain}")]), critical=False)
    )
    _make_folder(folder)
    return _write_pair(folder / "ca", builder.sign(key, hashes.SHA256()), key, force=force)


def issue(
    folder: Path,
    identity: str,
    *,
    file_name: str = "",
    hosts: Sequence[str] = (),
    days: int = 90,
    force: bool = False,
) -> Path:
    """Issue a certificate for ``identity`` (`ROLE/NAME`, `guest/NAME/vms/ID`, `host/NAME`); returns its path.

    ``hosts`` are the DNS names and IP addresses under which a host is reached.
    """
    role, _, rest = identity.partition("/")
    name = rest.partition("/")[0]
    file_name = file_name or f"{role}-{name}"
    if not _FILE_NAME.fullmatch(file_name) or file_name == "ca":
        raise CertsError(f"name: expected [a-z0-9._-], and not ca, got {file_name!r}")
    if not 1 <= days <= _DAYS_MAX:
        raise CertsError(f"days: expected 1 to {_DAYS_MAX}, got {days}")
    _check_identity(identity, role, name)
    ca, ca_key = _load_ca(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role}/{name}"[:64])])
    names = [_uri(f"spiffe://{_trust_domain(ca)}/{identity}"), *map(_host_name, hosts)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if role == HOST_ROLE else [])]
    builder = (
        _builder(subject, ca.subject, key.public_key(), days=days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    return _write_pair(folder / file_name, builder.sign(ca_key, hashes.SHA256()), key, force=force)


def describe(folder: Path) -> list[str]:
    """One line per certificate of the folder: file, identity, names, until when. No key is opened."""
    if not folder.is_dir():
        raise CertsError(f"{folder}: expected a folder")
    lines = []
    for path in sorted(folder.glob("*.pem")):
        try:
            cert = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CertsError(f"{path}: no certificate: {error}") from error
        sans = _sans(cert)
        uri = ", ".join(sans.get_values_for_type(x509.UniformResourceIdentifier)) or "no identity"
        others = [*sans.get_values_for_type(x509.DNSName), *map(str, sans.get_values_for_type(x509.IPAddress))]
        names = f" for {', '.join(others)}" if others else ""
        days = (cert.not_valid_after_utc - _now()).days
        left = f"{days} days left" if days >= 0 else "EXPIRED"
        lines.append(f"{path.name}: {uri}{names}, until {cert.not_valid_after_utc:%Y-%m-%d} ({left})")
    return lines


def _check_identity(identity: str, role: str, name: str) -> None:
    from host_agent.service.access.principal import IdentityError, local_principal

    if role == HOST_ROLE:
        if identity != f"{HOST_ROLE}/{name}" or not re.fullmatch(r"[a-zA-Z0-9._-]{1,128}", name):
            raise CertsError(f"identity: expected host/NAME, got {identity!r}")
        return
    try:
        local_principal(identity)
    except IdentityError as error:
        raise CertsError(f"identity: {error}") from error


def _load_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        cert = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except OSError as error:
        advice = f"make a CA first: fpstated certs init {folder}"
        raise CertsError(f"{error.filename}: {error.strerror}; {advice}") from error
    except (ValueError, TypeError) as error:
        raise CertsError(f"{folder}: ca.pem and ca.key are no CA: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
        raise CertsError(f"{folder}: ca.key is not the key of ca.pem")
    return cert, key


def _trust_domain(ca: x509.Certificate) -> str:
    uris = _sans(ca).get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise CertsError("ca.pem: expected one URI SAN, spiffe://TRUST-DOMAIN: it is no CA of ours")
    return uris[0].removeprefix("spiffe://")


def _sans(cert: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _uri(text: str) -> x509.GeneralName:
    if not re.fullmatch(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._/-]+)?", text):
        raise CertsError(f"expected a trust domain of [a-z0-9._-] and names of [A-Za-z0-9._-], got {text!r}")
    return x509.UniformResourceIdentifier(text)


def _host_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9*]([A-Za-z0-9.-]{0,252})", text):
        raise CertsError(f"host: expected a DNS name or an IP address, got {text!r}")
    return x509.DNSName(text)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CertsError(f"{folder}: {error.strerror}") from error


def _write_pair(stem: Path, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, force: bool) -> Path:
    """The key first: a certificate without its key is of no use, and is what a host watches for."""
    pem = stem.with_name(stem.name + ".pem")
    private = stem.with_name(stem.name + ".key")
    for path in (private, pem):
        if path.exists() and not force:
            raise CertsError(f"{path} is there already; --force writes over it")
    _write(private, key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    _write(pem, cert.public_bytes(_PEM))
    return pem


_PEM: Final = serialization.Encoding.PEM


def _write(path: Path, content: bytes) -> None:
    """A file of mode 0600 in one step: who reads it meanwhile has the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CertsError(f"{path}: {error.strerror}") from error
