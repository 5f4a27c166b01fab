"""Certificates for tests, made by the program openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from kvstored.mooncake import settings

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
_MEMBER = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"


class Authority:
    """Who gives certificates to members, for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        options = ["-keyout", str(self._key), "-out", str(self.certificate)]
        _openssl("req", "-x509", *_KEY, *options, "-subj", "/CN=authority", "-days", "2")

    def member(self, name: str) -> dict[str, str]:
        """Variables of a member with a certificate of its own."""
        key, request, certificate, options = (
            self._folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem", "cnf")
        )
        options.write_text(_MEMBER)
        _openssl("req", "-new", *_KEY, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}")
        issuer = ["-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial", "-days", "2"]
        paths = ["-in", str(request), "-out", str(certificate), "-extfile", str(options)]
        _openssl("x509", "-req", *issuer, *paths)
        return {
            settings.CERTIFICATE_VARIABLE: str(certificate),
            settings.KEY_VARIABLE: str(key),
            settings.AUTHORITY_VARIABLE: str(self.certificate),
        }


def can_be_made() -> bool:
    """Whether there is an openssl."""
    return shutil.which("openssl") is not None


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
