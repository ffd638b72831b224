"""Keep one broker alive exactly as long as the process that wanted it, and leave nothing behind.

    python -I -S supervise.py PARENT_PID DIRECTORY CONFIGURATION PROGRAM

Makes DIRECTORY, runs `PROGRAM -c DIRECTORY/broker.conf` in it, writes "started PID" on standard output and,
when the broker has ended for whatever reason, removes DIRECTORY and writes the end of the broker's log.

Why a process of its own: only the kernel notices a parent that dies by SIGKILL. Standard input is a pipe
whose other end the parent alone holds, so its end-of-file is the parent's death on every POSIX system;
Linux's PR_SET_PDEATHSIG fires already when the *thread* that started the broker ends, is forgotten when
mosquitto changes its user, and cannot remove a directory. The supervisor makes the directory itself: a
parent killed before this program runs, be it between fork and exec, leaves nothing but an end-of-file to
read. What stays open: SIGKILL of both, the supervisor and its parent, at the same time, orphans the broker.

Run by path and isolated (-I -S): the user waits for this interpreter, and neither his site-packages nor his
PYTHONPATH can break it. For the same reason posix_spawn and no subprocess.
"""

import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress

STOP, KILL = b"s", b"k"  # what the parent may write; end-of-file means STOP
STARTED = b"started "
CONFIGURATION_NAME, LOG_NAME = "broker.conf", "broker.log"
GRACE_S = 2.0  # from SIGTERM to SIGKILL; both brokers need some ms, and neither has anything to save
PARENT_CHECK_S = 1.0
LOG_TAIL_BYTES = 4_000  # fits into an unread pipe even where the system is short of them (Linux: 4,096 bytes)
OPEN_FILES = 20_000  # 10,000 simulated devices and room; the usual limit is 1,024, macOS allows 24,576
_TO_THE_SUPERVISOR = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Broker:
    """The child. Reaped only here, so that no signal ever goes to a stranger with a recycled number."""

    def __init__(self, program: str, directory: str) -> None:
        log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.pid = os.posix_spawn(
            program,
            [program, "-c", os.path.join(directory, CONFIGURATION_NAME)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.path.join(directory, LOG_NAME), log, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsigdef=[signal.SIGPIPE],  # ignored by every Python, and inherited otherwise
        )
        self._is_running = True

    def is_running(self) -> bool:
        if self._is_running and os.waitpid(self.pid, os.WNOHANG)[0]:
            self._is_running = False
        return self._is_running

    def end(self, wake: int, *, gently: bool) -> None:
        if gently and self.is_running():
            os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while self.is_running() and (left_s := deadline - time.monotonic()) > 0:
                select.select([wake], [], [], left_s)
                _drain(wake)
        if self.is_running():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def supervise(parent: int, directory: str, configuration: str, program: str) -> None:
    """Run the broker in this directory until the parent wants it no longer, or is gone."""
    wake = _signals_as_bytes()
    if os.getppid() != parent:
        return
    _allow_many_connections()
    os.mkdir(directory, 0o700)
    try:
        os.chdir(directory)
        with open(CONFIGURATION_NAME, "x", encoding="utf-8") as file:
            file.write(configuration)
        broker = _Broker(program, directory)
        gently = True
        try:
            _say(STARTED + b"%d\n" % broker.pid)
            gently = _wait_until_unwanted(parent, broker, wake)
        finally:
            broker.end(wake, gently=gently)
        last_words = _log_tail()
    finally:
        os.chdir("/")
        import shutil  # here, since it costs as much time as all imports above together

        shutil.rmtree(directory, ignore_errors=True)
    _say(last_words)


def _wait_until_unwanted(parent: int, broker: _Broker, wake: int) -> bool:
    """Returns whether the broker's end may take its time."""
    # The check of the parent's number is for parents that fork without exec (multiprocessing): their
    # children inherit the lifeline and hold it open after the parent's death.
    while os.getppid() == parent:
        readable, _, _ = select.select([0, wake], [], [], PARENT_CHECK_S)
        if 0 in readable:
            return os.read(0, 1) != KILL
        if wake in readable and not set(_drain(wake)).isdisjoint(_TO_THE_SUPERVISOR):
            break
        if not broker.is_running():
            break
    return True


def _signals_as_bytes() -> int:
    """Returns the end of a pipe where signals arrive as bytes, for select."""
    wake, written = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_TO_THE_SUPERVISOR):
        signal.signal(number, lambda *_: None)
    # A parent that blocks signals (to sigwait for them) hands its mask down; the broker gets ours.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return wake


def _drain(wake: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(wake, 4_096)
    return b""


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_tail() -> bytes:
    with open(LOG_NAME, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        return file.read(LOG_TAIL_BYTES)


def _say(words: bytes) -> None:
    with suppress(BrokenPipeError):  # the parent is gone, and standard input says so too
        os.write(1, words)


if __name__ == "__main__":
    try:
        supervise(int(sys.argv[1]), *sys.argv[2:])
    except OSError as error:
        _say(str(error).encode())
        sys.exit(1)
