"""Sessions: the handshake from both sides, its resends and forgeries, and frames under its keys."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from federation import gateway_identity, identity, key_pair, member
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_generichash_blake2b_salt_personal, crypto_scalarmult

from edge_fi.crypto.keys import KeyPair
from edge_fi.crypto.noise import HandshakeKK
from edge_fi.crypto.seal import hello_mac, prologue
from edge_fi.errors import DecodeError, ProtocolError
from edge_fi.session import (
    FIRST_DOUBT_US,
    FIRST_RETRY_US,
    MAX_SPENT,
    RESTLESS_SESSIONS,
    RESTLESS_US,
    SESSION_US,
    Joiner,
    Peer,
    Session,
    hello_key,
    mqtt_client_id,
)
from edge_fi.wire.frames import Type, build_handshake_header, parse_handshake, parse_session_frame
from edge_fi.wire.payloads import Welcome
from firmware_sim.stream import Stream

INDEX = 7
EPOCH_KEY = b"e" * 32
VERIFY = b"v" * 32
MS = 1000


def zeros(size: int) -> bytes:
    """Dice that make no jitter."""
    return bytes(size)


def make_joiner(role: str = "device", dice: Callable[[int], bytes] | None = None) -> Joiner:
    """Member pi-7's side."""
    return Joiner(identity("pi-7", INDEX, role), b"hello", dice or Stream("joiner"))


def make_peer(role: str = "device") -> Peer:
    """The gateway's side of pi-7."""
    return Peer(member("pi-7", INDEX, role), gateway_identity())


def begin(joiner: Joiner) -> bytes:
    """A new HELLO frame."""
    joiner.begin(at=0)
    frame = joiner.poll(now=joiner.due_us or 0)
    assert frame is not None
    return frame


def answer(peer: Peer, hello: bytes, role: str = "device", dice: str = "gateway") -> Session:
    """The pending session that this HELLO begins, with its WELCOME."""
    _, handshake = peer.read_hello(hello, entropy=Stream(dice))
    assert isinstance(handshake, HandshakeKK)
    welcome = Welcome(session=peer.next_number(), boot=1, rejoin_window_ms=100)
    if role == "device":
        welcome = replace(welcome, epoch=6, epoch_key=EPOCH_KEY, verify=VERIFY)
    return peer.welcome(hello, handshake, welcome, task=1, model=b"model-01")


def join(joiner: Joiner, peer: Peer, role: str = "device") -> tuple[Session, Session]:
    """The member's and the gateway's session after one handshake; the latter is pending."""
    theirs = answer(peer, begin(joiner), role)
    mine, _ = joiner.finish(theirs.welcome, now=0)
    return mine, theirs


def sessions() -> tuple[Session, Session]:
    """Both sides of a session."""
    return join(make_joiner(), make_peer())


def carry(sender: Session, receiver: Session, kind: Type, payload: bytes) -> bytes:
    """What the receiver reads of a frame."""
    return receiver.open(kind, parse_session_frame(sender.seal(kind, payload)))


# Who is who


def blake2b(key: bytes, purpose: bytes, context: bytes, size: int) -> bytes:
    """Libsodium's BLAKE2b, where the product uses hashlib's."""
    return crypto_generichash_blake2b_salt_personal(
        context, digest_size=size, key=key, person=purpose.ljust(16, b"\0")
    )


def test_an_mqtt_client_id_is_22_characters_from_the_private_key() -> None:
    static = key_pair("pi-7")
    expected = "fi" + blake2b(static.private, b"fi1 client id", b"", 10).hex()
    assert mqtt_client_id(static) == expected
    assert len(expected) == 22
    assert identity("pi-7", INDEX).mqtt_client_id == expected
    assert identity("pi-7", 8, "client").mqtt_client_id == expected


def test_every_key_has_its_own_mqtt_client_id() -> None:
    ids = {identity("pi-7", 7).mqtt_client_id, identity("pi-8", 7).mqtt_client_id}
    assert len(ids | {mqtt_client_id(gateway_identity().static)}) == 3


def test_each_run_of_a_gateway_has_its_own_mqtt_client_id() -> None:
    """A broker gives the link of a client id to whoever comes last."""
    gateway = gateway_identity()
    expected = "fi" + blake2b(gateway.static.private, b"fi1 client id", b"\0\0\1\2", 10).hex()
    assert gateway.mqtt_client_id(0x0102) == expected
    assert len({gateway.mqtt_client_id(boot) for boot in range(10)} | {expected}) == 11


@pytest.mark.parametrize("role", ["device", "client", "helper"])
def test_both_sides_know_a_members_mqtt_password_that_nobody_sends(role: str) -> None:
    me, gateway = identity("pi-7", INDEX, role), gateway_identity()
    shared = crypto_scalarmult(me.static.private, gateway.static.public)
    expected = blake2b(shared, b"fi1 broker", prologue("acme", role, INDEX), 16).hex()
    assert me.mqtt_password == expected
    assert gateway.member_password(member("pi-7", INDEX, role)) == expected


