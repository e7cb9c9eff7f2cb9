"""The certificates with which the stand-in and Azurite speak TLS under the host names of the real service."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

HOST_NAMES = (
    "localhost",
    "127.0.0.1",
    "management.azure.com",
    "login.microsoftonline.com",
    "*.api.azureml.ms",
    "*.experiments.azureml.net",
    "*.blob.core.windows.net",
)
"""Names that one leaf certificate covers: everything that the proxy lets through."""


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files: the authority that clients trust, and the chain and key that servers show."""

    authority: Path
    chain: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Returns the TLS settings of a server that shows these certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


def make_certificates(folder: Path) -> Certificates:
    """Returns a new authority and a leaf for all host names, written to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    certificates = Certificates(folder / "authority.pem", folder / "chain.pem", folder / "key.pem")
    authority = trustme.CA(organization_name="health_ml tests")
    leaf = authority.issue_cert(*HOST_NAMES)
    authority.cert_pem.write_to_path(str(certificates.authority))
    leaf.private_key_pem.write_to_path(str(certificates.key))
    certificates.chain.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
    return certificates
