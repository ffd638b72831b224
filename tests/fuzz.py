"""Mutated frames of every type, given to the machines: none is accepted, nothing is raised.

    python -m tests.fuzz [--frames 1000000] [--seed 1] [--json]

Two attackers. The outsider changes genuine frames in every way that bytes can be changed: whatever differs
from what a key holder made must be dropped, as `Rejected` and nothing else. The insider is a member, or a
gateway gone wrong: it seals changed plaintexts under genuine keys; some of those mean something and are
taken, but none may raise. A tenth of the frames are the insider's. Ends with 1 if anything is wrong.
"""

import argparse
import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as pytest has it

from federation import (
    FEDERATION,
    TASK,
    TENSOR,
    HandGateway,
    HandMember,
    gateway_identity,
    key_pair,
    lone_client,
    lone_device,
    lone_gateway,
    member,
    only_publish,
    published,
)
from gates import MAP, PLACES, content

from edge_fi.admission import Application
from edge_fi.applicant import Applicant
from edge_fi.claim import Claim
from edge_fi.effects import Admit, Effect, Machine, Publish, Rejected
from edge_fi.gateway import Gateway
from edge_fi.messages import Fate, Form, Outcome, Query, Status, Trust
from edge_fi.roster import Invitation, Roster
from edge_fi.session import Session
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import Type
from edge_fi.wire.invites import Invite
from firmware_sim.stream import Stream

DEVICE, INBOX, QUERIES = f"fi1/{FEDERATION}/a/pi-1", f"fi1/{FEDERATION}/d/pi-1", f"fi1/{FEDERATION}/q/1"
ASKS, OUTCOMES = f"fi1/{FEDERATION}/ca/laptop-1", f"fi1/{FEDERATION}/cd/laptop-1"
JOINS, ANSWERS = f"fi1/{FEDERATION}/join", f"fi1/{FEDERATION}/j/7"
ROSTER, CLAIMS = f"fi1/{FEDERATION}/gateway/roster", f"fi1/{FEDERATION}/gateway/claim"
SECOND = 1_000_000
INSIDERS_SHARE = 10
PROGRESS_EVERY_S = 5.0
TOKEN = bytes(range(16))
INVITATION = Invitation(number=7, role="device", id="pi-7", token=TOKEN)
INVITE = Invite(
    federation=FEDERATION,
    role="device",
    id="pi-7",
    number=7,
    expires=2**31,
    token=TOKEN,
    gateway=gateway_identity().static.public,
    host="127.0.0.1",
    port=1883,
    tls=False,
)
OUTCOME = Outcome(
    status=Status.ANSWERED,
    label=0,
    probabilities=(1.0, 0.0, 0.0, 0.0),
    agreement=1.0,
    strategy="linear",
    fates=(("pi-1", Fate.COUNTED), ("pi-2", Fate.MISSING)),
)


@dataclass(slots=True)
class Target:
    """A machine in the middle of its work, and a genuine frame that it waits for."""

    machine: Machine
    topic: str
    frame: bytes
    reseal: Callable[[bytes], bytes] | None = None
    """A frame of this plaintext, under the genuine keys: the insider's."""
    plaintext: bytes = b""


def targets() -> dict[Type, Target]:
    """One of each type of frame."""
    return {
        Type.QUERY: _query(),
        Type.ANSWER: _answer(),
        Type.SETTLED: _settled(),
        Type.HELLO: _hello(),
        Type.WELCOME: _welcome(),
        Type.READY: _ready(),
        Type.GATE: _gate(),
        Type.REKEY: _rekey(),
        Type.ASK: _ask(),
        Type.OUTCOME: _outcome(),
        Type.JOIN: _join(),
        Type.ACCEPT: _accept(),
        Type.REFUSED: _refused(),
        Type.ROSTER: _roster(),
        Type.CLAIM: _claim(),
        Type.HELD: _held(),
    }


def _device_in_session() -> tuple[Machine, HandGateway]:
    device, gateway = lone_device(), HandGateway()
    _, hello = published(device.connected(now=0))
    device.receive(INBOX, gateway.welcome(hello.payload), now=0)
    return device, gateway


