"""One gateway of an identity runs, and knows what its former runs knew: CLAIM, HELD and ROSTER."""

import itertools
from dataclasses import replace

import pytest
from federation import (
    TASK,
    TENSOR,
    Federation,
    HandMember,
    constant,
    gateway_identity,
    key_pair,
    lone_gateway,
    only_publish,
    outcome_of,
    published,
    roster_of,
    without,
)
from nacl.bindings import crypto_generichash_blake2b_salt_personal

from edge_fi.claim import Claim
from edge_fi.effects import Adopt, Effect, Halt, Joined, Noticed, Publish, Rejected
from edge_fi.errors import ProtocolError
from edge_fi.gateway import CLAIM_US, EPOCH_US, Gateway
from edge_fi.messages import Fate, Status
from edge_fi.roster import Roster
from edge_fi.wire import frames
from edge_fi.wire.frames import Type
from firmware_sim.fleet import Fleet
from firmware_sim.link import Link
from firmware_sim.stream import Stream

A, D = "fi1/acme/a/pi-1", "fi1/acme/d/pi-1"
STATE, ROSTER, CLAIM = (f"fi1/acme/gateway/{word}" for word in ("state", "roster", "claim"))
SECOND = 1_000_000
PRIVATE = key_pair("gateway").private
HALT = (
    "another process runs as this gateway, perhaps on another machine: stop it first; "
    "two gateways need two federations"
)
LOW, HIGH = b"\x01" * 16, b"\xfe" * 16


def claim_of(nonce: bytes, private: bytes = PRIVATE) -> Claim:
    """A run's claim whose dice give this nonce."""
    return Claim(private, lambda size: nonce[:size])


def blake2b(key: bytes, purpose: bytes, context: bytes = b"", size: int = 32) -> bytes:
    """Libsodium's BLAKE2b, where the product uses hashlib's."""
    return crypto_generichash_blake2b_salt_personal(
        context, digest_size=size, key=key, person=purpose.ljust(16, b"\0")
    )


def forgeries(frame: bytes) -> list[bytes]:
    """The frame with each of its bytes behind the flags changed."""
    return [frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :] for at in range(2, len(frame))]


# The words


def test_a_claim_is_a_fresh_nonce_under_a_mac_of_the_gateways_own_key() -> None:
    claim = Claim(PRIVATE, Stream("dice"))
    frame = claim.begin()
    maced = b"\x41\x00" + Stream("dice")(16)
    assert frame == maced + blake2b(blake2b(PRIVATE, b"fi1 claim key"), b"fi1 claim", maced, 8)
    assert len(frame) == 26 and claim.begin() != frame


def test_a_run_that_serves_answers_every_claim_with_held_of_its_nonce() -> None:
    serving = claim_of(LOW)
    for nonce in (LOW[:-1] + b"\0", HIGH):
        held = serving.answer(claim_of(nonce).begin(), is_open=True)
        maced = b"\x42\x00" + nonce
        assert held == maced + blake2b(blake2b(PRIVATE, b"fi1 claim key"), b"fi1 held", maced, 8)


def test_a_run_does_not_answer_its_own_claim() -> None:
    claim = claim_of(LOW)
    frame = claim.begin()
    assert claim.answer(frame, is_open=True) == claim.answer(frame, is_open=False) == b""


def test_of_two_that_wait_the_one_with_the_lower_nonce_holds_and_the_other_says_its_claim_again() -> None:
    low, high = claim_of(LOW), claim_of(HIGH)
    from_low, from_high = low.begin(), high.begin()
    held = low.answer(from_high, is_open=False)
    assert high.is_lost(held) and not low.is_lost(held)
    assert high.answer(from_low, is_open=False) == from_high


def test_held_counts_for_the_claim_that_was_made_last_alone() -> None:
    claim, other = Claim(PRIVATE, Stream("dice")), claim_of(LOW)
    held = other.answer(claim.begin(), is_open=True)
    assert claim.is_lost(held)
    claim.begin()
    assert not claim.is_lost(held)


def test_a_run_that_has_claimed_nothing_has_lost_nothing() -> None:
    held = claim_of(LOW).answer(claim_of(HIGH).begin(), is_open=True)
    assert not claim_of(bytes(16)).is_lost(held)


@pytest.mark.parametrize("private", [key_pair("pi-1").private, bytes(32)])
def test_whoever_has_another_key_can_neither_claim_nor_hold(private: bytes) -> None:
    claim, stranger = claim_of(LOW), claim_of(HIGH, private)
    frame = claim.begin()
    with pytest.raises(ProtocolError, match=r"^mac$"):
        claim.answer(stranger.begin(), is_open=True)
    with pytest.raises(ProtocolError, match=r"^mac$"):
        stranger.answer(frame, is_open=True)
    with pytest.raises(ProtocolError, match=r"^mac$"):
        claim.is_lost(b"\x42\x00" + LOW + frame[-8:])


