"""One gateway a state: a second is refused, a dead one is not in the way, and what was applied is told."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_fi.adapters.state_hold import Hold, is_held, wait_applied
from edge_fi.errors import AlreadyRunningError, StateError

HOLDER = """
import pathlib, sys
from edge_fi.adapters.state_hold import Hold
hold = Hold.take(pathlib.Path(sys.argv[1]))
hold.applied(3, 1)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state.db"
    path.touch()
    return path


@contextlib.contextmanager
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds it, and goes by version 3 after 1 rotation."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_gateway_is_refused_and_told_of_the_first(path: Path) -> None:
    with holder(path) as process:
        with pytest.raises(
            AlreadyRunningError, match=rf"process {process.pid} runs as the gateway of .*state\.db"
        ):
            Hold.take(path)
        assert is_held(path)


def test_a_gateway_that_was_killed_holds_nothing(path: Path) -> None:
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_held(path)
        with Hold.take(path):
            assert is_held(path)
        assert not is_held(path)


def test_a_state_is_held_by_whatever_path_it_is_reached(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(path)
    with Hold.take(tmp_path / "link.db"):
        assert is_held(path)
        with pytest.raises(AlreadyRunningError):
            Hold.take(path)


def test_looking_at_a_hold_is_in_nobodys_way(path: Path) -> None:
    Hold.take(path).release()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_held(path)

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(200):
            Hold.take(path).release()
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()


def test_the_lock_is_its_owners_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with Hold.take(path):
            assert stat.S_IMODE(path.with_name("state.db.lock").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_lock_that_root_made_belongs_to_whom_the_state_belongs_to(path: Path) -> None:
    os.chown(path, 1234, 1234)
    with Hold.take(path):
        assert path.with_name("state.db.lock").stat().st_uid == 1234


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot write .*state\.db\.lock: No such file or directory"):
        Hold.take(tmp_path / "gone" / "state.db")


@pytest.mark.parametrize(
    ("version", "rotations", "progress"),
    [(3, 1, "applied"), (2, 0, "applied"), (4, 1, "late"), (3, 2, "late")],
)
def test_what_the_running_gateway_goes_by_is_told(
    path: Path, version: int, rotations: int, progress: str
) -> None:
    with holder(path):
        assert wait_applied(path, version, rotations, timeout_s=0.05) == progress


def test_without_a_gateway_nobody_waits(path: Path) -> None:
    assert wait_applied(path, 1, 0, timeout_s=60) == "absent"
    with Hold.take(path) as hold:
        hold.applied(9, 9)
    assert wait_applied(path, 1, 0, timeout_s=60) == "absent"


def test_a_change_that_is_applied_meanwhile_ends_the_waiting(path: Path) -> None:
    with Hold.take(path) as hold:
        applying = threading.Timer(0.05, hold.applied, (7, 0))
        applying.start()
        assert wait_applied(path, 7, 0, timeout_s=60) == "applied"
        applying.join()


def test_what_a_former_gateway_went_by_is_not_what_this_one_does(path: Path) -> None:
    with Hold.take(path) as hold:
        hold.applied(9, 9)
    with Hold.take(path) as hold:
        assert wait_applied(path, 0, 0, timeout_s=0) == "late"
        hold.applied(0, 0)
        assert wait_applied(path, 0, 0, timeout_s=0) == "applied"
