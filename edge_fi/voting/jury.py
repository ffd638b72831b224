"""The jury: a gateway's defence against members that lie, for one task, without labels.

A self-claimed weight is a gift to a liar, and under label skew few others may know what a member says. The
jury remembers the last rounds and judges anew every few of them: whom to expel, and how far to lower the
weight of who has too large a share of it. Nothing lasts: votes are booked while their member is expelled, and
it comes back when the evidence changes. Canaries, queries whose answers the gateway knows, tell a liar from
an honest member that alone holds a class.

Evidence is the label that a vote puts first, so this works at level `labels` too; at level `sum` there are no
votes to judge. It cannot tell who lies once liars are the majority of those that know, and expels no more
than half. Pure: no clock, no I/O, no dice. Not for concurrent use.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_fi.messages import Array

MOST_VOUCHERS = 16  # that are looked at: a judgement must not take the gateway's time from rounds
ABSENT = -1  # the label of a member that did not answer

_ROUND = np.dtype([("label", "<i2"), ("log_weight", "<f4")])  # of one member
_HEAD = struct.Struct("<BHHIH")  # version, classes, rounds of history, rounds in all, members
_MEMBER = np.dtype([("index", "<u2"), ("right", "<f4"), ("asked", "<f4")])
_VERSION = 1
_LITTLE = 1e-9  # keeps 0 / 0 a 0

Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]
History = NDArray[Any]  # of _ROUND, (rounds, members), the latest last


@dataclass(frozen=True, slots=True, kw_only=True)
class JuryPolicy:
    """When the jury judges, and what it needs for a verdict."""

    history: int = 300
    """Rounds that are remembered; evidence from canaries halves in as many."""
    every: int = 10
    """Rounds from one judgement to the next."""
    share_cap: float = 3.5
    """Largest mean share of the weight, in even shares."""
    burst: int = 20
    """Latest rounds over which the cap holds too: who starts to claim the most is stopped soon."""
    newcomer: int = 50
    """Rounds of history below which the cap holds in every single round, for a minority of newcomers."""
    least: float = 0.35
    """Agreement below which the worst member is expelled, in units of the members' median."""
    heavy: float = 2.5
    """Mean share, in even shares, from which on no doubt counts in a member's favour."""
    heavy_least: float = 0.5
    """What `least` is for such a member: who wants that much of a say must be agreed with."""
    doubt: float = 1.0
    """Standard errors by which agreement must be below that."""
    proof: float = 2.0
    """Standard errors above 0 at which agreement, however small, is no accident."""
    recent: tuple[int, ...] = (20, 40, 60)
    """Latest rounds that are compared with the earlier: a sleeper has a long honest history."""
    turned: float = 2.0
    """Standard errors by which a member's agreement must have fallen to show that it has turned."""
    honest: float = 0.5
    """Accuracy on canaries, less one standard deviation, above which rounds alone expel nobody."""
    lying: float = 0.35
    """Accuracy on canaries, plus one standard deviation, below which no rounds are needed."""


class Agreement(NamedTuple):
    """How well members agree with the others, each (members,)."""

    score: Array
    """0 is what answers without regard to the query get; infinite for who is not in the pool."""
    spread: Array
    """Of a single round's agreement about 0."""
    rounds: Array
    """How many rounds of equal weight this is worth."""


def share(log_weights: Array, present: Flags) -> Array:
    """Each member's part of a round's weight, (rounds, members); 0 for who is not present."""
    logs = np.where(present, log_weights, -np.inf)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True, initial=-1e9))
    return np.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), _LITTLE))


def weigh_claims(history: History) -> Array:
    """What a vote weighs before the jury, (rounds, members): the cube of its log weight's rank in its
    member's own history. Who always claims the most says nothing by it, nor does a gate made to do so.
    """
    weights = np.zeros(history.shape)
    for column, said in enumerate(history.T):
        present = said["label"] != ABSENT
        claims = said["log_weight"][present]
        ordered = np.sort(claims)
        ranks = np.searchsorted(ordered, claims, "left") + np.searchsorted(ordered, claims, "right")
        weights[present, column] = (ranks / max(2 * len(claims), 1)) ** 3
    return weights


