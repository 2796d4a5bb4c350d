# SPDX-License-Identifier: Apache-2.0
"""Who is who between a server and its workers: keys in files, one for each process, or secrets on one machine.

Beyond one machine both sides prove who they are by TLS certificates of one authority (`phalanx keys`). On one machine a
secret for each worker process lies in a folder that only its user can read. torchrun's store, which anybody can read
who reaches it, never has either.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from phalanx.core.expression import require
from phalanx.core.optional import optional

AUTHORITY, SERVER, WORKER = "authority", "server", "worker-{}"
_DAYS = 365
SERVER_NAME = "phalanx-server"  # in the server's certificate, whatever host it runs on


@dataclass(frozen=True)
class Keys:
    """The certificate and the private key of one process, and the authority that it trusts, as PEM."""

    authority: bytes
    certificate: bytes
    key: bytes

    @staticmethod
    def read(folder: Path, name: str) -> Keys:
        """The keys of a process from a folder that `make_keys` wrote, or from a part of it that was copied.

        Raises:
            ValueError: a file is missing, or others than its owner can read the private key.
        """
        files = [folder / f"{AUTHORITY}.pem", folder / f"{name}.pem", folder / f"{name}.key"]
        for file in files:
            require(file.is_file(), f"{file} is missing; phalanx keys {folder} makes it, and it is copied to this host")
        # a volume of secrets may belong to a group of this process alone
        loose = files[2].stat().st_mode & 0o007
        require(not loose, f"others can read {files[2]}; run chmod 600 {files[2]}")
        return Keys(*(file.read_bytes() for file in files))


def make_keys(folder: Path, workers: int) -> list[Path]:
    """Makes an authority, and keys of a server and of worker processes, in a new or empty folder; returns the files.

    The authority's own key is thrown away, so nobody can make another identity later. Keys are valid for a year.

    Args:
        workers: worker processes.
    Raises:
        ValueError: the folder has files, or there are no workers.
    """
    require(workers >= 1, f"a job has one worker process or more, got {workers}")
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; give a folder")
    if folder.exists():
        require(not any(folder.iterdir()), f"{folder} is not empty; give a new folder, so that no key is lost")
    x509: Any = optional("cryptography.x509", "making keys", "cryptography", "server")
    ec: Any = optional("cryptography.hazmat.primitives.asymmetric.ec", "making keys", "cryptography", "server")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate(x509, "phalanx authority", authority_key, None, authority_key)
    written = [_write(folder / f"{AUTHORITY}.pem", _pem(authority), 0o644)]
    for name in (SERVER, *(WORKER.format(process) for process in range(workers))):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = SERVER_NAME if name == SERVER else name
        certificate = _certificate(x509, subject, key, authority.subject, authority_key)
        written.append(_write(folder / f"{name}.pem", _pem(certificate), 0o644))
        written.append(_write(folder / f"{name}.key", _private(key), 0o600))
    return written


def _certificate(x509: Any, name: str, key: Any, issuer: Any, signer: Any) -> Any:
    """A certificate for a name; that of an authority where there is no issuer."""
    from cryptography.hazmat.primitives import hashes

    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(
            x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), critical=True
        )
    )
    if issuer is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> Path:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    return path


def write_secrets(folder: Path, processes: int) -> list[str]:
    """A secret for each worker process, in files that only this user can read; returns the secrets."""
    made = [secrets.token_hex(32) for _ in range(processes)]
    for process, secret in enumerate(made):
        _write(folder / WORKER.format(process), secret.encode(), 0o600)
    return made


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is this machine's loopback interface.

    Raises:
        ValueError: the name is not known.
    """
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise ValueError(f"no host is called {host!r} ({error.strerror or error}); check MASTER_ADDR") from None
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)
