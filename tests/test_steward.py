"""The steward: what changes on the disk reaches the machine, and what the machine knows reaches the disk."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from federation import TASK, gateway_identity
from stated import DAY, NOW, Wall, admit_of, invite, join, key

from edge_fi import steward as stewards
from edge_fi.adapters.mqtt import MqttLink
from edge_fi.adapters.state import State
from edge_fi.adapters.state_hold import Hold, wait_applied
from edge_fi.crypto.keys import SigningKey
from edge_fi.effects import Adopt, Deliver, Joined
from edge_fi.errors import ConfigError, KeyFileError
from edge_fi.gateway import Gateway
from edge_fi.log import Log
from edge_fi.messages import Fate, Outcome, Status
from edge_fi.pump import Pump
from edge_fi.roster import NotAdmittedError
from edge_fi.session import GatewayIdentity
from edge_fi.steward import Steward


class Kept:
    """A gateway whose state is kept, without a broker; and its owner, who has the state open as well."""

    def __init__(self, folder: Path) -> None:
        self.wall = Wall()
        self.path = folder / "state.db"
        self.identity = gateway_identity()
        self.owner = State.create(self.path, "acme", self.identity.static.public, wall=self.wall)
        for name, role in (("pi-01", "device"), ("pi-02", "device"), ("laptop", "client")):
            join(self.owner, name, role)
        self.state = State.open(self.path, "acme", self.identity.static.public, wall=self.wall)
        self.hold = Hold.take(self.path)
        self.followed = 0
        self.refusal = ""
        """Why the broker's files cannot be written."""
        self.stream = io.StringIO()
        roster = self.state.roster()
        self.machine = Gateway(self.identity, roster, [TASK], os.urandom)
        self.steward = Steward(
            self.state,
            self.hold,
            self.machine,
            read_identity=self.read_identity,
            follow=self.follow,
            log=Log(is_json=True, stream=self.stream),
        )
        link = MqttLink("x", host="127.0.0.1", port=1, subscriptions=["t"])
        self.pump = Pump(self.machine, link, keeper=self.steward, watch=self.steward.watch)
        self.steward.begin(roster)

    def read_identity(self) -> GatewayIdentity:
        return self.identity

    def follow(self) -> None:
        if self.refusal:
            raise ConfigError(self.refusal)
        self.followed += 1

    def look(self) -> None:
        self.steward.look(self.pump)

    def events(self, name: str) -> list[dict[str, object]]:
        """What was logged under this name."""
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [
            {k: v for k, v in line.items() if k not in ("time", "event")}
            for line in lines
            if line["event"] == name
        ]

    def members(self) -> list[str]:
        """As the machine knows them."""
        return [member.id for member in self.machine._roster.members]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    monkeypatch.setattr(stewards, "LOOK_EVERY_S", 0.0)
    made = Kept(tmp_path)
    yield made
    made.hold.release()
    made.state.close()
    made.owner.close()


def test_a_revocation_reaches_machine_broker_and_whoever_waits_for_it(kept: Kept) -> None:
    kept.look()
    assert kept.followed == 1, "at the start"
    kept.owner.revoke("pi-02")
    now = kept.owner.roster()
    assert wait_applied(kept.path, now.version, now.rotations, timeout_s=0) == "late"
    kept.look()
    assert kept.members() == ["pi-01", "laptop"]
    assert (kept.followed, kept.events("revoked")) == (2, [{"members": ["pi-02"]}])
    assert wait_applied(kept.path, now.version, now.rotations, timeout_s=0) == "applied"
    kept.look()
    assert kept.followed == 2, "nothing has changed since"


def test_an_invite_reaches_the_machine_and_so_does_its_expiry(kept: Kept) -> None:
    number = invite(kept.owner, "pi-03", lifetime_s=60)
    kept.look()
    assert [its.is_expired for its in kept.machine._roster.invitations if its.number == number] == [False]
    kept.wall.at += 61
    kept.look()
    assert [its.is_expired for its in kept.machine._roster.invitations if its.number == number] == [True]
    assert kept.followed == 3, "the broker forgets the invite's account as well"


def test_a_signing_key_is_read_with_the_rotation_that_it_came_with(kept: Kept) -> None:
    before = kept.machine.identity
    kept.identity = replace(before, signing=SigningKey.from_seed(bytes(32)))
    kept.look()
    assert kept.machine.identity == before
    kept.owner.rotate()
    kept.look()
    assert kept.machine.identity == kept.identity != before


def test_a_member_is_written_down_before_it_is_told(kept: Kept) -> None:
    number = invite(kept.owner, "pi-03")
    kept.look()
    roster = kept.steward.admit(admit_of(kept.machine._roster, number, key("pi-03")))
    assert "pi-03" in [member.id for member in roster.members]
    assert "pi-03" in [member.id for member in kept.owner.roster().members]
    assert kept.followed == 3
    kept.look()
    assert kept.followed == 3, "its own change is no news"


