"""`edge-fi broker config | renew | check`: a broker of one's own, that lets nobody do more than it must."""

import json
import shlex
from pathlib import Path
from typing import Any

import click

from edge_fi import config
from edge_fi.cli import brokercheck, brokerfiles
from edge_fi.cli.owner import config_option, json_option, opened
from edge_fi.errors import ConfigError

KINDS = ("mosquitto", "nats")
FAILED = 10  # `broker check` found what should not be


@click.group()
def broker() -> None:
    """Configure the federation's broker, and check what it lets whom do."""


@broker.command("config")
@click.argument("kind", type=click.Choice(KINDS))
@config_option
@click.option(
    "--host", "hosts", multiple=True, help="A further name or address of the broker, for its certificate."
)
@click.option("--listen", default="", help="The address to listen on. Default: every one of this machine.")
@click.option(
    "--certificate", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Your own, in PEM."
)
@click.option(
    "--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The key to it, in PEM."
)
@json_option
def make(
    kind: str,
    path: Path,
    hosts: tuple[str, ...],
    listen: str,
    certificate: Path | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Write everything a mosquitto or NATS broker needs: TLS, an account and its rights for each member.

    The certificate is made by an authority of the federation's own, whose pin is in every invite, unless
    you give one. From then on the accounts follow the roster by themselves.

    \b
    Examples:
      edge-fi broker config mosquitto --config acme/gateway.toml
      edge-fi broker config nats --config acme/gateway.toml --host broker.example.org
      edge-fi broker config mosquitto --certificate fullchain.pem --key privkey.pem
    """
    brokerfiles.need_extra()
    from broker import certificates, production

    settings = config.load(path, config.GatewayConfig)
    if not settings.broker.tls:
        raise ConfigError(
            f"{path}: this broker speaks TLS alone: set tls = true in [broker], and ca = "
            f'"{settings.broker_files}/ca.pem" unless the certificate is your own'
        )
    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key go together")
    folder = path.parent / settings.broker_files
    how: dict[str, Any] = {"kind": kind, "port": settings.broker.port, "address": listen}
    with opened(path) as gateway:
        if certificate is not None and key is not None:
            how |= {"certificate": str(certificate.resolve()), "key": str(key.resolve())}
        else:
            names = list(dict.fromkeys([settings.broker.host, *hosts, "localhost", "127.0.0.1"]))
            if (folder / certificates.AUTHORITY).exists():
                certificates.renew(folder, names)
            else:
                certificates.make(folder, gateway.identity.federation, names)
        changed = brokerfiles.make(path, settings, gateway.identity, gateway.state.roster, how)
    is_running = production.reload(folder, kind)
    command = shlex.join(production.command(folder, kind))
    if as_json:
        files = sorted(str(file) for file in changed)
        click.echo(
            json.dumps({"folder": str(folder), "changed": files, "start": command, "reloaded": is_running})
        )
        return
    click.echo(f"{folder}  made: {kind} over TLS on port {settings.broker.port}, accounts from the roster")
    click.echo("the running broker has read it" if is_running else f"start it: {command}")


@broker.command("renew")
@config_option
@json_option
def renew(path: Path, as_json: bool) -> None:
    """Make a new certificate for the broker, by the same authority, and have the broker read it.

    Open connections stay, and members need nothing new. A certificate is good for a year and a month.

    \b
    Example:
      edge-fi broker renew --config acme/gateway.toml
    """
    brokerfiles.need_extra()
    from broker import certificates, production

    settings = config.load(path, config.GatewayConfig)
    folder = path.parent / settings.broker_files
    how = _note(folder, path)
    if "certificate" in how:
        raise ConfigError(f"the certificate {how['certificate']} is your own: renew it where it came from")
    certificates.renew(folder)
    is_running = production.reload(folder, how["kind"])
    expires = certificates.expires(folder / certificates.SERVER)
    if as_json:
        click.echo(json.dumps({"expires": expires.isoformat(), "reloaded": is_running}))
        return
    click.echo(f"{folder / certificates.SERVER}  new, good until {expires:%Y-%m-%d}")
    click.echo("the running broker has read it" if is_running else "no broker runs on this folder here")


@broker.command("check")
@config_option
@json_option
def check(path: Path, as_json: bool) -> int:
    """Try what each party can do on the broker: members, who holds an invite, strangers, former members.

    Judged by what is delivered, since brokers acknowledge what they refuse. Members that are connected
    stay so; what they hear of it they drop.

    \b
    Example:
      edge-fi broker check --config acme/gateway.toml
    """
    with opened(path) as gateway:
        findings = brokercheck.run(gateway)
    if as_json:
        click.echo(json.dumps(findings.as_fields()))
    else:
        click.echo(findings.as_text())
    return 0 if findings.is_good else FAILED


def _note(folder: Path, path: Path) -> dict[str, Any]:
    note = brokerfiles.read_note(folder)
    if note is None:
        raise ConfigError(
            f"there are no broker files of ours in {folder}: run 'edge-fi broker config' for {path}"
        )
    return note