def agreement(labels: Labels, weights: Array, among: Flags) -> Agreement:
    """Leave-two-out agreement of each member with the pool of the others, less that of their labels in
    other rounds (correlated agreement, Shnayder et al. 2016), where the member has weight.

    labels, weights: (rounds, members). among: (members,), who is in the pool. The pool lacks the member
    and its best voucher, without which its agreement is lowest: two that collude must not vouch for
    each other.
    """
    rounds, members = labels.shape
    weights = weights * among
    labels = np.maximum(labels, 0)  # who was absent has no weight
    classes = int(labels.max()) + 1
    places = np.arange(rounds)[:, None] * classes + labels
    by_class = np.bincount(places.ravel(), weights.ravel(), rounds * classes)
    total = weights.sum(axis=1, keepdims=True)
    agreeing, against = by_class[places] - weights, total - weights
    shares = weights / np.maximum(total, _LITTLE)
    said = np.stack([np.bincount(labels[:, i], shares[:, i], classes) for i in range(members)])
    mine = weights / np.maximum(weights.sum(axis=0), _LITTLE)
    score, spread = np.full(members, np.inf), np.zeros(members)
    for voucher in _vouchers(labels, shares, classes).T:
        its = weights[:, voucher] * (labels[:, voucher] == labels)
        others = said.sum(axis=0) - said - said[voucher]
        usual = others / np.maximum(others.sum(axis=1, keepdims=True), _LITTLE)
        rest = np.maximum(against - weights[:, voucher], _LITTLE)
        excess = (agreeing - its) / rest - usual[np.arange(members), labels]
        without = (mine * excess).sum(axis=0)
        is_best = among & (voucher != np.arange(members)) & (without < score)
        score = np.where(is_best, without, score)
        spread = np.where(is_best, np.sqrt((mine * excess**2).sum(axis=0)), spread)
    return Agreement(score, spread, 1 / np.maximum((mine**2).sum(axis=0), _LITTLE))


def _vouchers(labels: Labels, shares: Array, classes: int) -> NDArray[np.intp]:
    """Of each member those that may be its best voucher, (members, some): everybody, and of many members
    those that say the same as it most often, for a voucher of others matters less the more there are.
    """
    members = labels.shape[1]
    if members <= MOST_VOUCHERS:
        return np.tile(np.arange(members), (members, 1))
    together = np.zeros((members, members))
    for label in range(classes):
        chosen = shares * (labels == label)
        together += chosen.T @ chosen
    np.fill_diagonal(together, -1)
    return np.argsort(-together, axis=1)[:, :MOST_VOUCHERS]


def cap_shares(log_weights: Array, present: Flags, cap: float) -> Array:
    """Nats by which to lower each member's weight, (members,), so that no mean share is above the cap."""
    lowered = np.zeros(log_weights.shape[1])
    for _ in range(20):  # enough for a tenth of a percent in all but contrived cases
        over = share(log_weights - lowered, present).mean(axis=0) / cap
        lowered += np.log(np.maximum(over, 1))
    return lowered


def cap_newcomers(weights: Array, is_new: Flags, cap: float) -> Array:
    """Weights of one round, (n,), in which no newcomer has a share above the cap, if that can be."""
    capped = np.zeros(len(weights), dtype=bool)
    while (over := is_new & ~capped & (weights > cap * weights.sum())).any():
        capped |= over
        if cap * capped.sum() >= 1 or capped.all():
            return np.where(capped, weights[capped].min(), weights)
        weights = np.where(capped, cap * weights[~capped].sum() / (1 - cap * capped.sum()), weights)
    return weights