def _query() -> Target:
    device, gateway = _device_in_session()
    plaintext = payloads.encode_query(_asked(gateway, 5))
    return Target(
        device, QUERIES, gateway.query(5), lambda text: gateway.query(next(_SEQS), plaintext=text), plaintext
    )


def _asked(gateway: HandGateway, seq: int) -> Query:
    frame = frames.parse_query(gateway.query(seq))
    return payloads.decode_query(gateway.epoch.open_query(frame.sealed, seq=seq, header=frame.header))


_SEQS = iter(range(6, 2**31))


def _answer() -> Target:
    gateway, device = lone_gateway("pi-1", "pi-2"), HandMember()
    device.join(gateway)
    HandMember("pi-2", 2).join(gateway)
    query = only_publish(gateway.ask(1, TENSOR, reference=0, now=0)).payload
    code = b"\x00\xff"
    return Target(gateway, DEVICE, device.answer(query, code), lambda text: device.answer(query, text), code)


def _settled() -> Target:
    device, gateway = _device_in_session()
    device.receive(QUERIES, gateway.query(5), now=0)
    return Target(device, QUERIES, gateway.settled(5))


def _hello() -> Target:
    device = HandMember()
    plaintext = payloads.encode_hello(payloads.Hello(b"model-01", TASK.number, TASK.digest()))
    return Target(lone_gateway(), DEVICE, device.hello(), lambda text: device.hello(payload=text), plaintext)


def _welcome() -> Target:
    device, gateway = lone_device(), HandGateway()
    _, hello = published(device.connected(now=0))
    return Target(device, INBOX, gateway.welcome(hello.payload))


def _sealer(session: Session | None, kind: Type) -> Callable[[bytes], bytes]:
    assert session is not None
    return lambda text: session.seal(kind, text)


def _gate() -> Target:
    gateway = lone_gateway(task=PLACES, features=MAP)
    device = HandMember()
    device.trust, device.gate = Trust.GATE, content(3)
    device.joiner.begin(at=0)
    device.welcome(only_publish(gateway.receive(DEVICE, device.hello(task=PLACES), now=0)).payload)
    assert device.session is not None
    frame = device.registration()
    return Target(gateway, DEVICE, frame, _sealer(device.session, Type.GATE), device.gate)


def _ready() -> Target:
    gateway, device = lone_gateway(), HandMember()
    device.join(gateway, ready=False)
    assert device.epoch is not None
    plaintext = payloads.encode_ready(payloads.Ready(frozenset({Form.LABEL}), device.epoch.number))
    return Target(gateway, DEVICE, device.ready(), _sealer(device.session, Type.READY), plaintext)


def _rekey() -> Target:
    device, gateway = _device_in_session()
    plaintext = payloads.encode_rekey(
        payloads.Rekey(epoch=99, grace_ms=100, epoch_key=bytes(32), verify=bytes(32))
    )
    return Target(device, INBOX, gateway.rekey(), _sealer(gateway.session, Type.REKEY), plaintext)


def _client_in_session() -> tuple[Machine, HandGateway]:
    client, gateway = lone_client(), HandGateway("laptop-1", 101, "client")
    hello = only_publish(client.connected(now=0))
    client.receive(OUTCOMES, gateway.welcome(hello.payload), now=0)
    client.ask(TASK, TENSOR, deadline_ms=60_000, reference=0, now=0)
    return client, gateway


def _outcome() -> Target:
    client, gateway = _client_in_session()
    plaintext = payloads.encode_outcome(1, OUTCOME)
    frame = gateway.outcome(0, OUTCOME)
    return Target(client, OUTCOMES, frame, _sealer(gateway.session, Type.OUTCOME), plaintext)


def _ask() -> Target:
    gateway = lone_gateway(clients=["laptop-1"])
    client = HandMember("laptop-1", 101, "client").join(gateway, ready=False)
    plaintext = payloads.encode_ask(payloads.Ask(1, 2000, TENSOR))
    return Target(gateway, ASKS, client.ask(), _sealer(client.session, Type.ASK), plaintext)


