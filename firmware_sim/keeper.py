"""What survives a gateway, in memory: the rules of its state without its file.

Each change is whole or not at all, as a transaction is. Pure: no clock, so that an invite expires when
it is told to; no dice, so that its token is an argument. A simulation may put an earlier `roster` back,
as a disk that was restored does.
"""

from dataclasses import replace

from edge_fi.admission import judge
from edge_fi.effects import Admit, Adopt
from edge_fi.messages import Member
from edge_fi.roster import Invitation, NotAdmittedError, Roster
from edge_fi.wire.payloads import Refusal


class Keeper:
    """Of one gateway."""

    def __init__(self, roster: Roster | None = None) -> None:
        self.roster = roster or Roster()
        self.is_full = False
        """Whether there is no room for one byte more: nobody can be admitted."""

    def admit(self, admit: Admit) -> Roster:
        """The roster with the new member. Raises NotAdmittedError, and then nothing was written."""
        invitation = self._invitation(admit.invite)
        if invitation is None:
            raise NotAdmittedError(Refusal.WITHDRAWN)
        # The machine has judged by its roster; here it is judged by the roster as it is.
        verdict = judge(invitation, admit.member.public, self.roster)
        if isinstance(verdict, Refusal):
            raise NotAdmittedError(verdict)
        if verdict != admit.member.index or self.is_full:
            raise NotAdmittedError(Refusal.BUSY)
        if not invitation.redeemed_by:
            self._write(admit)
        return self.roster

    def adopt(self, adopt: Adopt) -> Roster:
        """The roster after the word of a former run: what that had revoked is revoked, no index that it
        gave is given again, and no invite stays open, since it may have been burnt there.
        """
        before = self.roster
        if adopt.revoked <= before.revoked and adopt.highest <= before.highest:
            return before
        self._change(
            members=tuple(its for its in before.members if its.index not in adopt.revoked),
            revoked=before.revoked | adopt.revoked,
            given=max(before.highest, adopt.highest),
            invitations=tuple(_closed(its) for its in before.invitations),
            version=max(before.version, adopt.version) + 1,
        )
        return self.roster

    def invite(
        self,
        id: str,  # noqa: A002 - it is called so everywhere
        role: str = "device",
        *,
        token: bytes,
        task: int = 0,
        replaces: bool = False,
    ) -> Invitation:
        """A new invitation. token: 16 bytes."""
        number = 1 + max((its.number for its in self.roster.invitations), default=0)
        its = Invitation(number=number, role=role, id=id, token=token, task=task, replaces=replaces)
        self._change(invitations=(*self.roster.invitations, its))
        return its

    def expire(self, number: int) -> None:
        """Let the time of this invite be over."""
        self._change(
            invitations=tuple(
                replace(its, is_expired=its.is_expired or its.number == number)
                for its in self.roster.invitations
            )
        )

    def withdraw(self, number: int) -> None:
        """Take this invite back, if it is open."""
        self._change(
            invitations=tuple(
                _closed(its) if its.number == number else its for its in self.roster.invitations
            )
        )

    def revoke(self, id: str) -> Member:  # noqa: A002
        """Take a member from the roster for ever, and withdraw the invites that could bring it back."""
        before = self.roster
        (gone,) = [its for its in before.members if its.id == id]
        self._change(
            members=tuple(its for its in before.members if its is not gone),
            revoked=before.revoked | {gone.index},
            invitations=tuple(_closed(its) if its.id == id else its for its in before.invitations),
            version=before.version + 1,
        )
        return gone

    def rotate(self) -> None:
        """Ask for a new epoch of every task."""
        self._change(rotations=self.roster.rotations + 1)

    def _write(self, admit: Admit) -> None:
        before, member = self.roster, admit.member
        replaced = [its.index for its in before.members if its.id == member.id]
        self._change(
            members=(*(its for its in before.members if its.id != member.id), member),
            revoked=before.revoked.union(replaced),
            invitations=tuple(
                replace(its, redeemed_by=member.public) if its.number == admit.invite else its
                for its in before.invitations
            ),
            version=before.version + 1,
        )

    def _change(self, **changes: object) -> None:
        self.roster = replace(self.roster, **changes)  # type: ignore[arg-type]

    def _invitation(self, number: int) -> Invitation | None:
        return next((its for its in self.roster.invitations if its.number == number), None)


def _closed(its: Invitation) -> Invitation:
    """It can make nobody a member any more; whom it has made one, it still can tell so."""
    return its if its.redeemed_by else replace(its, is_withdrawn=True)