def test_a_password_is_good_for_one_member_in_one_role_with_one_index_of_one_federation() -> None:
    passwords = {
        gateway_identity().mqtt_password,
        replace(gateway_identity(), federation="other").mqtt_password,
        identity("pi-7", INDEX).mqtt_password,
        identity("pi-8", INDEX).mqtt_password,
        identity("pi-7", 8).mqtt_password,
        identity("pi-7", INDEX, "client").mqtt_password,
        replace(identity("pi-7", INDEX), federation="other").mqtt_password,
        replace(identity("pi-7", INDEX), gateway_static=key_pair("other").public).mqtt_password,
    }
    assert len(passwords) == 8 and {len(password) for password in passwords} == {32}


def test_a_gateways_mqtt_password_comes_from_its_private_key() -> None:
    gateway = gateway_identity()
    context = b"fi1\x04acme\x07gateway\0\0"
    assert gateway.mqtt_password == blake2b(gateway.static.private, b"fi1 broker", context, 16).hex()


def test_both_sides_get_the_same_hello_key_from_the_static_keys_alone() -> None:
    mine, theirs = key_pair("pi-7"), key_pair("gateway")
    shared = crypto_scalarmult(mine.private, theirs.public)
    expected = blake2b(shared, b"fi1 hello key", b"context", 32)
    assert hello_key(mine, theirs.public, b"context") == expected
    assert hello_key(theirs, mine.public, b"context") == expected


# The handshake


@pytest.mark.parametrize("role", ["device", "client"])
def test_a_handshake_gives_both_sides_the_same_session(role: str) -> None:
    mine, theirs = join(make_joiner(role), make_peer(role), role)
    assert mine.keys == theirs.keys
    assert (mine.number, mine.index) == (theirs.number, theirs.index) == (0, INDEX)
    assert mine.welcome == theirs.welcome


def test_a_hello_carries_its_payload_to_the_gateway() -> None:
    hello = begin(make_joiner())
    payload, handshake = make_peer().read_hello(hello, entropy=Stream("gateway"))
    assert payload == b"hello"
    assert isinstance(handshake, HandshakeKK)


def test_a_hello_is_a_frame_of_its_type_and_names_the_index() -> None:
    hello = begin(make_joiner())
    assert hello[0] == Type.HELLO
    assert parse_handshake(hello).index == INDEX
    # Header, ephemeral key, payload and tag, mac.
    assert len(hello) == 4 + 32 + 5 + 16 + 8


def test_a_welcome_is_a_frame_of_its_type_and_names_the_index() -> None:
    welcome = answer(make_peer(), begin(make_joiner())).welcome
    assert welcome[0] == Type.WELCOME
    assert parse_handshake(welcome).index == INDEX


def test_a_welcome_tells_the_member_what_the_gateway_said() -> None:
    joiner, peer = make_joiner(), make_peer()
    _, handshake = peer.read_hello(hello := begin(joiner), entropy=Stream("gateway"))
    assert isinstance(handshake, HandshakeKK)
    said = Welcome(
        session=3, boot=5, rejoin_window_ms=100, epoch=6, floor=7, epoch_key=EPOCH_KEY, verify=VERIFY
    )
    session = peer.welcome(hello, handshake, said, task=1, model=b"model-01")
    mine, heard = joiner.finish(session.welcome, now=0)
    assert heard == said
    assert mine.number == session.number == 3
    assert (session.task, session.model, session.hello) == (1, b"model-01", hello)
    assert (mine.task, mine.model) == (0, b"")


def test_two_handshakes_have_nothing_in_common() -> None:
    joiner, peer = make_joiner(), make_peer()
    first_hello = begin(joiner)
    first = answer(peer, first_hello)
    second_hello = begin(joiner)
    second = answer(peer, second_hello, dice="later")
    assert first_hello != second_hello
    assert first.welcome != second.welcome
    assert first.keys.answer != second.keys.answer


def test_the_same_dice_give_the_same_bytes() -> None:
    assert begin(make_joiner()) == begin(make_joiner())


# HELLO at the gateway


def test_the_same_hello_gets_the_same_welcome_and_draws_no_dice() -> None:
    peer = make_peer()
    hello = begin(make_joiner())
    session = answer(peer, hello)

    def no_dice(size: int) -> bytes:
        raise AssertionError("randomness was drawn")

    assert peer.read_hello(hello, entropy=no_dice) == (b"", session)


def test_the_hello_of_the_current_session_is_a_replay() -> None:
    joiner, peer = make_joiner(), make_peer()
    hello = begin(joiner)
    peer.promote(answer(peer, hello))
    with pytest.raises(ProtocolError, match=r"^replay$"):
        peer.read_hello(hello, entropy=Stream("gateway"))


def rejoin(joiner: Joiner, peer: Peer, *, turn: int) -> bytes:
    """Begin and take up a session; the HELLO that did it."""
    hello = begin(joiner)
    peer.promote(answer(peer, hello, dice=str(turn)))
    return hello