def test_a_claim_and_its_answer_can_be_changed_nowhere() -> None:
    claim, other = claim_of(LOW), claim_of(HIGH)
    frame = claim.begin()
    for forged in forgeries(frame):
        with pytest.raises(ProtocolError, match=r"^mac$"):
            other.answer(forged, is_open=True)
    for forged in forgeries(other.answer(frame, is_open=True)):
        with pytest.raises(ProtocolError, match=r"^mac$"):
            claim.is_lost(forged)


REVOKED = replace(without(roster_of("pi-1", "pi-2", clients=["laptop-1"]), "pi-2"), version=7)


def test_a_roster_word_says_what_must_not_be_forgotten_to_the_gateway_alone() -> None:
    frame = claim_of(LOW).seal_roster(REVOKED)
    assert frame[:22] == bytes.fromhex("40 00 00000007") + LOW
    assert Claim(PRIVATE, Stream("a later run")).open_roster(frame) == Adopt(7, 101, frozenset({2}))
    for private in (key_pair("pi-1").private, key_pair("pi-2").private):
        with pytest.raises(ProtocolError, match=r"^seal$"):
            claim_of(LOW, private).open_roster(frame)


def test_no_two_roster_words_have_one_key() -> None:
    claim = Claim(PRIVATE, Stream("dice"))
    one, other = claim.seal_roster(REVOKED), claim.seal_roster(REVOKED)
    assert one[:6] == other[:6] and one[6:22] != other[6:22] and one[22:] != other[22:]


def test_a_roster_word_can_be_changed_nowhere_its_version_included() -> None:
    claim = Claim(PRIVATE, Stream("dice"))
    for forged in forgeries(claim.seal_roster(REVOKED)):
        with pytest.raises(ProtocolError, match=r"^seal$"):
            claim.open_roster(forged)


def test_a_roster_word_of_everybody_fits() -> None:
    everybody = Roster(revoked=frozenset(range(1, 65_536)), version=0xFFFFFFFF)
    claim = Claim(PRIVATE, Stream("dice"))
    frame = claim.seal_roster(everybody)
    assert frames.parse_type(frame) is Type.ROSTER
    assert claim.open_roster(frame) == Adopt(0xFFFFFFFF, 65_535, everybody.revoked)


# A gateway that claims


def claiming(*names: str, life: int = 0, roster: Roster | None = None) -> Gateway:
    """A gateway that serves only where no other run of it answers."""
    return Gateway(
        gateway_identity(),
        roster or roster_of(*(names or ("pi-1",))),
        [TASK],
        Stream(f"claiming {life}"),
        is_claiming=True,
    )


def opened(*names: str, life: int = 0) -> Gateway:
    """One that was not answered, and serves."""
    gateway = claiming(*names, life=life)
    gateway.connected(now=0)
    gateway.tick(now=CLAIM_US)
    assert gateway.is_open
    return gateway


def test_a_gateway_that_claims_says_its_claim_and_nothing_else_until_a_second_has_passed() -> None:
    gateway = claiming()
    assert not gateway.is_open
    claim = only_publish(gateway.connected(now=5))
    assert (claim.topic, claim.qos, claim.retain) == (CLAIM, 0, False)
    assert claim.payload[0] == Type.CLAIM
    assert gateway.next_deadline() == 5 + CLAIM_US == 5 + SECOND
    assert gateway.tick(now=4 + CLAIM_US) == [] and not gateway.is_open
    state = only_publish(gateway.tick(now=5 + CLAIM_US))
    assert gateway.is_open
    assert state == Publish(STATE, b"ready %08x" % gateway.boot, qos=1, retain=True)
    assert gateway.next_deadline() == 5 + EPOCH_US


def test_a_gateway_that_does_not_claim_serves_at_once_and_answers_claims_all_the_same() -> None:
    gateway = lone_gateway()
    assert gateway.is_open
    assert [its.topic for its in published(gateway.connected(now=0))] == [STATE]
    other = claiming()
    claim = only_publish(other.connected(now=0))
    held = only_publish(gateway.receive(CLAIM, claim.payload, now=0))
    assert other.receive(CLAIM, held.payload, now=0) == [Halt(HALT)]


