"""`edge-fi keys new`: key files for a gateway, its devices and its clients."""

import json
import os
from pathlib import Path

import click

from edge_fi.adapters import keyfile


@click.group()
def keys() -> None:
    """Make keys. Private ones get mode 0600 and are never overwritten."""


@keys.group()
def new() -> None:
    """Make a new key: for a gateway, a device or a client."""


@new.command("gateway")
@click.option("--federation", required=True, help="The federation's name: a-z, 0-9 and '-', 16 at most.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("keys"),
    show_default=True,
    help="Folder for gateway.key and gateway.pub.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def new_gateway(federation: str, out: Path, as_json: bool) -> None:
    """Make the keys of a gateway, and so a federation.

    \b
    Example:
      edge-fi keys new gateway --federation acme
    """
    _tell(keyfile.make_gateway(out, federation, os.urandom), as_json)


def _member_command(role: str) -> click.Command:
    @click.command(role)
    @click.argument("id")
    @click.option(
        "--gateway",
        type=click.Path(path_type=Path),
        default=Path("keys/gateway.pub"),
        show_default=True,
        help="The gateway's public keys.",
    )
    @click.option(
        "--roster",
        type=click.Path(path_type=Path),
        default=Path("keys/roster"),
        show_default=True,
        help="The gateway's folder of public keys; the new one is added.",
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=Path("keys"),
        show_default=True,
        help="Folder for the private key.",
    )
    @click.option("--index", type=int, help="Number in the federation. Default: the next free one.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    def new_member(id: str, gateway: Path, roster: Path, out: Path, index: int | None, as_json: bool) -> None:  # noqa: A002 - the argument's name in the help
        paths = keyfile.make_member(
            out, role, id, gateway=gateway, roster=roster, index=index, entropy=os.urandom
        )
        _tell(paths, as_json)
        if not as_json:
            click.echo("a running gateway learns of it when it is started again")

    new_member.help = (
        f"Make the key of a {role}, and its file in the roster.\n\n"
        "A gateway reads its roster when it starts: start a running one again.\n\n\b\nExample:\n"
        f"  edge-fi keys new {role} {'pi-07' if role == 'device' else 'laptop'}"
    )
    return new_member


for _role in keyfile.ROLES:
    new.add_command(_member_command(_role))


def _tell(paths: list[Path], as_json: bool) -> None:
    private, public = paths
    if as_json:
        click.echo(json.dumps({"private": str(private), "public": str(public)}))
        return
    click.echo(f"{private}  private: keep it on its machine, readable by its owner alone")
    click.echo(f"{public}  public")