def _inviting_gateway() -> Gateway:
    roster = Roster(members=(member("pi-1", 1),), invitations=(INVITATION,), version=3)
    return Gateway(gateway_identity(), roster, [TASK], Stream("fuzzed gateway"))


def _join() -> Target:
    application = Application(INVITE, key_pair("pi-7"), Stream("applicant"))
    return Target(_inviting_gateway(), JOINS, application.join)


def _accepted(join: bytes) -> bytes:
    gateway = _inviting_gateway()
    (admit,) = gateway.receive(JOINS, join, now=0)
    assert isinstance(admit, Admit)
    roster = Roster(members=(member("pi-1", 1), admit.member), invitations=(INVITATION,), version=4)
    return published(gateway.admitted(admit, roster, now=0))[-1].payload


def _accept() -> Target:
    applicant = Applicant(INVITE, key_pair("pi-7"), Stream("applicant"))
    join = only_publish(applicant.connected(now=0)).payload
    return Target(applicant, ANSWERS, _accepted(join))


def _refused() -> Target:
    applicant = Applicant(INVITE, key_pair("pi-7"), Stream("applicant"))
    join = only_publish(applicant.connected(now=0)).payload
    gateway = _inviting_gateway()
    (admit,) = gateway.receive(JOINS, join, now=0)
    assert isinstance(admit, Admit)
    _, refused = gateway.not_admitted(admit, payloads.Refusal.FULL, now=0)
    assert isinstance(refused, Publish)
    return Target(applicant, ANSWERS, refused.payload)


def _roster() -> Target:
    claim = Claim(gateway_identity().static.private, Stream("former run"))
    frame = claim.seal_roster(Roster(revoked=frozenset({9}), version=8))
    return Target(lone_gateway(), ROSTER, frame)


def _claim() -> Target:
    other = Claim(gateway_identity().static.private, Stream("other run"))
    return Target(lone_gateway(), CLAIMS, other.begin())


def _held() -> Target:
    gateway = Gateway(
        gateway_identity(), Roster(members=(member("pi-1", 1),)), [TASK], Stream("run"), is_claiming=True
    )
    own = only_publish(gateway.connected(now=0)).payload
    held = Claim(gateway_identity().static.private, Stream("other run")).answer(own, is_open=True)
    return Target(gateway, CLAIMS, held)


# Changing bytes


def mutated(genuine: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """A frame that is none of the genuine ones, but near this one."""
    while True:
        frame = bytearray(genuine)
        for _ in range(dice.choice((1, 1, 1, 2, 4, 8))):
            _MUTATIONS[dice.randrange(len(_MUTATIONS))](frame, others, dice)
        if bytes(frame) not in (genuine, *others):
            return bytes(frame)


def _flip(frame: bytearray, others: list[bytes], dice: random.Random) -> None:
    if frame:
        frame[dice.randrange(len(frame))] ^= 1 << dice.randrange(8)


def _set(frame: bytearray, others: list[bytes], dice: random.Random) -> None:
    if frame:
        frame[dice.randrange(len(frame))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))


def _header(frame: bytearray, others: list[bytes], dice: random.Random) -> None:
    """Numbers at the edges, where header fields are."""
    size = dice.choice((1, 2, 4))
    at = dice.randrange(16)
    frame[at : at + size] = dice.choice((b"\0" * size, b"\xff" * size, dice.randbytes(size)))


def _cut(frame: bytearray, others: list[bytes], dice: random.Random) -> None:
    del frame[dice.randrange(len(frame) + 1) :]


def _drop(frame: bytearray, others: list[bytes], dice: random.Random) -> None:
    at = dice.randrange(len(frame) + 1)
    del frame[at : at + dice.randrange(1, 40)]


def _insert(frame: bytearray, others: list[bytes], dice: random.Random) -> None:
    at = dice.randrange(len(frame) + 1)
    frame[at:at] = dice.randbytes(dice.choice((1, 2, 8, 64, 300)))


