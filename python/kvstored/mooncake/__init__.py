"""Mooncake's Python API over our transfer engine and pool: code written for Mooncake runs with its imports changed.

::

    from kvstored.mooncake.engine import TransferEngine
    from kvstored.mooncake.store import MooncakeDistributedStore

Where imports can't be changed, :func:`install_shim` makes ``mooncake`` mean this package in the running interpreter;
for programs that are started, put :func:`shim_folder` (``python -m kvstored.mooncake`` prints it) in front of their
``PYTHONPATH``.

What the callers don't know of is set by environment variables, read when an engine or a store starts:

- ``KVSTORED_TRANSFER_TOKEN_FILE``: a file with the token that all members share.
- ``KVSTORED_TRANSFER_TLS_CERTIFICATE``, ``KVSTORED_TRANSFER_TLS_KEY``, ``KVSTORED_TRANSFER_TLS_AUTHORITY``: PEM files
  for mutual TLS. Both are required on any address that isn't loopback.
- ``MC_TRANSFER_TIMEOUT``: seconds that a transfer may take, 30 by default, at least 5, as with Mooncake.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["install_shim", "shim_folder"]


def shim_folder() -> Path:
    """The folder with a package ``mooncake`` that is ours under Mooncake's name."""
    return Path(__file__).parent / "shim"


def install_shim() -> None:
    """Makes ``import mooncake`` find ours in this interpreter, before an installed Mooncake.

    Raises RuntimeError where Mooncake itself has been imported already.
    """
    folder = str(shim_folder())
    loaded = sys.modules.get("mooncake")
    if loaded is not None and Path(loaded.__file__ or "").parent != shim_folder() / "mooncake":
        raise RuntimeError(f"mooncake has been imported already, from {loaded.__file__}")
    if folder not in sys.path:
        sys.path.insert(0, folder)
