"""What all child processes of the tests have in common: a log, an end that is certain, and use as context managers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

from .processes import Root, Tree


class Program:
    """A program and all that it starts. A context manager that starts it and always stops it. Derived classes start it.

    log: the file its output goes to.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._tree: Tree | None = None

    def start(self) -> Self:
        """Starts it and waits until it is ready."""
        raise NotImplementedError

    def stop(self, timeout: float = 60.0) -> bool:
        """Asks it to end, after which a new start is possible. Whether no force was needed."""
        tree, self._tree = self._tree, None
        return tree is None or tree.terminate(timeout)

    def kill(self) -> None:
        """Kills all of it as a crash would."""
        tree, self._tree = self._tree, None
        if tree is not None:
            tree.kill()

    def restart(self) -> Self:
        """Stops and starts it."""
        self.stop()
        return self.start()

    def log_text(self) -> str:
        """All that it wrote since the log file was new."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        """The log's last lines."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    @property
    def is_running(self) -> bool:
        """Whether its first process lives."""
        return self._tree is not None and self._tree.root.poll() is None

    @property
    def process(self) -> Root:
        """Its first process."""
        return self._running.root

    @property
    def processes(self) -> list[int]:
        """Ids of all its processes."""
        return self._running.refresh()

    @property
    def _running(self) -> Tree:
        if self._tree is None:
            raise RuntimeError(f"{type(self).__name__} doesn't run")
        return self._tree

    def __enter__(self) -> Self:
        return self.start() if self._tree is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        # a test that lost it must not leave processes
        with contextlib.suppress(Exception):
            self.kill()