def _splice(frame: bytearray, others: list[bytes], dice: random.Random) -> None:
    other = dice.choice(others)
    at = dice.randrange(len(frame) + 1)
    frame[at:] = other[dice.randrange(len(other) + 1) :]


def _retype(frame: bytearray, others: list[bytes], dice: random.Random) -> None:
    if frame:
        frame[0] = dice.choice(list(Type))


_MUTATIONS = (_flip, _flip, _set, _header, _cut, _drop, _insert, _splice, _retype)


# Running


@dataclass(slots=True)
class Result:
    """What came of it."""

    frames: int = 0
    accepted: int = 0
    exceptions: int = 0
    insider_frames: int = 0
    insider_exceptions: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was taken that no key holder made, and nothing raised."""
        return not (self.accepted or self.exceptions or self.insider_exceptions)


def fuzz(count: int, seed: int, progress: Callable[[int], None] = lambda done: None) -> Result:
    """Give so many frames to the machines, in turns of all types."""
    dice = random.Random(seed)
    result = Result()
    fresh = targets()
    genuine = [target.frame for target in fresh.values()]
    kinds = list(fresh)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        target = fresh[kind]
        now = SECOND + number
        if number % INSIDERS_SHARE == 0 and target.reseal is not None:
            _give_insiders(target, dice, result, now)
            if number % (INSIDERS_SHARE * 50) == 0:
                fresh[kind] = targets()[kind]  # what an insider has done to it must not hide the rest
        else:
            _give(kind, target, mutated(target.frame, genuine, dice), result, now)
        if number % 1000 == 0:
            progress(number)
    _check_that_the_genuine_is_taken(targets(), result)
    return result


def _give(kind: Type, target: Target, frame: bytes, result: Result, now: int) -> None:
    result.frames += 1
    try:
        effects = target.machine.receive(target.topic, frame, now=now)
    except Exception:  # the very thing that is looked for
        result.exceptions += 1
        result.examples.append(f"{kind.name} {frame.hex()}: {traceback.format_exc(limit=-1)}")
        return
    if effects and all(isinstance(effect, Rejected) for effect in effects):
        result.rejected.update(effect.reason for effect in effects if isinstance(effect, Rejected))
    else:
        result.accepted += 1
        result.examples.append(f"{kind.name} {frame.hex()}: {effects}")


def _give_insiders(target: Target, dice: random.Random, result: Result, now: int) -> None:
    assert target.reseal is not None
    frame = target.reseal(mutated(target.plaintext, [target.plaintext], dice)[:900])
    result.insider_frames += 1
    try:
        target.machine.receive(target.topic, frame, now=now)
        target.machine.tick(now=now)
    except Exception:
        result.insider_exceptions += 1
        result.examples.append(f"insider {frame.hex()}: {traceback.format_exc(limit=-1)}")


def _check_that_the_genuine_is_taken(fresh: dict[Type, Target], result: Result) -> None:
    """Else all that was refused would prove nothing."""
    for kind, target in fresh.items():
        effects: list[Effect] = target.machine.receive(target.topic, target.frame, now=SECOND)
        if any(isinstance(effect, Rejected) for effect in effects):
            raise SystemExit(f"the genuine {kind.name} was refused: {effects}; the targets are wrong")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    began = told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_EVERY_S:
            told = time.monotonic()
            print(f"{done:,} of {arguments.frames:,}", file=sys.stderr)

    result = fuzz(arguments.frames, arguments.seed, progress)
    fields = {
        "frames": result.frames,
        "accepted": result.accepted,
        "exceptions": result.exceptions,
        "insider_frames": result.insider_frames,
        "insider_exceptions": result.insider_exceptions,
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began, 1),
        "rejected": dict(result.rejected.most_common()),
    }
    if arguments.json:
        print(json.dumps(fields))
    else:
        for name, value in fields.items():
            print(f"{name:<20} {value}")
    for example in result.examples[:20]:
        print(example, file=sys.stderr)
    sys.exit(0 if result.is_good else 1)


if __name__ == "__main__":
    main()