def test_until_it_serves_a_gateway_hears_nobody() -> None:
    gateway, device = claiming(), HandMember()
    gateway.connected(now=0)
    for topic, payload, peer in (
        (A, device.hello(), "pi-1"),
        ("fi1/acme/join", b"\x30" * 110, ""),
    ):
        assert gateway.receive(topic, payload, now=1) == [Rejected(reason="closed", peer=peer)]
    for topic, remembered in (("fi1/acme/s/pi-1", b"ready"), (STATE, b"lost"), ("nonsense", b"")):
        assert gateway.receive(topic, remembered, now=1) == []
    assert outcome_of(gateway.ask(1, TENSOR, reference="me", now=1)).status is Status.NO_MEMBERS
    gateway.tick(now=CLAIM_US)
    assert gateway.receive("fi1/acme/s/pi-1", b"ready", now=CLAIM_US) == [Noticed("pi-1", "ready")]
    device.join(gateway, now=CLAIM_US)
    assert gateway.online(1) == ("pi-1",)


def test_a_second_run_is_answered_and_must_not_go_on() -> None:
    first, second = opened(life=0), claiming(life=1)
    claim = only_publish(second.connected(now=10 * SECOND))
    held = only_publish(first.receive(CLAIM, claim.payload, now=10 * SECOND))
    assert (held.topic, held.qos, held.retain, held.payload[0]) == (CLAIM, 0, False, Type.HELD)
    assert first.receive(CLAIM, held.payload, now=10 * SECOND) == []
    assert second.receive(CLAIM, held.payload, now=10 * SECOND) == [Halt(HALT)]
    assert first.is_open and not second.is_open


def test_a_run_that_was_halted_says_nothing_more() -> None:
    first, second = opened(life=0), claiming(life=1)
    claim = only_publish(second.connected(now=0))
    second.receive(CLAIM, only_publish(first.receive(CLAIM, claim.payload, now=0)).payload, now=1)
    assert second.farewell == []
    assert second.tick(now=CLAIM_US) == [] and not second.is_open
    assert second.receive(A, HandMember().hello(), now=CLAIM_US) == [Rejected(reason="closed", peer="pi-1")]
    assert second.disconnected(now=CLAIM_US) == []
    assert first.farewell == [Publish(STATE, b"disconnected", qos=1, retain=True)]


def test_a_gateway_that_reconnects_claims_again_and_goes_on_serving() -> None:
    gateway, device = opened(), HandMember()
    device.join(gateway, now=CLAIM_US)
    query = only_publish(gateway.ask(1, TENSOR, reference="me", now=2 * SECOND))
    gateway.disconnected(now=2 * SECOND)
    claim, *present = gateway.connected(now=3 * SECOND)
    assert isinstance(claim, Publish) and claim.topic == CLAIM
    assert present[-1] == query and isinstance(present[0], Publish) and present[0].topic == STATE
    assert gateway.is_open and gateway.online(1) == ("pi-1",)
    again = published(gateway.tick(now=3 * SECOND + CLAIM_US))
    assert STATE not in {its.topic for its in again} and gateway.is_open


def test_a_gateway_that_comes_back_to_find_another_run_in_its_place_ends() -> None:
    first = opened(life=0)
    first.disconnected(now=2 * SECOND)
    second = claiming(life=1)
    second.connected(now=3 * SECOND)
    second.tick(now=3 * SECOND + CLAIM_US)
    claim = published(first.connected(now=9 * SECOND))[0]
    held = only_publish(second.receive(CLAIM, claim.payload, now=9 * SECOND))
    assert first.receive(CLAIM, held.payload, now=9 * SECOND) == [Halt(HALT)]
    assert not first.is_open and first.farewell == [] and second.is_open


