"""The certificate that clips are signed with: the operator's own, else one made here for development, which says so."""

from __future__ import annotations

import datetime
import logging
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from dynamictrl.errors import ConfigError
from serving.config import Service

logger = logging.getLogger(__name__)

DEVELOPMENT = "DynamiCtrl development"
"""Organisation in the certificates made here, so that nobody takes them for anybody's word."""
_DAYS = 825
_DOCUMENT_SIGNING = ObjectIdentifier("1.3.6.1.5.5.7.3.36")
_C2PA_SIGNING = ObjectIdentifier("1.3.6.1.4.1.62558.2.1")
_PURPOSES = {ExtendedKeyUsageOID.EMAIL_PROTECTION, _DOCUMENT_SIGNING, _C2PA_SIGNING}


@dataclass(frozen=True)
class Identity:
    """Who signs."""

    chain: bytes
    """PEM: the signing certificate first, then those that vouch for it."""
    key: bytes
    """PEM of its private key, P-256."""
    name: str
    """Its common name."""
    is_development: bool


def open_identity(certificate: str, key: str, folder: Path) -> Identity:
    """The configured identity, or where none is, the development one in `folder`; ConfigError for unusable files."""
    if certificate or key:
        if not (certificate and key):
            raise ConfigError(
                "signing_certificate and signing_key go together: give both PEM files, or neither for a development "
                "certificate",
                code="signing_certificate",
                param="signing_key" if certificate else "signing_certificate",
            )
        return _checked(Path(certificate), Path(key))
    return _development(folder)


def provenance_word(service: Service) -> str:
    """How a service signs its clips, in one word for /readyz: off, development or configured."""
    if service.provenance == "off":
        return "off"
    return "configured" if service.signing_certificate else "development"


def _checked(certificate: Path, key: Path) -> Identity:
    try:
        chain, secret = certificate.read_bytes(), key.read_bytes()
        leaf = x509.load_pem_x509_certificates(chain)[0]
        private = serialization.load_pem_private_key(secret, password=None)
    except (OSError, ValueError, TypeError) as problem:
        raise _unusable(certificate, f"cannot be read with its key {key} ({problem})") from problem
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise _unusable(certificate, "has a key that is not on the curve P-256, as ES256 needs it")
    if private.public_key() != leaf.public_key():
        raise _unusable(certificate, f"does not belong to the key {key}; the signing certificate must come first")
    now = datetime.datetime.now(datetime.UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise _unusable(certificate, f"is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc} only")
    if not _may_sign(leaf):
        raise _unusable(certificate, "is not made for signing content (extended key usage emailProtection or similar)")
    return Identity(chain, secret, _name(leaf), is_development=_organisation(leaf) == DEVELOPMENT)


def _may_sign(leaf: x509.Certificate) -> bool:
    try:
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return bool(_PURPOSES & set(purposes))


def _unusable(certificate: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the signing certificate {certificate} {why}; docs/serving/provenance.md says what is needed",
        code="signing_certificate",
        param="signing_certificate",
    )


def _development(folder: Path) -> Identity:
    """Makes one where there is none or it has run out; of several processes that do so at once, one wins."""
    names = ("certificate.pem", "key.pem")
    with suppress(ConfigError):
        return _checked(*(folder / name for name in names))
    chain, key = make_identity(DEVELOPMENT, "DynamiCtrl development signer")
    fresh = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    try:
        fresh.mkdir(parents=True, mode=0o700)
        for name, content in zip(names, (chain, key), strict=True):
            with os.fdopen(os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(content)
        _take_the_place_of(folder, fresh)
    except OSError as problem:
        raise ConfigError(
            f"a development certificate cannot be kept in {folder} ({problem.strerror}); give --signing-certificate "
            "and --signing-key, or --provenance off",
            code="signing_certificate",
            param="signing_certificate",
        ) from problem
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return _checked(*(folder / name for name in names))


def _take_the_place_of(folder: Path, fresh: Path) -> None:
    try:
        fresh.rename(folder)
    except OSError:
        # Somebody was faster, or what is there has run out: then file by file, the key first.
        with suppress(ConfigError):
            _checked(folder / "certificate.pem", folder / "key.pem")
            return
        for name in ("key.pem", "certificate.pem"):
            (fresh / name).replace(folder / name)


def open_mark_key(path: str, data_folder: Path) -> bytes:
    """The key of invisible marks: of the configured file, else of one made in the data folder."""
    if path:
        return read_mark_key(Path(path))
    own = data_folder / "signing-mark.key"
    try:
        with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secrets.token_hex(32).encode())
    except FileExistsError:
        pass
    return read_mark_key(own)


def read_mark_key(path: Path) -> bytes:
    """The bytes of a key file; ConfigError where it cannot be read or is too short to be secret."""
    try:
        key = path.read_bytes().strip()
    except OSError as problem:
        raise _no_mark_key(path, f"cannot be read ({problem.strerror})") from problem
    if len(key) < 16:
        raise _no_mark_key(path, f"has {len(key)} bytes; a secret has at least 16")
    return key


def _no_mark_key(path: Path, why: str) -> ConfigError:
    return ConfigError(f"the key file {path} {why}", code="invisible_mark_key", param="invisible_mark_key")


def make_identity(organisation: str, common_name: str, *, days: int = _DAYS) -> tuple[bytes, bytes]:
    """PEM chain (signer, authority) and the signer's key. The authority's key is forgotten: it vouches for one only."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = _subject(organisation, f"{organisation} authority")
    authority = _certificate(authority_name, authority_name, authority_key, authority_key, days, is_authority=True)
    leaf = _certificate(_subject(organisation, common_name), authority_name, key, authority_key, days)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return leaf.public_bytes(pem) + authority.public_bytes(pem), secret


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey,
    days: int, *, is_authority: bool = False
) -> x509.Certificate:  # fmt: skip
    public, issuer_public = key.public_key(), issuer_key.public_key()
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ a little
    usage = x509.KeyUsage(
        digital_signature=not is_authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=is_authority, crl_sign=is_authority, encipher_only=False, decipher_only=False
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _subject(organisation: str, common_name: str) -> x509.Name:
    pairs = {NameOID.ORGANIZATION_NAME: organisation, NameOID.COMMON_NAME: common_name}
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in pairs.items()])


def _name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else certificate.subject.rfc4514_string()


def _organisation(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""
