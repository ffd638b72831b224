"""`edge-fi roster`: who belongs to the federation, who no longer does, and who is invited."""

import json
import os
import sys
from pathlib import Path

import click

from edge_fi import config
from edge_fi.adapters.state_hold import wait_applied
from edge_fi.cli.owner import Opened, config_option, json_option, opened
from edge_fi.cli.rosterlines import Lines, as_csv, local
from edge_fi.errors import ConfigError, StateError
from edge_fi.messages import Member

_WORTH = (
    "Points of accuracy that a member adds, by the others' votes: no label is known. Where members are "
    "alike, or differ by less than the errors, the ranks mean nothing."
)


@click.group()
def roster() -> None:
    """Look at the members of a federation, and take them or their invites away."""


@roster.command("list")
@config_option
@click.option("--revoked", is_flag=True, help="Former members as well.")
@click.option("--invites", is_flag=True, help="Open invites as well.")
@json_option
def list_members(path: Path, revoked: bool, invites: bool, as_json: bool) -> None:
    """List the members, when each was last heard, and how many of its queries it answered in time.

    \b
    Examples:
      edge-fi roster list --config acme/gateway.toml
      edge-fi roster list --revoked --invites --json
    """
    with opened(path) as gateway:
        lines, version = _lines(gateway), gateway.state.roster().version
        entries = gateway.state.entries()
        issued = [its for its in gateway.state.invitations() if its.is_open]
        problem = gateway.state.clock_problem()
    present = [its for its in entries if its.revoked is None]
    former = [its for its in entries if its.revoked is not None]
    if problem:
        click.echo(f"edge-fi: every invite counts as expired: {problem}", err=True)
    if as_json:
        fields: dict[str, object] = {"federation": gateway.identity.federation, "version": version}
        fields["members"] = [lines.member(its) for its in present]
        if revoked:
            fields["former"] = [lines.member(its) for its in former]
        if invites:
            fields["invites"] = [lines.invite(its) for its in issued]
        click.echo(json.dumps(fields))
        return
    tables = [lines.members(present) if present else "no members: 'edge-fi gateway invite' makes some"]
    if revoked:
        tables.append(lines.former(former) if former else "no former members")
    if invites:
        tables.append(lines.invites(issued) if issued else "no open invites")
    click.echo("\n\n".join(tables))


@roster.command()
@click.argument("member", metavar="ID")
@config_option
@json_option
def show(member: str, path: Path, as_json: bool) -> None:
    """Show everything of one id: the member, those that had it before, and open invites for it.

    \b
    Example:
      edge-fi roster show pi-07 --config acme/gateway.toml
    """
    with opened(path) as gateway:
        entries = [its for its in gateway.state.entries() if its.member.id == member]
        invitations = gateway.state.invitations()
        issued = [its for its in invitations if its.invitation.id == member and its.is_open]
        if not entries and not issued:
            gateway.state.find(member)  # says that there is none, and whose id is alike
        lines = _lines(gateway)
    present = next((its for its in entries if its.revoked is None), None)
    former = [its for its in reversed(entries) if its.revoked is not None]
    if as_json:
        fields = {
            "member": None if present is None else lines.member(present),
            "former": [lines.member(its) for its in former],
            "invites": [lines.invite(its) for its in issued],
        }
        click.echo(json.dumps(fields))
        return
    told = [lines.details(its) for its in [*([present] if present else []), *former]]
    click.echo("\n\n".join([*told, *([lines.invites(issued)] if issued else [])]))


@roster.command()
@click.argument("member", metavar="ID")
@config_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def revoke(member: str, path: Path, yes: bool, as_json: bool) -> None:
    """Take a member from the roster, for ever: it learns nothing more, and its votes no longer count.

    \b
    Examples:
      edge-fi roster revoke pi-07 --config acme/gateway.toml
      edge-fi roster revoke pi-07 --yes --json
    """
    with opened(path) as gateway:
        entry = gateway.state.find(member)
        if not yes and sys.stdin.isatty():
            label = f", {entry.label}" if entry.label else ""
            click.echo(
                f"{_named(entry.member)}{label}, a member since {local(entry.joined)}, is to be revoked.\n"
                "Its votes, sessions, open invites and broker account go at once; the other devices get new\n"
                "query keys. It is for ever: to come back it needs a new invite.",
                err=True,
            )
            click.confirm("Revoke it?", abort=True, err=True)
        revoked = gateway.state.revoke(member)
        now = gateway.state.roster()
        has_broker = gateway.follow()
    progress = wait_applied(gateway.state_path, now.version, now.rotations)
    if progress == "late":
        raise StateError(
            f"{_named(revoked)} is revoked, but the running gateway has not taken that up within 5 s: look "
            "at its log, or start it again"
        )
    if as_json:
        fields = {"id": revoked.id, "role": revoked.role, "index": revoked.index, "version": now.version}
        click.echo(json.dumps(fields | {"gateway": progress, "broker_files": has_broker}))
        return
    click.echo(f"{_named(revoked)} is revoked: roster version {now.version}")
    keys = "has dropped it" + (", and gave the others new query keys" if revoked.role == "device" else "")
    click.echo(
        {
            "applied": f"the running gateway {keys}",
            "absent": "no gateway runs: it takes effect when it starts",
        }[progress]
    )
    if has_broker:
        click.echo("its account is gone from the broker's files")