def test_the_hello_of_a_superseded_session_is_a_replay_and_costs_no_dh(dh_calls: list[bytes]) -> None:
    joiner, peer = make_joiner(), make_peer()
    old = rejoin(joiner, peer, turn=0)
    lost = begin(joiner)
    answer(peer, lost, dice="lost")
    rejoin(joiner, peer, turn=1)
    dh_calls.clear()
    for hello in (old, lost):
        with pytest.raises(ProtocolError, match=r"^replay$"):
            peer.read_hello(hello, entropy=Stream("gateway"))
    assert dh_calls == []
    assert peer.unanswered == b""


def test_the_hellos_of_16_superseded_sessions_are_remembered() -> None:
    joiner, peer = make_joiner(), make_peer()
    hellos = [rejoin(joiner, peer, turn=turn) for turn in range(MAX_SPENT + 2)]
    for hello in hellos[1:]:
        with pytest.raises(ProtocolError, match=r"^replay$"):
            peer.read_hello(hello, entropy=Stream("gateway"))
    payload, handshake = peer.read_hello(hellos[0], entropy=Stream("gateway"))
    assert payload == b"hello" and isinstance(handshake, HandshakeKK)


def test_a_hello_begun_after_the_promoted_session_is_not_spent() -> None:
    joiner, peer = make_joiner(), make_peer()
    first = answer(peer, begin(joiner))
    hello = begin(joiner)
    second = answer(peer, hello, dice="later")
    peer.promote(first)
    assert peer.read_hello(hello, entropy=Stream("gateway")) == (b"", second)


def test_a_hello_of_another_index_costs_no_dh(dh_calls: list[bytes]) -> None:
    hello = begin(make_joiner())
    dh_calls.clear()
    with pytest.raises(ProtocolError, match=r"^index$"):
        make_peer().read_hello(hello[:2] + b"\x00\x08" + hello[4:], entropy=Stream("gateway"))
    assert dh_calls == []


def test_a_new_hello_is_welcome_while_a_session_is_current() -> None:
    joiner, peer = make_joiner(), make_peer()
    first = answer(peer, begin(joiner))
    peer.promote(first)
    second = answer(peer, begin(joiner), dice="later")
    assert peer.current is first
    assert peer.unanswered == second.welcome
    assert peer.find(second.number) is second


def test_no_byte_of_a_hello_can_be_changed() -> None:
    peer = make_peer()
    hello = begin(make_joiner())
    for place in range(1, len(hello)):
        changed = hello[:place] + bytes([hello[place] ^ 1]) + hello[place + 1 :]
        with pytest.raises(ProtocolError, match=r"^(mac|flags|index)$"):
            peer.read_hello(changed, entropy=Stream("gateway"))
    assert peer.unanswered == b""


def test_a_stranger_and_a_fellow_member_cannot_say_hello_for_another() -> None:
    for stranger, reason in (
        (identity("pi-8", INDEX), "mac"),
        (identity("pi-7", 8), "index"),
        (identity("pi-7", INDEX, "client"), "mac"),
    ):
        hello = begin(Joiner(stranger, b"hello", Stream("stranger")))
        with pytest.raises(ProtocolError, match=rf"^{reason}$"):
            make_peer().read_hello(hello, entropy=Stream("gateway"))


def test_a_mac_over_another_index_is_refused() -> None:
    """The mac key is the member's own, so a mac alone would let it send any index."""
    me, gateway = identity("pi-7", INDEX), gateway_identity()
    key = hello_key(me.static, gateway.static.public, prologue("acme", "device", INDEX))
    hello = begin(make_joiner())
    maced = hello[:2] + b"\x00\x08" + hello[4:-8]
    with pytest.raises(ProtocolError, match=r"^index$"):
        make_peer().read_hello(maced + hello_mac(key, maced), entropy=Stream("gateway"))


def test_a_welcome_of_another_version_does_not_end_the_wish_for_a_session() -> None:
    joiner, peer = make_joiner(), make_peer()
    hello = begin(joiner)
    _, handshake = peer.read_hello(hello, entropy=Stream("gateway"))
    assert isinstance(handshake, HandshakeKK)
    header = build_handshake_header(Type.WELCOME, INDEX)
    with pytest.raises(ProtocolError, match=r"^payload$"):
        joiner.finish(header + handshake.write_message_2(b"what is this?"), now=0)
    assert joiner.is_waiting and joiner.due_us is not None
    again = joiner.poll(now=joiner.due_us)
    assert again is not None and again != hello
    session, _ = joiner.finish(answer(peer, again).welcome, now=0)
    assert session.index == INDEX


def test_a_mac_alone_does_not_make_a_hello() -> None:
    me, gateway = identity("pi-7", INDEX), gateway_identity()
    key = hello_key(me.static, gateway.static.public, prologue("acme", "device", INDEX))
    for message in (bytes(48), KeyPair.from_private(b"x" * 32).public + bytes(16)):
        maced = b"\x10\x00\x00\x07" + message
        with pytest.raises(ProtocolError, match=r"^(key|seal)$"):
            make_peer().read_hello(maced + hello_mac(key, maced), entropy=Stream("gateway"))