def test_a_member_that_cannot_be_written_down_is_not_one_and_the_log_says_why(kept: Kept) -> None:
    numbers = [invite(kept.owner, "pi-03"), invite(kept.owner, "pi-04")]
    kept.look()
    kept.state._tables.connection.execute("PRAGMA query_only=ON")
    for number in numbers:
        with pytest.raises(NotAdmittedError) as caught:
            kept.steward.admit(admit_of(kept.machine._roster, number, key(str(number))))
        assert caught.value.refusal.name == "BUSY"
    (told,) = kept.events("state_unwritable")
    assert str(told["reason"]).startswith(f"cannot write {kept.path}: "), "and once for both"
    kept.owner.withdraw(numbers[0])
    kept.state._tables.connection.execute("PRAGMA query_only=OFF")
    with pytest.raises(NotAdmittedError) as caught:
        kept.steward.admit(admit_of(kept.machine._roster, numbers[0], key("x")))
    assert caught.value.refusal.name == "WITHDRAWN" and len(kept.events("state_unwritable")) == 1


def test_what_a_former_run_knew_is_written_down(kept: Kept) -> None:
    roster = kept.steward.adopt(Adopt(version=50, highest=9, revoked=frozenset({2, 7})))
    assert [member.id for member in roster.members] == ["pi-01", "laptop"]
    assert kept.owner.roster() == roster and (roster.highest, roster.version) == (9, 51)
    assert kept.followed == 2


def test_broker_files_that_cannot_be_written_are_tried_again_at_each_look(kept: Kept) -> None:
    """Else somebody who was revoked would stay in them until the next change."""
    kept.refusal = "cannot write acl: No space left on device"
    kept.owner.revoke("pi-02")
    for _ in range(3):
        kept.look()
    assert kept.members() == ["pi-01", "laptop"], "the gateway itself has dropped it"
    assert kept.events("broker_files_behind") == [{"reason": kept.refusal}], "said once"
    assert kept.followed == 1
    kept.refusal = ""
    kept.look()
    kept.look()
    assert kept.followed == 2


def test_a_state_that_cannot_be_read_is_named_and_read_when_it_can_be(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> GatewayIdentity:
        raise KeyFileError("gateway.key has mode 0644, others may read it: run chmod 600 gateway.key")

    kept.owner.rotate()
    kept.owner.revoke("pi-02")
    with monkeypatch.context() as patch:
        patch.setattr(kept.steward, "_read_identity", unreadable)
        for _ in range(3):
            kept.look()
        assert len(kept.events("state_unreadable")) == 1 and "pi-02" in kept.members()
    kept.look()
    assert "pi-02" not in kept.members()


def test_a_lasting_trouble_is_told_again_after_a_while_and_a_new_one_at_once(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.refusal = "the one"
    kept.owner.revoke("pi-02")
    kept.look()
    kept.refusal = "the other"
    kept.look()
    kept.look()
    assert [its["reason"] for its in kept.events("broker_files_behind")] == ["the one", "the other"]
    monkeypatch.setattr(stewards, "TROUBLE_EVERY_S", 0.0)
    kept.refusal = "the third"
    kept.look()
    kept.look()
    assert [its["reason"] for its in kept.events("broker_files_behind")][2:] == ["the third"] * 2


def test_a_clock_that_was_lost_is_named_and_no_invite_counts(kept: Kept) -> None:
    number = invite(kept.owner, "pi-03", lifetime_s=DAY)
    kept.wall.at = 0.0
    kept.look()
    (told,) = kept.events("clock")
    assert "the clock says 1970-01-01" in str(told["reason"]) and "set the clock" in str(told["reason"])
    assert [its.is_expired for its in kept.machine._roster.invitations if its.number == number] == [True]
    assert len(kept.members()) == 3, "members are members"
    kept.wall.at = NOW
    kept.look()
    assert [its.is_expired for its in kept.machine._roster.invitations if its.number == number] == [False]


def test_what_members_do_is_counted_and_written_at_the_end(kept: Kept) -> None:
    fates = (("pi-01", Fate.COUNTED), ("pi-02", Fate.MISSING), ("gone", Fate.COUNTED))
    outcome = Outcome(status=Status.ANSWERED, label=1, fates=fates)
    for _ in range(3):
        kept.steward.watch(Deliver("reference", outcome))
    kept.steward.watch(Deliver("reference", replace(outcome, fates=(("pi-02", Fate.LATE),))))
    kept.steward.watch(Joined("laptop"))
    assert kept.owner.standing() == {}
    kept.steward.close()
    standing = kept.owner.standing()
    first, second, laptop = standing[1], standing[2], standing[3]
    assert (first.asked, first.counted, first.missing) == (3, 3, 0) and first.last_heard > NOW - DAY
    assert (second.asked, second.counted, second.missing, second.late) == (4, 0, 3, 1)
    assert second.last_heard == 0 and laptop.asked == 0 and laptop.last_heard > 0
    kept.steward.close()
    assert kept.owner.standing() == standing, "nothing is counted twice"


def test_counts_that_cannot_be_written_wait(kept: Kept) -> None:
    kept.steward.watch(Joined("pi-01"))
    kept.state._tables.connection.execute("PRAGMA query_only=ON")
    kept.steward.close()
    assert len(kept.events("state_unwritable")) == 1
    kept.state._tables.connection.execute("PRAGMA query_only=OFF")
    kept.steward.close()
    assert list(kept.owner.standing()) == [1]


def test_that_it_serves_is_said_once(kept: Kept) -> None:
    kept.machine.is_open = False
    kept.look()
    assert kept.events("serving") == []
    kept.machine.is_open = True
    kept.look()
    kept.look()
    assert kept.events("serving") == [{}]