@roster.command()
@click.argument("member", metavar="ID")
@click.argument("text")
@config_option
@json_option
def label(member: str, text: str, path: Path, as_json: bool) -> None:
    """Say what people call a member: for lists alone, its id stays. An empty TEXT takes the label away.

    \b
    Examples:
      edge-fi roster label pi-07 "attic, left window" --config acme/gateway.toml
      edge-fi roster label pi-07 ""
    """
    with opened(path) as gateway:
        gateway.state.label(member, text)
    if as_json:
        click.echo(json.dumps({"id": member, "label": text}))
        return
    click.echo(f"{member} is called {text}" if text else f"{member} has no label")


@roster.command()
@click.argument("member", metavar="[ID]", required=False)
@config_option
@click.option("--number", type=click.IntRange(1), help="The invite of this number, instead of all for ID.")
@json_option
def withdraw(member: str | None, path: Path, number: int | None, as_json: bool) -> None:
    """Withdraw open invites, so that whoever has them can no longer join.

    \b
    Examples:
      edge-fi roster withdraw pi-07 --config acme/gateway.toml
      edge-fi roster withdraw --number 12
    """
    if (member is None) == (number is None):
        raise click.UsageError("name either an ID or a --number")
    with opened(path) as gateway:
        withdrawn = gateway.state.withdraw(member if member is not None else number or 0)
        gateway.follow()
    if as_json:
        click.echo(json.dumps({"withdrawn": [{"number": its.number, "id": its.id} for its in withdrawn]}))
        return
    for its in withdrawn:
        click.echo(f"invite {its.number} for {its.role} {its.id} is withdrawn")


@roster.command()
@config_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["json", "csv"]),
    default="json",
    show_default=True,
    help="What to write.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write it there, over what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; as --format json.")
def export(path: Path, kind: str, out: Path | None, as_json: bool) -> None:
    """Write down all members, present and former, with what is public of them.

    \b
    Examples:
      edge-fi roster export --config acme/gateway.toml
      edge-fi roster export --format csv --out members.csv
    """
    if as_json and kind == "csv":
        raise click.UsageError("--json and --format csv do not go together")
    with opened(path) as gateway:
        lines, version = _lines(gateway), gateway.state.roster().version
        members = [lines.member(its) for its in gateway.state.entries()]
    if kind == "csv":
        text = as_csv(members)
    else:
        fields = {"federation": gateway.identity.federation, "version": version, "members": members}
        text = json.dumps(fields) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise click.FileError(str(out), error.strerror) from None
    click.echo(f"{out}  {len(members)} members, present and former", err=as_json)


@roster.command()
@config_option
@click.option("--task", "name", help="Of this task alone.")
@json_option
def contribution(path: Path, name: str | None, as_json: bool) -> None:
    """Show what each member was worth to the others in the latest rounds, as the gateway computed it.

    \b
    Examples:
      edge-fi roster contribution --config acme/gateway.toml
      edge-fi roster contribution --task digits --json
    """
    with opened(path) as gateway:
        lines = _lines(gateway)
        numbers = {its: number for number, its in lines.tasks.items()}
        if name is not None and name not in numbers:
            raise ConfigError(f"there is no task {name}: {', '.join(numbers)}")
        ids = {member.index: member.id for member in gateway.state.roster().members}
        worths = [
            (ids[its.member], its)
            for its in gateway.state.panels.worths()
            if its.member in ids and (name is None or its.task == numbers[name])
        ]
    worths.sort(key=lambda one: (one[1].task, -one[1].contribution.value))
    if as_json:
        fields = [lines.contribution(id, its) for id, its in worths]  # noqa: A001
        click.echo(json.dumps({"contributions": fields, "note": _WORTH}))
        return
    click.echo(lines.contributions(worths) if worths else "nothing is known yet: it takes 40 rounds")
    click.echo(f"\n{_WORTH}", err=True)


@roster.command("trust-clock")
@config_option
@json_option
def trust_clock(path: Path, as_json: bool) -> None:
    """Say that this machine's clock is right, and was wrong when the state was last changed.

    Invites that were made at that wrong time are withdrawn.

    \b
    Example:
      edge-fi roster trust-clock --config acme/gateway.toml
    """
    with opened(path) as gateway:
        withdrawn = gateway.state.trust_clock()
        gateway.follow()
    if as_json:
        click.echo(json.dumps({"withdrawn": [{"number": its.number, "id": its.id} for its in withdrawn]}))
        return
    click.echo(f"the clock is trusted; {len(withdrawn)} invites of the wrong time are withdrawn")


def _named(member: Member) -> str:
    return f"{member.role} {member.id} (index {member.index})"


def _lines(gateway: Opened) -> Lines:
    """What shows its members."""
    tasks = config.load_tasks(gateway.path.parent, gateway.settings.tasks)
    names = {task.number: name for name, task in tasks.items()}
    expelled: dict[int, list[str]] = {}
    for task, indices in gateway.state.panels.expelled().items():
        for index in indices:
            expelled.setdefault(index, []).append(names.get(task, str(task)))
    return Lines(names, gateway.state.standing(), expelled)
