"""The joining machine: says JOIN until the gateway of its invite accepts or refuses it.

Pure, as the other machines are. The same JOIN is sent again with back-off: the gateway answers it
alike each time. Not here: where the invite came from, and what becomes of the new member's keys.
"""

from edge_fi.admission import Application
from edge_fi.crypto.keys import Entropy, KeyPair
from edge_fi.effects import Effect, Joined, Publish, Rejected
from edge_fi.errors import ProtocolError
from edge_fi.wire import topics
from edge_fi.wire.invites import Invite
from edge_fi.wire.payloads import Accept, Refusal

FIRST_RETRY_US = 500_000
LAST_RETRY_US = 8_000_000


class Applicant:
    """One applicant. Give it to a pump, or to a simulator; then read `accepted` or `refused`."""

    def __init__(self, invite: Invite, static: KeyPair, entropy: Entropy) -> None:
        self.accepted: Accept | None = None
        self.refused: Refusal | None = None
        """The latest refusal; after BUSY it goes on asking."""
        self._application = Application(invite, static, entropy)
        self._join_topic = topics.join(invite.federation)
        self._answer_topic = topics.joined(invite.federation, invite.number)
        self._retry_us = FIRST_RETRY_US
        self._due_us: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether the gateway has decided."""
        return self.accepted is not None or self.refused not in (None, Refusal.BUSY)

    @property
    def subscriptions(self) -> list[str]:
        """Topic filters; to be subscribed to on every connect, before `connected`."""
        return [self._answer_topic]

    @property
    def will(self) -> None:
        """Nobody follows an applicant's presence."""
        return None

    @property
    def farewell(self) -> list[Effect]:
        """Nothing to say before leaving."""
        return []

    def next_deadline(self) -> int | None:
        """When to call `tick`, in microseconds."""
        return self._due_us

    def connected(self, *, now: int) -> list[Effect]:
        """The link is up and every subscription is in place."""
        self._retry_us = FIRST_RETRY_US
        self._due_us = now
        return self.tick(now=now)

    def disconnected(self, *, now: int) -> list[Effect]:
        """The link is gone."""
        self._due_us = None
        return []

    def tick(self, *, now: int) -> list[Effect]:
        """Time has come: ask again."""
        if self._due_us is None or now < self._due_us:
            return []
        if self.is_over:
            self._due_us = None
            return []
        self._due_us = now + self._retry_us
        self._retry_us = min(self._retry_us * 2, LAST_RETRY_US)
        return [Publish(self._join_topic, self._application.join)]

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """A message came. Drops what is not acceptable, with its reason."""
        if topic != self._answer_topic or self.is_over:
            return [Rejected(reason="direction" if topic != self._answer_topic else "unexpected")]
        try:
            verdict = self._application.open(payload)
        except ProtocolError as error:
            return [Rejected(reason=error.reason)]
        if isinstance(verdict, Refusal):
            self.refused = verdict
            return []
        self.accepted = verdict
        return [Joined("gateway")]
