"""Killed at any moment, cut off from its power, out of disk or in each other's way: the state is whole.

A history of random changes is made twice: undisturbed, and by a process that is killed in the midst of
it. What the second leaves must be, row by row, what the first had after the changes that the second
acknowledged, or after one more.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stated import FEDERATION, GATEWAY, HOUR, Made, admit_of, invite, join, key, rows

from edge_fi.adapters import state_file
from edge_fi.adapters.state import State, Tally
from edge_fi.adapters.state_backup import restore
from edge_fi.effects import Adopt
from edge_fi.errors import StateError
from edge_fi.roster import NotAdmittedError
from edge_fi.wire.payloads import Refusal

KILLS = 40
CHANGES = 60  # of one history
DIED = 99  # exit code of a process that ended at the statement it was told to
KINDS = [
    "invite",
    "invite",
    "admit",
    "admit",
    "admit",
    "revoke",
    "adopt",
    "count",
    "label",
    "rotate",
    "withdraw",
]
Rows = dict[str, list[tuple[object, ...]]]


def change(state: State, made: Made, dice: random.Random) -> None:
    """One change that these dice choose; the same for the same state and dice."""
    made.wall.at += dice.choice([1, 60, HOUR])
    roster = state.roster()
    members = [member.id for member in roster.members]
    still_open = [its for its in state.invitations() if its.is_open]
    match dice.choice(KINDS):
        case "admit" if still_open:
            number = dice.choice(still_open).invitation.number
            with contextlib.suppress(NotAdmittedError):
                state.admit(admit_of(roster, number, dice.randbytes(32)))
        case "revoke" if members:
            state.revoke(dice.choice(members))
        case "adopt":
            revoked = frozenset(dice.sample(range(1, roster.highest + 3), 2))
            state.adopt(Adopt(version=roster.version, highest=roster.highest + 2, revoked=revoked))
        case "count" if members:
            assert state.count({member.index: Tally(asked=1, counted=1) for member in roster.members})
        case "label" if members:
            state.label(dice.choice(members), f"label {dice.random()}")
        case "rotate":
            state.rotate()
        case "withdraw" if still_open:
            state.withdraw(dice.choice(still_open).invitation.number)
        case _:
            name = f"pi-{dice.randrange(8)}"
            invite(state, name, replaces=name in members or dice.random() < 0.3)


def live(made: Made, seed: int, acknowledge: Callable[[], object] = lambda: None) -> None:
    """A whole history, over a state that is there."""
    dice = random.Random(seed)
    with made.open() as state:
        for _ in range(CHANGES):
            change(state, made, dice)
            acknowledge()


def history(folder: Path, seed: int) -> list[Rows]:
    """What the state holds before that history, and after each of its changes."""
    made = Made(folder / f"undisturbed-{seed}.db")
    made.create().close()
    found = [rows(made.path)]
    live(made, seed, lambda: found.append(rows(made.path)))
    return found


def check(made: Made) -> Rows:
    """Open it as a gateway would, hold it to every promise, and return what it holds."""
    with made.open() as state:
        connection = state._tables.connection
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        roster = state.roster()  # refuses an index or an id that stands twice
        entries, issued = state.entries(), state.invitations()
        revoked = {its.member.index for its in entries if its.revoked is not None}
        assert revoked <= roster.revoked and not roster.revoked & {its.index for its in roster.members}
        assert roster.given == roster.highest and max([0, *(one.invitation.number for one in issued)]) <= len(
            issued
        )
        burnt = [one.invitation.redeemed_by for one in issued if one.invitation.redeemed_by]
        assert sorted(burnt) == sorted(its.member.public for its in entries)
        assert len([its for its in entries if its.revoked is None]) == len(roster.members)
        assert set(state.standing()) <= {its.member.index for its in entries}
    return rows(made.path)


def forked(work: Callable[[], None]) -> int:
    """The id of a process that does this and ends. No state may be open here meanwhile."""
    with warnings.catch_warnings():
        # Threads of earlier tests are not in the child, which waits for none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# Killed


@pytest.mark.parametrize("seed", range(2))
def test_whoever_is_killed_leaves_what_it_acknowledged_or_one_change_more(tmp_path: Path, seed: int) -> None:
    undisturbed = history(tmp_path, seed)
    dice = random.Random(seed)
    survived = set()
    for kill in range(KILLS // 2):
        made = Made(tmp_path / f"killed-{seed}-{kill}.db")
        made.create().close()
        reading, writing = os.pipe()

        def work(made: Made = made, writing: int = writing) -> None:
            live(made, seed, lambda: os.write(writing, b"."))

        process = forked(work)
        os.close(writing)
        wanted = dice.randrange(CHANGES)
        acknowledged = 0
        while acknowledged < wanted and (got := os.read(reading, wanted - acknowledged)):
            acknowledged += len(got)
        time.sleep(dice.uniform(0, 0.002))  # into the midst of a change, or of the next
        os.kill(process, signal.SIGKILL)
        assert exit_code(process) in (-signal.SIGKILL, 0)
        while got := os.read(reading, CHANGES):
            acknowledged += len(got)
        os.close(reading)
        assert check(made) in undisturbed[acknowledged : acknowledged + 2]
        survived.add(acknowledged)
        made.wall.at += CHANGES * HOUR  # the process's own clock went on, this one did not
        with made.open() as state:
            join(state, "afterwards")
    assert len(survived) > KILLS // 8  # or the kills were all at one place


def at_statement(number: int) -> None:
    """End this process, as if killed, when the connections of it begin their statement of this number."""
    left = iter(range(number))
    connect = sqlite3.connect

    def trace(statement: str) -> None:
        if next(left, None) is None:
            os._exit(DIED)

    def traced(*arguments: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)  # type: ignore[call-overload]
        connection.set_trace_callback(trace)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


def deaths(
    tmp_path: Path, begin: Callable[[Made], object], work: Callable[[Made, Callable[[], object]], object]
) -> Iterator[tuple[Made, int]]:
    """The work is begun anew for each of its statements, and its process dies there; the last one lives on.

    What each left, and how often `done` was called in it.
    """
    number, code = 0, DIED
    while code == DIED:
        made, log = Made(tmp_path / f"{number}.db"), tmp_path / f"{number}.log"
        begin(made)

        def die(made: Made = made, log: Path = log, number: int = number) -> None:
            with log.open("ab", buffering=0) as file:
                at_statement(number)
                work(made, lambda: file.write(b"."))

        code = exit_code(forked(die))
        yield made, log.stat().st_size
        number += 1
    assert code == 0


def one_of_each(made: Made, done: Callable[[], object]) -> None:
    """Each kind of change."""
    with made.open() as state:
        for name in ("pi-01", "pi-02", "pi-03"):
            invite(state, name)
            done()
        for number in (1, 2):
            state.admit(admit_of(state.roster(), number, key(str(number))))
            done()
        state.label("pi-01", "attic")
        done()
        state.count({1: Tally(asked=1), 2: Tally(asked=2)})
        done()
        state.withdraw(3)
        done()
        with state.together():
            invite(state, "pi-01", replaces=True)
            invite(state, "pi-02", replaces=True)
        done()
        state.admit(admit_of(state.roster(), 4, key("new")))
        done()
        state.revoke("pi-02")
        done()
        state.adopt(Adopt(version=9, highest=9, revoked=frozenset({3, 7})))
        done()
        state.rotate()
        done()


def test_a_change_is_whole_or_undone_at_whatever_statement_its_process_dies(tmp_path: Path) -> None:
    empty = Made(tmp_path / "empty.db")
    empty.create().close()
    undisturbed = [rows(empty.path)]
    reference = Made(tmp_path / "undisturbed.db")
    reference.create().close()
    one_of_each(reference, lambda: undisturbed.append(rows(reference.path)))
    left = 0
    for made, acknowledged in deaths(tmp_path, lambda made: shutil.copy(empty.path, made.path), one_of_each):
        assert check(made) in undisturbed[acknowledged : acknowledged + 2]
        left += 1
    assert acknowledged == 13 and left > 8 * 13


def test_a_new_state_is_whole_or_not_there_at_whatever_statement_its_process_dies(tmp_path: Path) -> None:
    found = set()
    for made, _ in deaths(tmp_path, lambda made: None, lambda made, _: made.create().close()):
        found.add(made.path.exists())
        if not made.path.exists():
            made.create().close()  # what was left is not in the way
        check(made)
    assert found == {False, True}


@pytest.mark.parametrize("is_over_another", [False, True])
def test_a_restore_is_whole_or_undone_at_whatever_statement_its_process_dies(
    tmp_path: Path, is_over_another: bool
) -> None:
    newer, older = Made(tmp_path / "newer.db"), Made(tmp_path / "older.db")
    backup = tmp_path / "backup.db"
    with newer.create() as state, older.create() as old:
        for name in ("pi-01", "pi-02"):
            join(state, name)
        invite(state, "pi-03")
        state.backup(backup)
        join(old, "pi-01")

    def begin(made: Made) -> None:
        if is_over_another:
            shutil.copy(older.path, made.path)

    def work(made: Made, done: Callable[[], object]) -> None:
        restore(backup, made.path, FEDERATION, GATEWAY, wall=made.wall)

    found = [check(made) if made.path.exists() else None for made, _ in deaths(tmp_path, begin, work)]
    before, after = check(older) if is_over_another else None, found[-1]
    assert len(found) > 10 and found[0] == before != after
    assert [left for left in found if left not in (before, after)] == []


# Cut off from its power


@pytest.mark.parametrize("seed", range(2))
def test_a_log_that_was_cut_or_spoilt_anywhere_leaves_an_earlier_state(tmp_path: Path, seed: int) -> None:
    """What a disk may make of the last writes before the power went: shorter, or not what was written."""
    undisturbed = history(tmp_path, seed)
    made = Made(tmp_path / "running.db")
    made.create().close()
    dice = random.Random(seed)
    with made.open() as state:
        for _ in range(CHANGES):
            change(state, made, dice)
        main, log = made.path.read_bytes(), Path(f"{made.path}-wal").read_bytes()
    reached = set()
    for cut in sorted({0, len(log), *(dice.randrange(len(log)) for _ in range(60))}):
        spoilt = Made(tmp_path / "spoilt.db")
        for content in (log[:cut], log[:cut] + bytes(len(log) - cut)):
            for path, its in ((spoilt.path, main), (Path(f"{spoilt.path}-wal"), content)):
                path.write_bytes(its)
                path.chmod(0o600)
            Path(f"{spoilt.path}-shm").unlink(missing_ok=True)
            reached.add(undisturbed.index(check(spoilt)))
    assert {0, CHANGES} <= reached and len(reached) > 20


# Out of disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Take what is left of its disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            pass


def test_a_full_disk_refuses_a_member_and_forgets_nothing(small_disk: Path) -> None:
    made = Made(small_disk / "state.db")
    with made.create() as state:
        join(state, "pi-01")
        numbers = [invite(state, f"pi-1{number}") for number in range(10)]
        fill(small_disk / "filler")
        refused: dict[int, NotAdmittedError] = {}
        for number in numbers:
            try:
                state.admit(admit_of(state.roster(), number, key(str(number))))
            except NotAdmittedError as error:
                refused[number] = error
        assert len(refused) > 5  # there may have been room for a few
        assert {error.refusal for error in refused.values()} == {Refusal.BUSY}
        assert "the disk is full; nothing was changed" in str(refused.popitem()[1].__cause__)
        before = rows(made.path)
        assert len(before["members"]) == len(state.roster().members) == 10 - len(refused)
        with pytest.raises(StateError, match=r"cannot write .*: the disk is full"):
            state.adopt(Adopt(version=9, highest=99, revoked=frozenset(range(12, 99))))
        with pytest.raises(StateError, match=r"cannot write .*: (the disk is full|No space left)"):
            state.backup(small_disk / "backup.db")
        assert not state.count({1: Tally(asked=1)})
        assert rows(made.path) == before
        (small_disk / "filler").unlink()
        for number in refused:
            state.admit(admit_of(state.roster(), number, key(str(number))))
        assert state.roster().version == 10 and state.count({1: Tally(asked=1)})
    check(made)
    assert [path.name for path in small_disk.iterdir()] == ["state.db"]


def test_a_disk_without_room_for_a_state_is_named(small_disk: Path) -> None:
    made = Made(small_disk / "state.db")
    made.create().close()
    fill(small_disk / "filler")
    with pytest.raises(StateError, match=r"cannot open .*: the disk (is full|failed .*; it may be full)"):
        made.open()
    with pytest.raises(StateError, match=r"cannot write .*: (the disk is full|No space left)"):
        Made(small_disk / "other.db").create()
    (small_disk / "filler").unlink()
    check(made)
    assert [path.name for path in small_disk.iterdir()] == ["state.db"]


def test_a_file_that_may_not_grow_refuses_a_member_and_forgets_nothing(tmp_path: Path) -> None:
    """As a full disk, for those who may not mount one."""
    made = Made(tmp_path / "state.db")

    def work() -> None:
        with made.create() as state:
            join(state, "pi-01")
            number = invite(state, "pi-02")
            admit = admit_of(state.roster(), number, key("pi-02"))
            size = Path(f"{made.path}-wal").stat().st_size
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(NotAdmittedError) as caught:
                state.admit(admit)
            assert caught.value.refusal is Refusal.BUSY
            assert not state.count({1: Tally(asked=1)})
            assert [member.id for member in state.roster().members] == ["pi-01"]
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert state.admit(admit).version == 2

    assert exit_code(forked(work)) == 0
    check(made)


# In each other's way


def test_a_gateway_that_admits_and_verbs_that_change_lose_nothing_of_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "LOCKED_S", 60.0)  # on a busy machine, turns take their time
    made = Made(tmp_path / "state.db")
    each = 30
    with made.create() as state:
        numbers = [invite(state, f"pi-{number}") for number in range(each)]
        for number in range(each):
            join(state, f"old-{number}")

    def admit_all() -> None:
        with made.open() as state:
            for number in numbers:
                state.admit(admit_of(state.roster(), number, key(str(number))))

    def change_all() -> None:
        with made.open() as state:
            for number in range(each):
                state.label(f"old-{number}", "former")
                state.revoke(f"old-{number}")
                invite(state, f"later-{number}")

    def count_all() -> None:
        with made.open() as state:
            for _ in range(each):
                assert state.count({index: Tally(asked=1) for index in range(1, each + 1)})

    processes = [forked(admit_all), forked(change_all), forked(count_all)]
    assert [exit_code(process) for process in processes] == [0, 0, 0]
    check(made)
    with made.open() as state:
        roster = state.roster()
        assert {member.id for member in roster.members} == {f"pi-{number}" for number in range(each)}
        assert (len(roster.revoked), roster.highest, roster.version) == (each, 2 * each, 3 * each)
        assert {its.label for its in state.entries() if its.revoked is not None} == {"former"}
        assert {its.asked for its in state.standing().values()} == {each}
        assert len(state.invitations()) == 3 * each