def test_a_reflected_welcome_is_no_hello() -> None:
    peer = make_peer()
    session = answer(peer, begin(make_joiner()))
    with pytest.raises(ProtocolError, match=r"^mac$"):
        peer.read_hello(session.welcome, entropy=Stream("gateway"))


@given(st.binary(min_size=60, max_size=256))
def test_arbitrary_bytes_are_no_hello(frame: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^(mac|flags|index)$"):
        make_peer().read_hello(b"\x10" + frame[1:], entropy=Stream("gateway"))


# Pending and current sessions


def test_at_most_two_sessions_are_pending_and_the_oldest_goes_first() -> None:
    joiner, peer = make_joiner(), make_peer()
    first, second, third = (answer(peer, begin(joiner), dice=str(number)) for number in range(3))
    assert [first.number, second.number, third.number] == [0, 1, 2]
    assert peer.find(1) is second
    assert peer.find(2) is third
    with pytest.raises(ProtocolError, match=r"^session$"):
        peer.find(0)


def test_the_current_session_is_beside_the_two_pending_ones() -> None:
    joiner, peer = make_joiner(), make_peer()
    current = answer(peer, begin(joiner))
    peer.promote(current)
    pending = [answer(peer, begin(joiner), dice=str(number)) for number in range(2)]
    assert [peer.find(number) for number in range(3)] == [current, *pending]


def test_a_session_is_promoted_once() -> None:
    peer = make_peer()
    session = answer(peer, begin(make_joiner()))
    assert peer.current is None
    assert peer.promote(session) is True
    assert peer.current is session
    assert peer.unanswered == b""
    assert peer.promote(session) is False
    assert peer.current is session


def test_what_was_begun_before_the_promoted_session_is_forgotten() -> None:
    joiner, peer = make_joiner(), make_peer()
    old = answer(peer, begin(joiner))
    peer.promote(old)
    crossed, new = (answer(peer, begin(joiner), dice=str(number)) for number in range(2))
    peer.promote(new)
    assert peer.unanswered == b""
    for forgotten in (old, crossed):
        with pytest.raises(ProtocolError, match=r"^session$"):
            peer.find(forgotten.number)


def test_what_was_begun_after_the_promoted_session_stays_pending() -> None:
    joiner, peer = make_joiner(), make_peer()
    crossed, newer = (answer(peer, begin(joiner), dice=str(number)) for number in range(2))
    peer.promote(crossed)
    assert peer.unanswered == newer.welcome
    assert peer.promote(newer)
    assert peer.current is newer


def test_what_is_unanswered_is_the_newest_welcome() -> None:
    joiner, peer = make_joiner(), make_peer()
    assert peer.unanswered == b""
    answer(peer, begin(joiner))
    newest = answer(peer, begin(joiner), dice="later")
    assert peer.unanswered == newest.welcome


def test_without_a_welcome_on_its_way_a_rekey_is_what_is_unanswered() -> None:
    joiner, peer = make_joiner(), make_peer()
    peer.promote(answer(peer, begin(joiner)))
    peer.rekey = b"rekey"
    assert peer.unanswered == b"rekey"
    welcome = answer(peer, begin(joiner), dice="later").welcome
    assert peer.unanswered == welcome


def test_a_rekey_of_the_session_before_is_forgotten_with_it() -> None:
    joiner, peer = make_joiner(), make_peer()
    first = answer(peer, begin(joiner))
    peer.promote(first)
    peer.rekey = b"rekey"
    assert peer.promote(first) is False and peer.rekey == b"rekey"
    peer.promote(answer(peer, begin(joiner), dice="later"))
    assert peer.rekey == peer.unanswered == b""


def test_a_session_of_a_device_was_given_the_epoch_of_its_welcome_and_a_clients_none() -> None:
    joiner, peer = make_joiner(), make_peer()
    assert answer(peer, begin(joiner)).epochs == {6}
    joiner, peer = make_joiner("client"), make_peer("client")
    assert answer(peer, begin(joiner), "client").epochs == set()


# Restlessness


def test_five_sessions_within_a_minute_are_too_many_and_said_once() -> None:
    assert (RESTLESS_SESSIONS, RESTLESS_US) == (5, 60_000_000)
    peer = make_peer()
    verdicts = [peer.is_restless(now=15_000_000 * turn) for turn in range(12)]
    assert verdicts == [False, False, False, False, True] * 2 + [False, False]


def test_five_sessions_in_more_than_a_minute_are_not_too_many() -> None:
    peer = make_peer()
    assert not any(peer.is_restless(now=15_000_001 * turn) for turn in range(100))


def test_a_restless_minute_may_begin_after_quiet_ones() -> None:
    peer = make_peer()
    hour = 60 * RESTLESS_US
    quiet = [peer.is_restless(now=hour * turn) for turn in range(7)]
    assert not any(quiet)
    assert [peer.is_restless(now=7 * hour + turn) for turn in range(5)] == [False] * 4 + [True]


def test_session_numbers_are_given_in_turn_and_begin_again_after_15() -> None:
    joiner, peer = make_joiner(), make_peer()
    numbers = []
    for turn in range(18):
        session = answer(peer, begin(joiner), dice=str(turn))
        peer.promote(session)
        numbers.append(session.number)
    assert numbers == [*range(16), 0, 1]


def test_the_number_of_a_live_session_is_not_given_again() -> None:
    joiner, peer = make_joiner(), make_peer()
    lasting = answer(peer, begin(joiner))
    peer.promote(lasting)
    numbers = [answer(peer, begin(joiner), dice=str(turn)).number for turn in range(17)]
    assert numbers == [*range(1, 16), 1, 2]
    assert peer.find(0) is lasting


def test_a_member_without_a_session_has_none_to_find() -> None:
    with pytest.raises(ProtocolError, match=r"^session$"):
        make_peer().find(0)


# WELCOME at the member


def test_a_welcome_that_nobody_waits_for_is_unexpected() -> None:
    joiner, peer = make_joiner(), make_peer()
    welcome = answer(peer, begin(joiner)).welcome
    with pytest.raises(ProtocolError, match=r"^unexpected$"):
        make_joiner().finish(welcome, now=0)
    joiner.finish(welcome, now=0)
    with pytest.raises(ProtocolError, match=r"^unexpected$"):
        joiner.finish(welcome, now=0)


def test_a_welcome_before_the_hello_was_sent_is_unexpected_and_costs_no_dh(dh_calls: list[bytes]) -> None:
    joiner, peer = make_joiner(), make_peer()
    former = answer(peer, begin(joiner)).welcome
    joiner.begin(at=SESSION_US)
    due_us = joiner.due_us
    dh_calls.clear()
    with pytest.raises(ProtocolError, match=r"^unexpected$"):
        joiner.finish(former, now=1)
    assert dh_calls == [] and joiner.is_waiting and joiner.due_us == due_us
    hello = joiner.poll(now=SESSION_US)
    assert hello is not None
    joiner.finish(answer(peer, hello, dice="later").welcome, now=SESSION_US)


def test_a_member_waits_from_begin_to_finish() -> None:
    joiner, peer = make_joiner(), make_peer()
    assert not joiner.is_waiting
    hello = begin(joiner)
    assert joiner.is_waiting
    joiner.finish(answer(peer, hello).welcome, now=0)
    assert not joiner.is_waiting
    assert joiner.due_us == SESSION_US
    assert joiner.poll(now=SESSION_US - 1) is None


def test_the_welcome_of_another_index_is_refused() -> None:
    joiner = make_joiner()
    welcome = answer(make_peer(), begin(joiner)).welcome
    with pytest.raises(ProtocolError, match=r"^index$"):
        joiner.finish(welcome[:2] + b"\x00\x08" + welcome[4:], now=0)
    joiner.finish(welcome, now=0)


def test_a_forged_welcome_does_not_spoil_the_genuine_one() -> None:
    joiner = make_joiner()
    welcome = answer(make_peer(), begin(joiner)).welcome
    for place in range(1, len(welcome)):
        changed = welcome[:place] + bytes([welcome[place] ^ 1]) + welcome[place + 1 :]
        with pytest.raises(ProtocolError, match=r"^(flags|index|key|seal)$"):
            joiner.finish(changed, now=0)
        assert joiner.is_waiting
    joiner.finish(welcome, now=0)


def test_a_member_does_not_take_its_own_hello_for_a_welcome() -> None:
    joiner = make_joiner()
    hello = begin(joiner)
    for reflected in (hello, b"\x11" + hello[1:]):
        with pytest.raises(ProtocolError, match=r"^seal$"):
            joiner.finish(reflected, now=0)
    assert joiner.is_waiting


def test_the_welcome_of_an_earlier_hello_is_refused() -> None:
    joiner, peer = make_joiner(), make_peer()
    early = answer(peer, begin(joiner))
    late = answer(peer, begin(joiner), dice="later")
    with pytest.raises(ProtocolError, match=r"^seal$"):
        joiner.finish(early.welcome, now=0)
    joiner.finish(late.welcome, now=0)


def test_a_welcome_in_the_form_of_the_other_role_is_refused() -> None:
    for role, other in (("device", "client"), ("client", "device")):
        joiner, peer = make_joiner(role), make_peer(role)
        welcome = answer(peer, begin(joiner), other).welcome
        with pytest.raises(DecodeError, match=r"^payload$"):
            joiner.finish(welcome, now=0)


@given(st.binary(min_size=52, max_size=256))
def test_arbitrary_bytes_are_no_welcome(frame: bytes) -> None:
    joiner = make_joiner()
    begin(joiner)
    with pytest.raises(ProtocolError, match=r"^(flags|index|key|seal)$"):
        joiner.finish(b"\x11" + frame[1:], now=0)


# When a HELLO is said


def test_nothing_is_said_before_somebody_wants_a_session() -> None:
    joiner = make_joiner()
    assert joiner.due_us is None
    assert joiner.poll(now=10**12) is None


def test_a_hello_is_said_when_it_is_due() -> None:
    joiner = make_joiner()
    joiner.begin(at=5 * MS)
    assert joiner.due_us == 5 * MS
    assert joiner.poll(now=5 * MS - 1) is None
    assert joiner.poll(now=5 * MS) is not None


def test_a_hello_is_resent_unchanged() -> None:
    joiner = make_joiner()
    hello = begin(joiner)
    for _ in range(5):
        assert joiner.due_us is not None
        assert joiner.poll(now=joiner.due_us) == hello


def test_resends_wait_twice_as_long_each_time_up_to_half_a_minute() -> None:
    joiner = make_joiner(dice=zeros)
    joiner.begin(at=0)
    waits, now = [], 0
    for _ in range(9):
        assert joiner.poll(now=now) is not None
        assert joiner.due_us is not None
        waits.append((joiner.due_us - now) // MS)
        now = joiner.due_us
    assert waits == [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]


def test_a_resend_is_late_by_at_most_a_quarter_of_its_wait() -> None:
    joiner = make_joiner(dice=lambda size: b"\xff" * size)
    joiner.begin(at=0)
    joiner.poll(now=0)
    assert joiner.due_us == 500_000 + 500_000 * 255 // 1024 == 624_511


def test_a_hint_brings_the_next_hello_forward_and_starts_the_back_off_again() -> None:
    joiner = make_joiner(dice=zeros)
    joiner.begin(at=0)
    for now in (0, 500 * MS, 1500 * MS):
        assert joiner.poll(now=now) is not None
    assert joiner.due_us == 3500 * MS
    joiner.hasten(at=2500 * MS)
    assert joiner.due_us == 2500 * MS
    assert joiner.poll(now=2500 * MS) is not None
    assert joiner.due_us == 3000 * MS


def test_a_hint_never_puts_a_hello_off() -> None:
    joiner = make_joiner(dice=zeros)
    joiner.begin(at=5 * MS)
    joiner.hasten(at=50 * MS)
    assert joiner.due_us == 5 * MS


def test_however_many_hints_come_hellos_keep_their_least_distance() -> None:
    joiner = make_joiner(dice=zeros)
    joiner.begin(at=0)
    said = []
    for now in range(0, 3_000_000, 1000):
        joiner.hasten(at=now)
        if joiner.poll(now=now) is not None:
            said.append(now // MS)
    assert said == [0, 500, 1000, 1500, 2000, 2500]


def test_a_new_hello_keeps_its_distance_from_the_one_before() -> None:
    joiner = make_joiner(dice=zeros)
    joiner.begin(at=0)
    joiner.poll(now=0)
    joiner.begin(at=1)
    assert joiner.due_us == 500 * MS


def test_a_new_hello_starts_the_back_off_again() -> None:
    joiner = make_joiner(dice=zeros)
    joiner.begin(at=0)
    for now in (0, 500 * MS, 1500 * MS):
        joiner.poll(now=now)
    joiner.begin(at=9000 * MS)
    joiner.poll(now=9000 * MS)
    assert joiner.due_us == 9500 * MS


def test_a_hint_without_a_wish_for_a_session_does_nothing() -> None:
    joiner = make_joiner()
    joiner.hasten(at=0)
    assert joiner.due_us is None


# Hints, doubt and age: machines with all of it are in test_device.py and test_client.py


def joined(role: str = "device") -> tuple[Joiner, Peer]:
    """A member without jitter that joined at 0, and whose rejoin waits are 0."""
    joiner, peer = make_joiner(role, dice=Still()), make_peer(role)
    join(joiner, peer, role)
    return joiner, peer


class Still:
    """Dice for keys that differ, and for waits that are 0."""

    def __init__(self) -> None:
        self._keys = Stream("still")

    def __call__(self, size: int) -> bytes:
        return self._keys(size) if size == 32 else bytes(size)


def test_a_session_is_renewed_after_a_day_and_not_before() -> None:
    joiner, peer = joined()
    assert joiner.due_us == SESSION_US == 24 * 3600 * 1_000_000
    assert joiner.poll(now=SESSION_US - 1) is None and not joiner.is_waiting
    hello = joiner.poll(now=SESSION_US)
    assert hello is not None and joiner.is_waiting
    joiner.finish(answer(peer, hello, dice="later").welcome, now=SESSION_US + 5)
    assert joiner.due_us == 2 * SESSION_US + 5


def test_a_renewal_that_nobody_answers_is_resent_unchanged_with_back_off() -> None:
    joiner, _ = joined()
    hello, waits = joiner.poll(now=SESSION_US), []
    now = SESSION_US
    for _ in range(8):
        assert joiner.due_us is not None
        waits.append((joiner.due_us - now) // MS)
        now = joiner.due_us
        assert joiner.poll(now=now) == hello
    assert waits == [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]


def test_a_hint_long_before_the_day_is_over_brings_the_hello_forward() -> None:
    joiner, _ = joined()
    joiner.hint(now=60_000 * MS)
    assert joiner.due_us == 60_000 * MS


def test_to_hasten_a_session_that_is_held_does_nothing() -> None:
    joiner, _ = joined()
    joiner.hasten(at=60_000 * MS)
    assert joiner.due_us == SESSION_US and not joiner.is_waiting


def test_before_the_first_session_a_link_that_comes_up_wants_a_hello_at_once() -> None:
    joiner = make_joiner()
    joiner.connected(now=7)
    assert joiner.due_us == 7
    assert joiner.poll(now=7) is not None
    joiner.connected(now=8)
    assert joiner.due_us == 7 + FIRST_RETRY_US


def test_a_link_that_comes_up_changes_nothing_for_a_session_that_is_held() -> None:
    joiner, _ = joined()
    joiner.connected(now=5)
    assert joiner.due_us == SESSION_US and not joiner.is_waiting


def test_a_link_that_comes_up_does_not_hasten_a_rejoin_that_waits() -> None:
    """Where gateway and broker restart, the whole fleet reconnects: its window must spread it."""
    joiner, peer = make_joiner(dice=lambda size: b"\x80" * size), make_peer()
    join(joiner, peer)
    joiner.announced(9, now=60_000 * MS)
    due_us = joiner.due_us
    assert due_us is not None and due_us > 60_000 * MS
    joiner.connected(now=60_000 * MS + 1)
    assert joiner.due_us == due_us


def test_the_same_boot_announced_is_no_hint_and_another_one_is() -> None:
    joiner, _ = joined()
    joiner.announced(1, now=60_000 * MS)
    assert not joiner.is_waiting
    joiner.announced(2, now=60_000 * MS)
    assert joiner.is_waiting and joiner.due_us == 60_000 * MS


def test_a_stray_welcome_is_a_hint_and_a_copy_of_the_sessions_own_is_none() -> None:
    joiner, peer = make_joiner(dice=Still()), make_peer()
    hello = begin(joiner)
    welcome = answer(peer, hello).welcome
    stray = answer(make_peer(), hello, dice="elsewhere").welcome
    joiner.finish(welcome, now=0)
    with pytest.raises(ProtocolError, match=r"^unexpected$"):
        joiner.finish(welcome, now=60_000 * MS)
    assert not joiner.is_waiting
    with pytest.raises(ProtocolError, match=r"^unexpected$"):
        joiner.finish(stray, now=60_000 * MS)
    assert joiner.is_waiting and joiner.due_us == 60_000 * MS


def test_a_stray_welcome_of_another_index_is_no_hint() -> None:
    joiner, _ = joined()
    stray = build_handshake_header(Type.WELCOME, 8) + bytes(99)
    with pytest.raises(ProtocolError, match=r"^index$"):
        joiner.finish(stray, now=60_000 * MS)
    assert not joiner.is_waiting


# Frames under a session


@pytest.mark.parametrize("kind", [Type.READY, Type.REKEY, Type.ASK, Type.OUTCOME])
def test_a_frame_opens_at_the_other_side(kind: Type) -> None:
    mine, theirs = sessions()
    assert carry(mine, theirs, kind, b"payload") == b"payload"
    assert carry(theirs, mine, kind, b"") == b""


def test_a_frame_names_type_session_index_and_counter() -> None:
    mine, _ = sessions()
    mine.number = 9
    frames = [mine.seal(Type.READY, b"xy"), mine.seal(Type.ASK, b"xy")]
    assert [frame[:8] for frame in frames] == [
        bytes.fromhex("12 90 0007 00000000"),
        bytes.fromhex("20 90 0007 00000001"),
    ]
    assert [len(frame) for frame in frames] == [8 + 2 + 16] * 2


def test_a_counter_is_never_used_twice() -> None:
    mine, _ = sessions()
    numbers = [parse_session_frame(mine.seal(Type.ASK, b"same")).number for _ in range(20)]
    assert numbers == list(range(20))


def test_a_frame_opens_once() -> None:
    mine, theirs = sessions()
    frame = parse_session_frame(mine.seal(Type.ASK, b"payload"))
    theirs.open(Type.ASK, frame)
    with pytest.raises(ProtocolError, match=r"^replay$"):
        theirs.open(Type.ASK, frame)


def test_frames_open_in_any_order() -> None:
    mine, theirs = sessions()
    frames = [parse_session_frame(mine.seal(Type.ASK, bytes([number]))) for number in range(4)]
    assert [theirs.open(Type.ASK, frames[number]) for number in (2, 0, 3, 1)] == [b"\2", b"\0", b"\3", b"\1"]


def test_a_frame_more_than_1023_behind_is_stale() -> None:
    mine, theirs = sessions()
    frames = [parse_session_frame(mine.seal(Type.ASK, b"")) for _ in range(1025)]
    theirs.open(Type.ASK, frames[1024])
    assert theirs.open(Type.ASK, frames[1]) == b""
    with pytest.raises(ProtocolError, match=r"^stale$"):
        theirs.open(Type.ASK, frames[0])


def test_a_forged_frame_does_not_use_up_the_number_of_the_genuine_one() -> None:
    mine, theirs = sessions()
    frame = mine.seal(Type.ASK, b"payload")
    for place in range(1, len(frame)):
        changed = bytearray(frame)
        changed[place] ^= 0x10
        with pytest.raises(ProtocolError, match=r"^seal$"):
            theirs.open(Type.ASK, parse_session_frame(bytes(changed)))
    assert theirs.open(Type.ASK, parse_session_frame(frame)) == b"payload"


def test_a_forged_number_far_ahead_does_not_move_the_window() -> None:
    mine, theirs = sessions()
    frame = mine.seal(Type.ASK, b"payload")
    with pytest.raises(ProtocolError, match=r"^seal$"):
        theirs.open(Type.ASK, parse_session_frame(frame[:4] + b"\xff" * 4 + frame[8:]))
    assert theirs.open(Type.ASK, parse_session_frame(frame)) == b"payload"


def test_each_type_has_its_own_window() -> None:
    mine, theirs = sessions()
    ask = parse_session_frame(mine.seal(Type.ASK, b"ask"))
    for _ in range(1100):
        carry(mine, theirs, Type.READY, b"")
    assert theirs.open(Type.ASK, ask) == b"ask"


@pytest.mark.parametrize(
    ("sealed_as", "opened_as"),
    [
        (Type.READY, Type.ASK),
        (Type.READY, Type.OUTCOME),
        (Type.ASK, Type.READY),
        (Type.ASK, Type.OUTCOME),
        (Type.OUTCOME, Type.READY),
        (Type.OUTCOME, Type.ASK),
        (Type.REKEY, Type.READY),
        (Type.REKEY, Type.ASK),
        (Type.REKEY, Type.OUTCOME),
        (Type.READY, Type.REKEY),
        (Type.ASK, Type.REKEY),
        (Type.OUTCOME, Type.REKEY),
    ],
)
def test_a_frame_of_one_type_is_none_of_another(sealed_as: Type, opened_as: Type) -> None:
    mine, theirs = sessions()
    frame = mine.seal(sealed_as, b"payload")
    # These two have one key, and in it the byte that names the type tells them apart.
    has_one_key = {sealed_as, opened_as} == {Type.REKEY, Type.OUTCOME}
    for renamed in (frame, bytes([opened_as]) + frame[1:])[has_one_key:]:
        with pytest.raises(ProtocolError, match=r"^seal$"):
            theirs.open(opened_as, parse_session_frame(renamed))


def test_a_frame_of_another_session_does_not_open() -> None:
    joiner, peer = make_joiner(), make_peer()
    old, _ = join(joiner, peer)
    answered = answer(peer, begin(joiner), dice="later")
    with pytest.raises(ProtocolError, match=r"^seal$"):
        answered.open(Type.READY, parse_session_frame(old.seal(Type.READY, b"")))


# Secrets


def shows(secret: bytes, shown: str) -> bool:
    """Whether a text gives away a secret, or its first eight bytes."""
    return any(part in shown for part in (secret.hex(), secret[:8].hex(), repr(secret[:8])[2:-1]))


def test_no_identity_and_no_session_shows_a_secret() -> None:
    joiner, peer = make_joiner(), make_peer()
    mine, theirs = join(joiner, peer)
    me, gateway = identity("pi-7", INDEX), gateway_identity()
    keys = [mine.keys.answer, mine.keys.up, mine.keys.ask, mine.keys.down]
    secrets = [me.static.private, gateway.static.private, gateway.signing.seed, *keys, EPOCH_KEY]
    for holder in (me, gateway, mine, theirs, mine.keys, joiner, peer, peer.member):
        assert not any(shows(secret, repr(holder)) for secret in secrets), type(holder)


def test_an_identity_shows_who_it_is() -> None:
    assert "id='pi-7', index=7" in repr(identity("pi-7", INDEX))
    assert "federation='acme'" in repr(gateway_identity())


def test_a_session_shows_its_number_and_none_of_its_frames() -> None:
    mine, _ = sessions()
    assert (
        repr(mine) == "Session(number=0, index=7, task=0, model=b'', "
        "trust=<Trust.NOBODY: 0>, is_gate_due=False, _sent=0)"
    )


def test_a_renewal_is_no_false_hint() -> None:
    joiner, peer = make_joiner(), make_peer()
    joiner.finish(answer(peer, begin(joiner)).welcome, now=0)
    renewal = joiner.poll(now=SESSION_US)
    assert renewal is not None
    joiner.finish(answer(peer, renewal, dice="later").welcome, now=SESSION_US)
    joiner.hint(now=SESSION_US + FIRST_RETRY_US)
    assert joiner.due_us is not None and joiner.due_us < SESSION_US + FIRST_DOUBT_US