class Jury:
    """The members of one task, what they said in the last rounds, and what follows from it."""

    def __init__(self, classes: int, policy: JuryPolicy | None = None) -> None:
        self.classes = classes
        self.policy = policy or JuryPolicy()
        self._rounds = 0
        self._members = np.zeros(0, dtype=_MEMBER)
        self._columns: dict[int, int] = {}
        self._history: History = np.zeros((self.policy.history, 0), dtype=_ROUND)
        self._booked = np.zeros(0, dtype=np.int64)
        self._lowered = np.zeros(0)
        self._among = np.zeros(0, dtype=bool)
        self._doubted = np.zeros(0, dtype=bool)

    @property
    def expelled(self) -> frozenset[int]:
        """Roster indices of the members whose votes do not count."""
        return frozenset(self._members["index"][~self._among].tolist())

    def weigh(self, members: Sequence[int], log_weights: Array) -> Array:
        """The log weights that a strategy shall use, (n,), for those that members, (n,) roster indices,
        claim or their gates give: -inf for the expelled. If all of them are expelled, none is: whether a
        round of suspects is an outcome is for its quorum to say.
        """
        columns = [self._columns.get(member, -1) for member in members]
        # The last of each is a stranger's: not expelled, not lowered, no history.
        among = np.append(self._among, True)[columns]
        if not among.any():
            return log_weights
        logs = np.where(among, log_weights - np.append(self._lowered, 0.0)[columns], -np.inf)
        is_new = np.append(self._booked, 0)[columns] < self.policy.newcomer
        if not 0 < 2 * is_new.sum() < len(members):
            return np.asarray(logs)
        top = logs.max()
        weights = cap_newcomers(np.exp(logs - top), is_new, self.policy.share_cap / len(members))
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(weights) + top)

    def note(self, members: Sequence[int], probabilities: Array, log_weights: Array) -> None:
        """Book a round: probabilities (n, classes), and log_weights (n,), finite, as they came, not as
        `weigh` made them. Every few rounds this also judges.
        """
        for member in members:
            if member not in self._columns:
                self._admit(member)
        columns = [self._columns[member] for member in members]
        self._history[:-1] = self._history[1:]
        self._history[-1] = (ABSENT, 0.0)
        self._history["label"][-1, columns] = probabilities.argmax(axis=1)
        self._history["log_weight"][-1, columns] = log_weights
        self._booked[columns] += 1
        self._rounds += 1
        fading = 0.5 ** (1 / self.policy.history)
        self._members["right"] *= fading
        self._members["asked"] *= fading
        # A judgement takes time by the square of the members: of many, it comes less often.
        if self._rounds % max(self.policy.every, len(self._members)) == 0:
            self.judge()

    def note_truth(
        self, members: Sequence[int], probabilities: Array, log_weights: Array, label: int
    ) -> None:
        """Book a query whose label is known: a canary, or what a client reported back.

        It counts for a member as far as that has weight here: by the cube of its log weight's rank among
        its own, and less where it would have less than an even share beside those that are not expelled.
        Strangers to the jury are passed over.
        """
        known = [place for place, member in enumerate(members) if member in self._columns]
        columns = [self._columns[members[place]] for place in known]
        logs = log_weights[known] - self._lowered[columns]
        trusted = self._among[columns]
        for place, column in enumerate(columns):
            beside = trusted.copy()
            beside[place] = True
            # Who always claims the most is fully responsible: here the rank counts ties as below it.
            own = self._history[self._history["label"][:, column] != ABSENT, column]["log_weight"]
            rank = float(np.mean(own <= np.float32(log_weights[known[place]]))) if len(own) else 0.0
            weight = rank**3 * min(1.0, share(logs[None], beside[None])[0, place] * beside.sum())
            self._members["asked"][column] += weight
            self._members["right"][column] += weight * (probabilities[known[place]].argmax() == label)

    def suspects(self) -> dict[int, int]:
        """Members for whom a canary would help now, each with the class that it says most where it has
        weight: half of its canaries should be of that class, half of any. Who is well known from
        canaries is no suspect, nor who agrees with the others and has no more weight than its share.
        """
        truth, deviation = self._accuracy()
        is_known = (truth - deviation > self.policy.honest) | (truth + deviation < self.policy.lying)
        suspected = (self._doubted | (self._lowered > 0)) & ~is_known
        return {
            int(self._members["index"][column]): self._mainstay(column)
            for column in np.flatnonzero(suspected).tolist()
        }

    def judge(self) -> None:
        """Decide anew who is expelled and whose weight is lowered. `note` calls this in time."""
        if not self._columns or not self._rounds:
            return
        policy, history = self.policy, self._history[-min(self._rounds, len(self._history)) :]
        labels, weights = history["label"].astype(np.int64), weigh_claims(history)
        among = np.ones(len(self._members), dtype=bool)

        def expel(guilty: Flags, score: Array) -> bool:
            """Expel the worst of the guilty, of many a quarter at once. Whether to look again."""
            room = len(among) // 2 - int((~among).sum())
            count = min(room, -(-int(guilty.sum()) // 4))
            among[np.argsort(np.where(guilty, score, np.inf))[:count]] = False
            return count > 0

        present = history["label"] != ABSENT
        truth, deviation = self._accuracy()
        while expel(among & (truth + deviation < policy.lying), truth):
            pass
        is_honest = truth - deviation > policy.honest
        self._doubted, is_open = np.zeros(len(among), dtype=bool), True
        while is_open:
            whole = agreement(labels, weights, among)
            errors = whole.spread / np.sqrt(whole.rounds)
            limit = policy.least * float(np.median(whole.score[among]))
            self._doubted |= whole.score < limit
            unproven = (whole.score + policy.doubt * errors < limit) & (whole.score <= policy.proof * errors)
            shares = share(history["log_weight"], present & among).mean(axis=0) * len(among)
            overbearing = (shares > policy.heavy) & (whole.score * policy.least < policy.heavy_least * limit)
            guilty = overbearing | unproven
            is_open = expel(guilty & ~is_honest, whole.score)
        for window in policy.recent:
            is_open = len(labels) > window + policy.newcomer
            while is_open:
                now = agreement(labels[-window:], weights[-window:], among)
                before = agreement(labels[:-window], weights[:-window], among)
                due = policy.least * np.minimum(np.median(now.score[among]), before.score)
                # Were a member still what it was, this is how far its agreement would stray.
                stray = before.spread * np.sqrt(1 / now.rounds + 1 / before.rounds)
                fallen = (now.score < due) & (now.score + policy.turned * stray < before.score)
                is_open = expel(fallen, now.score)
        self._doubted |= ~among
        self._among = among
        self._lowered = np.zeros(len(among))
        for part in (history, history[-policy.burst :]):
            answered, logs = (part["label"] != ABSENT) & among, part["log_weight"] - self._lowered
            self._lowered += cap_shares(logs, answered, policy.share_cap / len(among))

    def forget(self, member: int) -> None:
        """Drop a member that has left, with all evidence; the others are judged at the next judgement."""
        if member not in self._columns:
            return
        left = self._columns.pop(member)
        self._members = np.delete(self._members, left)
        self._history = np.delete(self._history, left, axis=1)
        self._booked, self._lowered = np.delete(self._booked, left), np.delete(self._lowered, left)
        self._among, self._doubted = np.delete(self._among, left), np.delete(self._doubted, left)
        self._columns = {index: column for column, index in enumerate(self._members["index"].tolist())}

    def snapshot(self) -> bytes:
        """What survives a restart: 6 bytes a vote remembered, 18 kB for 10 members and 300 rounds."""
        head = _HEAD.pack(
            _VERSION, self.classes, len(self._history), self._rounds % 2**32, len(self._members)
        )
        return head + self._members.tobytes() + self._history.tobytes()

    @classmethod
    def restore(cls, snapshot: bytes, classes: int, policy: JuryPolicy | None = None) -> "Jury":
        """The jury of a snapshot, which judges at once. An empty one if the bytes are no snapshot of a
        jury of so many classes and rounds: a defence that starts anew is better than a gateway that does not.
        """
        jury = cls(classes, policy)
        try:
            version, its_classes, rounds, total, count = _HEAD.unpack_from(snapshot)
            members = np.frombuffer(snapshot, _MEMBER, count, _HEAD.size).copy()
            history = np.frombuffer(snapshot, _ROUND, offset=_HEAD.size + members.nbytes)
            history = history.reshape(rounds, count).copy()
        except (struct.error, ValueError):
            return jury
        labels, (right, asked) = history["label"], (members["right"], members["asked"])
        if (
            (version, its_classes, rounds) != (_VERSION, classes, jury.policy.history)
            or len(set(members["index"].tolist())) != count
            or not np.isfinite(history["log_weight"]).all()
            or not ((labels >= ABSENT) & (labels < classes)).all()
            or not ((right >= 0) & (right <= asked) & (asked < np.inf)).all()
        ):
            return jury
        jury._members, jury._history, jury._rounds = members, history, total
        jury._columns = {index: column for column, index in enumerate(members["index"].tolist())}
        jury._booked, jury._lowered = (labels != ABSENT).sum(axis=0), np.zeros(count)
        jury._among, jury._doubted = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
        jury.judge()
        return jury

    def _admit(self, member: int) -> None:
        """Give a member a column: not expelled, not lowered, with no history."""
        self._columns[member] = len(self._members)
        self._members = np.append(self._members, np.array([(member, 0, 0)], dtype=_MEMBER))
        silence = np.full((len(self._history), 1), np.array((ABSENT, 0), dtype=_ROUND))
        self._history = np.concatenate([self._history, silence], axis=1)
        self._booked, self._lowered = np.append(self._booked, 0), np.append(self._lowered, 0.0)
        self._among, self._doubted = np.append(self._among, True), np.append(self._doubted, False)

    def _accuracy(self) -> tuple[Array, Array]:
        """Mean and standard deviation of each member's accuracy on canaries, Beta(1, 1) before any."""
        right = self._members["right"].astype(np.float64) + 1
        asked = self._members["asked"].astype(np.float64) + 2
        mean = right / asked
        return mean, np.sqrt(mean * (1 - mean) / (asked + 1))

    def _mainstay(self, column: int) -> int:
        """The class that this member says most, by its share of the weight."""
        present = self._history["label"] != ABSENT
        shares = share(self._history["log_weight"], present)[:, column]
        return int(np.bincount(np.maximum(self._history["label"][:, column], 0), shares).argmax())
