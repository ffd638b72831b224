"""What each party can do on a broker, tried out and judged by delivery.

Brokers acknowledge what they refuse: mosquitto grants every subscription, both acknowledge a forbidden
publish. So each topic gets a nonce from somebody who may write it, and whoever receives it can read it;
and each party writes a nonce to each topic, and whoever may read there tells whether it came.
"""

import contextlib
import os
import secrets
import select
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_fi import config
from edge_fi.adapters.mqtt import Down, MqttLink, Received
from edge_fi.cli.brokerfiles import Account, users
from edge_fi.cli.owner import Opened
from edge_fi.cli.run import tls_of
from edge_fi.effects import Publish
from edge_fi.errors import TransportError
from edge_fi.wire import topics

CONNECT_S = 10.0
SETTLE_S = 1.0  # after the last nonce; a broker delivers within milliseconds
PREFIX = b"edge-fi broker check "  # its first byte is no frame's: whoever receives it drops it
NOBODY = "nobody-here"  # an id that the roster lacks, where it has too few members of a role


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that one party tried."""

    party: str
    action: str
    """connect, read or write."""
    target: str
    """A topic or a topic filter; empty for connect."""
    is_allowed: bool
    """By what the party must be able to do."""
    could: bool

    @property
    def is_good(self) -> bool:
        """Whether the broker did as it should."""
        return self.is_allowed == self.could


@dataclass(slots=True)
class Findings:
    """Everything that was tried."""

    broker: str
    tried: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether the broker refused all that it must, and nothing else."""
        return all(finding.is_good for finding in self.tried)

    def as_fields(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "broker": self.broker,
            "good": self.is_good,
            "forbidden": {
                "tried": sum(not finding.is_allowed for finding in self.tried),
                "refused": sum(not (finding.is_allowed or finding.could) for finding in self.tried),
            },
            "allowed": {
                "tried": sum(finding.is_allowed for finding in self.tried),
                "possible": sum(finding.is_allowed and finding.could for finding in self.tried),
            },
            "skipped": self.skipped,
            "tried": [
                {
                    "party": finding.party,
                    "action": finding.action,
                    "target": finding.target,
                    "allowed": finding.is_allowed,
                    "could": finding.could,
                }
                for finding in self.tried
            ],
        }

    def as_text(self) -> str:
        """For people: a line a party, then whatever is wrong."""
        lines = [f"{self.broker}: {'as it should be' if self.is_good else 'NOT as it should be'}"]
        for party in dict.fromkeys(finding.party for finding in self.tried):
            its = [finding for finding in self.tried if finding.party == party]
            forbidden = [finding for finding in its if not finding.is_allowed]
            refused = [finding for finding in forbidden if not finding.could]
            possible = sum(finding.could for finding in its if finding.is_allowed)
            lines.append(
                f"  {party:<24} {len(refused)} of {len(forbidden)} forbidden things refused, "
                f"{possible} of {len(its) - len(forbidden)} allowed ones possible"
            )
        for finding in self.tried:
            if not finding.is_good:
                wrong = "could" if finding.could else "could not"
                lines.append(f"  WRONG: {finding.party} {wrong} {finding.action} {finding.target}".rstrip())
        lines += [f"  not tried: {skipped}" for skipped in self.skipped]
        if not self.is_good:
            lines.append("write its configuration again with 'edge-fi broker config', and have it read that")
        return "\n".join(lines)


class _Connection:
    """One MQTT connection, of one user, with some subscriptions."""

    def __init__(
        self,
        broker: config.Broker,
        path: Path,
        name: str | None,
        password: str | None,
        filters: Sequence[str],
    ) -> None:
        self.received: set[tuple[str, bytes]] = set()
        self.has_failed = False
        self.reason = ""
        self.link = MqttLink(
            f"fi{os.urandom(10).hex()}",
            host=broker.host,
            port=broker.port,
            subscriptions=list(filters),
            username=name,
            password=password,
            tls=tls_of(path, broker),
        )
        self.link.start()

    def service(self) -> None:
        """Take in what came."""
        if self.has_failed:
            return
        self.link.service()
        while self.link.events:
            match self.link.events.popleft():
                case Received(topic, payload):
                    self.received.add((topic, payload))
                case Down(reason=reason):
                    self.has_failed, self.reason = True, reason
                case _:
                    pass


