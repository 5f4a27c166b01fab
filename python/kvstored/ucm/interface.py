"""UCM's store interface where UCM is installed, and the same names without it elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:

    class Task:
        """A transfer under way."""

    class UcmKVStoreBaseV1:
        """What UCM expects of a store."""

        def __init__(self, config: dict[str, object]) -> None: ...

    class StoreNotFoundError(RuntimeError):
        """Blocks to be loaded are not stored."""

else:
    try:
        from ucm.store.ucmstore_v1 import Task, UcmKVStoreBaseV1
    except ImportError:

        class Task:
            """A transfer under way."""

        class UcmKVStoreBaseV1:
            """What UCM expects of a store; here only the place for its configuration."""

            def __init__(self, config: dict[str, object]) -> None:
                self.config = config

    try:
        from ucm.store.pipeline.errors import StoreNotFoundError
    except ImportError:

        class StoreNotFoundError(RuntimeError):
            """Blocks to be loaded are not stored."""


__all__ = ["StoreNotFoundError", "Task", "UcmKVStoreBaseV1"]
