"""The daemon as tests start it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab import Daemon, is_alive


def test_a_daemon_is_found_crashes_comes_back_and_leaves_nothing(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    assert daemon.is_running
    assert daemon.statistics()
    first = daemon.process.pid
    daemon.kill()
    assert not is_alive(first)
    assert not daemon.is_running
    # over the socket that the crash left
    daemon.start()
    assert daemon.process.pid != first
    daemon.drain()
    folder = daemon.folder
    assert daemon.stop()
    daemon.remove()
    assert not folder.exists()


def test_a_paused_daemon_goes_on_and_can_be_stopped_while_paused(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon(pipeline="Cache")
    daemon.pause()
    daemon.resume()
    assert daemon.statistics()
    daemon.pause()
    assert daemon.stop()


def test_a_daemon_that_does_not_come_up_says_why(start_daemon: Callable[..., Daemon]) -> None:
    with pytest.raises(RuntimeError, match="no_such_tier"):
        start_daemon(pipeline="no_such_tier")