Connect = Callable[[str | None, str | None, Sequence[str]], _Connection]


def run(gateway: Opened) -> Findings:
    """Try everything. Raises TransportError where not even the gateway's own account gets in."""
    broker, federation = gateway.settings.broker, gateway.identity.federation
    findings = Findings(f"{broker.host}:{broker.port}")
    parties = _parties(gateway, findings)
    with contextlib.ExitStack() as stack:

        def connect(name: str | None, password: str | None, filters: Sequence[str]) -> _Connection:
            connection = _Connection(broker, gateway.path, name, password, filters)
            stack.callback(connection.link.close)
            return connection

        own = {party: connect(user.name, user.password, user.read) for party, user in parties.items()}
        _await_up(own.values())
        for party, connection in own.items():
            findings.tried.append(
                Finding(
                    party=party, action="connect", target="", is_allowed=True, could=connection.link.is_up
                )
            )
        if not own["gateway"].link.is_up:
            raise TransportError(
                f"broker {findings.broker} does not let the gateway in: "
                f"{own['gateway'].reason or 'no answer'}; "
                "is it running, on the files of 'edge-fi broker config'?"
            )
        _try_to_connect(findings, gateway, connect, parties)
        places = _places(federation, parties)
        _try_to_write(findings, parties, own, places)
        _try_to_read(findings, parties, own, places, federation, connect)
    return findings


def _parties(gateway: Opened, findings: Findings) -> dict[str, Account]:
    """Who is there to try with: the gateway, and of each role one, of devices two."""
    roster = gateway.state.roster()
    by_name = {user.name: user for user in users(gateway.settings, gateway.path, gateway.identity, roster)}
    parties = {"gateway": by_name[topics.GATEWAY_USER]}
    for role, number in (("device", 2), ("client", 1), ("helper", 1)):
        members = [member for member in roster.members if member.role == role][:number]
        for member in members:
            parties[f"{role} {member.id}"] = by_name[member.id]
        if len(members) < number:
            findings.skipped.append(f"{role}: {'only one has' if members else 'none has'} joined")
    holders = (topics.joiner_user(its.number) for its in roster.invitations)
    joiners = [by_name[name] for name in holders if name in by_name]
    if joiners:
        parties["holder of an invite"] = joiners[0]
    else:
        findings.skipped.append("holder of an invite: none is open")
    return parties


def _try_to_connect(
    findings: Findings, gateway: Opened, connect: Connect, parties: dict[str, Account]
) -> None:
    """Strangers and former members."""
    attempts: dict[str, tuple[str | None, str | None]] = {
        "anonymous stranger": (None, None),
        "stranger with a name": ("stranger", secrets.token_hex(16)),
    }
    for party, user in parties.items():
        attempts[f"stranger as {party}"] = (user.name, secrets.token_hex(16))
    former = [entry.member for entry in gateway.state.entries() if entry.revoked is not None]
    for member in former[-3:]:
        attempts[f"former member {member.id}"] = (member.id, gateway.identity.member_password(member))
    if not former:
        findings.skipped.append("former member: nobody was ever revoked")
    filters = [topics.gateway_state(gateway.identity.federation)]
    connections = {party: connect(name, password, filters) for party, (name, password) in attempts.items()}
    _await_up(connections.values())
    for party, connection in connections.items():
        findings.tried.append(
            Finding(party=party, action="connect", target="", is_allowed=False, could=connection.link.is_up)
        )