def test_a_claim_that_perhaps_nobody_heard_opens_nothing() -> None:
    """The link was lost before the second was over: it counts anew from the next claim."""
    gateway = claiming()
    first = only_publish(gateway.connected(now=0))
    gateway.disconnected(now=SECOND // 2)
    assert gateway.tick(now=CLAIM_US) == [] and not gateway.is_open
    second = only_publish(gateway.connected(now=2 * SECOND))
    assert second.payload != first.payload and not gateway.is_open
    gateway.disconnected(now=2 * SECOND + 1)
    gateway.connected(now=2 * SECOND + 500_000)
    assert gateway.tick(now=2 * SECOND + CLAIM_US) == [] and not gateway.is_open
    assert only_publish(gateway.tick(now=2 * SECOND + 500_000 + CLAIM_US)).topic == STATE
    assert gateway.is_open


def test_a_replayed_held_ends_nobody() -> None:
    gateway, other = claiming(life=0), opened(life=1)
    claim = only_publish(gateway.connected(now=0))
    held = only_publish(other.receive(CLAIM, claim.payload, now=0)).payload
    gateway.disconnected(now=1)
    gateway.connected(now=2)
    assert gateway.receive(CLAIM, held, now=3) == []
    gateway.tick(now=2 + CLAIM_US)
    assert gateway.is_open
    assert gateway.receive(CLAIM, held, now=4 + CLAIM_US) == [] and gateway.is_open
    restarted = claiming(life=2)
    restarted.connected(now=0)
    assert restarted.receive(CLAIM, held, now=1) == []


def test_claims_that_are_replayed_to_a_gateway_that_waits_do_not_keep_it_from_serving() -> None:
    old = [only_publish(claiming(life=life).connected(now=0)).payload for life in range(4, 20)]
    gateway = claiming(life=3)
    mine = only_publish(gateway.connected(now=0)).payload
    kinds = set()
    for now, frame in enumerate([mine, *old]):
        answers = published(gateway.receive(CLAIM, frame, now=now))
        assert len(answers) == (frame != mine)
        kinds |= {its.payload[0] for its in answers}
        assert all(its.payload == mine for its in answers if its.payload[0] == Type.CLAIM)
    assert kinds == {Type.CLAIM, Type.HELD}  # some nonces are lower, some are higher
    gateway.tick(now=CLAIM_US)
    assert gateway.is_open


# Two at once


def run(fleet: Fleet, *names: str, seconds: float) -> list[str]:
    """Let time pass; a gateway that is halted leaves. Which of these serve."""
    for _ in range(round(seconds / 0.001)):
        fleet.run(0.001)
        for name in names:
            node = fleet.nodes[name]
            if node.is_connected and any(isinstance(effect, Halt) for effect in node.effects):
                fleet.perform(node, node.machine.farewell)
                fleet.disconnect(name, is_clean=True)
    machines = [(name, fleet.nodes[name].machine) for name in names]
    return [name for name, machine in machines if isinstance(machine, Gateway) and machine.is_open]


@pytest.mark.parametrize("apart_s", [0, 0.001, 0.3, 0.95, 0.99, 1.0, 1.01, 5])
@pytest.mark.parametrize("lives", [(0, 1), (1, 0), (2, 3), (3, 2)])
def test_of_two_that_start_at_nearly_one_time_one_serves(lives: tuple[int, int], apart_s: float) -> None:
    """Whoever's nonce is lower, and though the second has not heard the first one's claim."""
    fleet = Fleet()
    for name, life in zip(("one", "other"), lives, strict=True):
        fleet.add(name, claiming(life=life), link=Link(delay_us=20_000))
    fleet.connect("one")
    if apart_s:
        run(fleet, "one", "other", seconds=apart_s)
    fleet.connect("other")
    serving = run(fleet, "one", "other", seconds=3)
    assert len(serving) == 1
    ended = [name for name in ("one", "other") if not fleet.nodes[name].is_connected]
    assert len(ended) == 1 and ended != serving
    state = fleet._retained[STATE]
    machine = fleet.nodes[serving[0]].machine
    assert isinstance(machine, Gateway) and state == b"ready %08x" % machine.boot


def test_the_lives_above_have_nonces_of_either_order() -> None:
    nonces = [only_publish(claiming(life=life).connected(now=0)).payload[2:18] for life in range(4)]
    assert {nonces[0] < nonces[1], nonces[2] < nonces[3]} <= {True, False}
    assert {a < b for a, b in itertools.permutations(nonces, 2)} == {True, False}


def test_a_second_gateway_disturbs_no_round_of_the_first() -> None:
    federation = Federation([constant(5, 0, 0, 0)] * 2).join()
    second = Gateway(gateway_identity(), federation.roster, [TASK], Stream("second"), is_claiming=True)
    federation.fleet.add("second", second)
    for _ in range(3):
        federation.fleet.connect("second")
        assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2")
        assert Halt(HALT) in federation.fleet.nodes["second"].effects
        federation.fleet.disconnect("second")  # its Will says that the gateway is lost
        federation.fleet.run(5)
    assert len(federation.frames("a", Type.HELLO)) == 2
    assert federation.fleet._retained[STATE] == b"ready %08x" % federation.gateway.boot


# The word to its later runs


def known(gateway: Gateway, effects: list[Effect]) -> list[Effect]:
    """What the gateway wants done as its own word comes back."""
    (word,) = [its for its in published(effects) if its.topic == ROSTER]
    assert (word.qos, word.retain) == (1, True)
    return gateway.receive(ROSTER, word.payload, now=1)


def test_a_gateway_tells_its_roster_on_each_connect_and_believes_what_it_told() -> None:
    gateway = Gateway(gateway_identity(), REVOKED, [TASK], Stream("gateway"))
    words = set()
    for now in range(3):
        effects = gateway.connected(now=now)
        words |= {its.payload for its in published(effects) if its.topic == ROSTER}
        assert known(gateway, effects) == []
    assert len(words) == 3  # each under a salt of its own


def test_a_roster_that_never_changed_is_not_told() -> None:
    assert [its.topic for its in published(lone_gateway().connected(now=0))] == [STATE]


@pytest.mark.parametrize(
    "roster",
    [
        roster_of("pi-1", "pi-2", clients=["laptop-1"]),
        Roster(given=101),
        replace(REVOKED, revoked=frozenset({2, 3})),
    ],
    ids=["nobody revoked", "nobody left", "somebody else revoked too"],
)
def test_a_word_that_knows_more_is_to_be_adopted(roster: Roster) -> None:
    word = Adopt(7, 102, frozenset({2, 5}))
    told = replace(REVOKED, revoked=word.revoked, given=word.highest)
    frame = Claim(PRIVATE, Stream("before")).seal_roster(told)
    gateway = Gateway(gateway_identity(), roster, [TASK], Stream("gateway"))
    assert gateway.receive(ROSTER, frame, now=0) == [word]


@pytest.mark.parametrize(
    "known_",
    [
        REVOKED,
        replace(REVOKED, version=3),
        replace(REVOKED, given=300),
        replace(REVOKED, revoked=frozenset({2, 3, 4})),
        Roster(revoked=frozenset({2}), given=101),
    ],
    ids=["the same", "of a lower version", "given more", "revoked more", "nobody left"],
)
def test_a_word_that_knows_no_more_is_ignored(known_: Roster) -> None:
    frame = Claim(PRIVATE, Stream("before")).seal_roster(REVOKED)
    gateway = Gateway(gateway_identity(), known_, [TASK], Stream("gateway"))
    assert gateway.receive(ROSTER, frame, now=0) == []


def test_a_higher_index_alone_is_to_be_adopted() -> None:
    """Else a restored state would give an index again that a device has joined with since."""
    frame = Claim(PRIVATE, Stream("before")).seal_roster(replace(REVOKED, given=102))
    gateway = Gateway(gateway_identity(), REVOKED, [TASK], Stream("gateway"))
    assert gateway.receive(ROSTER, frame, now=0) == [Adopt(7, 102, frozenset({2}))]


def test_a_word_that_somebody_removed_is_none() -> None:
    for gateway in (lone_gateway(), claiming()):
        assert gateway.receive(ROSTER, b"", now=0) == [Rejected(reason="length")]


def test_a_gateway_that_waits_adopts_before_it_serves() -> None:
    gateway = claiming("pi-1", "pi-2")
    gateway.connected(now=0)
    frame = Claim(PRIVATE, Stream("before")).seal_roster(REVOKED)
    assert gateway.receive(ROSTER, frame, now=1) == [Adopt(7, 101, frozenset({2}))]
    assert published(gateway.update(REVOKED, now=1)) == [Publish("fi1/acme/s/pi-2", b"", qos=1, retain=True)]
    assert [its.topic for its in published(gateway.tick(now=CLAIM_US))] == [STATE, ROSTER]
    assert gateway.receive("fi1/acme/a/pi-2", HandMember("pi-2", 2).hello(), now=CLAIM_US) == [
        Rejected(reason="stranger")
    ]


def test_a_gateway_restored_from_an_old_backup_refuses_whom_it_had_forgotten_to_have_revoked() -> None:
    federation = Federation([constant(5, 0, 0, 0)] * 2).join()
    backup = federation.roster
    federation.update(without(federation.roster, "pi-2"))
    federation.fleet.run(1)
    federation.fleet.disconnect("pi-2")
    federation.roster = backup
    federation.restart_gateway()
    federation.fleet.run(1)
    (adopt,) = [its for its in federation.gateway_node.effects if isinstance(its, Adopt)]
    assert adopt == Adopt(1, 2, frozenset({2}))
    federation.update(replace(without(backup, "pi-2"), version=adopt.version + 1))
    federation.fleet.connect("pi-2")
    federation.fleet.run(60)
    assert federation.ask().fates == (("pi-1", Fate.COUNTED),)
    assert federation.gateway_node.rejected["stranger"] >= 1
    assert Joined("pi-2") not in federation.gateway_node.effects