def _places(federation: str, parties: dict[str, Account]) -> list[str]:
    """Every topic that somebody may use, and those of somebody who is not there; another federation's too."""
    found = {topic for user in parties.values() for topic in (*user.read, *user.write) if "+" not in topic}
    for build in (topics.from_device, topics.to_device, topics.presence, topics.from_client,
                  topics.to_client, topics.from_helper, topics.to_helper):  # fmt: skip
        found.add(build(federation, NOBODY))
    found.add(topics.joined(federation, 0))
    found.add(topics.query(f"{federation[:14]}-x", 1))
    return sorted(found)


def _try_to_write(
    findings: Findings, parties: dict[str, Account], own: dict[str, _Connection], places: list[str]
) -> None:
    """Each party to each place where somebody can tell whether it came."""
    sent: dict[tuple[str, str], bytes] = {}
    for party in parties:
        for place in places:
            if _somebody(parties, "read", place) is not None and own[party].link.is_up:
                payload = sent[party, place] = PREFIX + os.urandom(8).hex().encode()
                own[party].link.publish(Publish(place, payload))
        _settle(own.values(), 0.0)
    _settle(own.values(), SETTLE_S)
    for (party, place), payload in sent.items():
        could = any((place, payload) in connection.received for connection in own.values())
        allowed = _may(parties[party].write, place)
        findings.tried.append(
            Finding(party=party, action="write", target=place, is_allowed=allowed, could=could)
        )


def _try_to_read(
    findings: Findings,
    parties: dict[str, Account],
    own: dict[str, _Connection],
    places: list[str],
    federation: str,
    connect: Connect,
) -> None:
    """Each party from each place that somebody writes to, and by filters that cover more than one."""
    wide = ["#", f"fi1/{federation}/#", "fi1/+/+/+", f"fi1/{federation}/d/+", f"fi1/{federation}/a/+"]
    written = [place for place in places if _somebody(parties, "write", place) is not None]
    for party, user in parties.items():
        readers = {its: connect(user.name, user.password, [its]) for its in (*written, *wide)}
        _await_up(readers.values())
        sent = {}
        for place in written:
            writer = _somebody(parties, "write", place)
            assert writer is not None
            sent[place] = PREFIX + os.urandom(8).hex().encode()
            own[writer].link.publish(Publish(place, sent[place]))
        _settle([*own.values(), *readers.values()], SETTLE_S)
        for topic_filter, reader in readers.items():
            heard = {topic for topic, payload in reader.received if sent.get(topic) == payload}
            allowed = topic_filter in written and _may(user.read, topic_filter)
            # What it may read by its own filter is no secret when it comes by a wider one.
            could = bool(heard) if allowed else any(not _may(user.read, topic) for topic in heard)
            findings.tried.append(
                Finding(party=party, action="read", target=topic_filter, is_allowed=allowed, could=could)
            )
            reader.link.close()


def _somebody(parties: dict[str, Account], action: str, place: str) -> str | None:
    """A party that may do this there."""
    for party, user in parties.items():
        if _may(user.read if action == "read" else user.write, place):
            return party
    return None


def _may(filters: Sequence[str], place: str) -> bool:
    return any(topics.matches(its, place) for its in filters)


def _await_up(connections: Iterable[_Connection]) -> None:
    """Until each is up or has failed."""
    waiting = list(connections)
    deadline = time.monotonic() + CONNECT_S
    while waiting and time.monotonic() < deadline:
        _wait(waiting)
        for connection in waiting:
            connection.service()
        waiting = [one for one in waiting if not (one.link.is_up or one.has_failed)]


def _settle(connections: Iterable[_Connection], seconds: float) -> None:
    """Send what is to be sent, and take in what comes for so long."""
    deadline = time.monotonic() + seconds
    while True:
        for connection in connections:
            connection.service()
        if time.monotonic() >= deadline:
            return
        _wait(list(connections))


def _wait(connections: list[_Connection]) -> None:
    poll = select.poll()
    for connection in connections:
        for descriptor, also_write in connection.link.descriptors():
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if also_write else 0))
    poll.poll(20)
