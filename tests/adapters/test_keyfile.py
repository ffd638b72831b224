"""Key files: made once, readable by their owner alone, wrong ones named without their content."""

import errno
import os
import stat
from pathlib import Path

import pytest

from edge_fi.adapters import keyfile
from edge_fi.errors import KeyFileError
from edge_fi.messages import ROLES
from edge_fi.session import GatewayIdentity, Identity
from firmware_sim.stream import Stream


@pytest.fixture
def gateway(tmp_path: Path) -> GatewayIdentity:
    return keyfile.make_gateway(tmp_path / "gateway.key", "acme", Stream("gateway"))


@pytest.fixture
def path(tmp_path: Path, gateway: GatewayIdentity) -> Path:
    """The key file of a member that was accepted."""
    keyfile.accept_member(tmp_path / "pi-07.key", make(tmp_path / "pi-07.key", gateway), 7)
    return tmp_path / "pi-07.key"


def make(path: Path, gateway: GatewayIdentity, member: str = "pi-07", role: str = "device") -> Identity:
    return keyfile.make_member(
        path, "acme", role, member, gateway=gateway.static.public, entropy=Stream(member)
    )


def test_what_is_written_is_what_is_read(path: Path, gateway: GatewayIdentity) -> None:
    assert keyfile.read_gateway(path.with_name("gateway.key")) == gateway
    device = keyfile.read_member(path, "device")
    assert (device.id, device.index, device.role, device.federation) == ("pi-07", 7, "device", "acme")
    assert device.gateway_static == gateway.static.public


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_a_key_of_its_own_kind(tmp_path: Path, gateway: GatewayIdentity, role: str) -> None:
    path = tmp_path / "x.key"
    keyfile.accept_member(path, make(path, gateway, "x", role), 1)
    assert keyfile.read_member(path, role).role == role
    for other in set(ROLES) - {role}:
        with pytest.raises(KeyFileError, match=f"kind is '{role}', but a {other} key is needed here"):
            keyfile.read_member(path, other)


def test_a_member_that_was_not_accepted_is_told_to_join(tmp_path: Path, gateway: GatewayIdentity) -> None:
    path = tmp_path / "pi-07.key"
    made = make(path, gateway)
    with pytest.raises(KeyFileError, match="pi-07 has not joined yet: run 'edge-fi device join' again"):
        keyfile.read_member(path, "device")
    # The very key: an attempt to join that was interrupted goes on with it.
    assert keyfile.read_member(path, "device", is_joining=True) == made


def test_a_new_signing_key_leaves_the_gateway_what_it_is(path: Path, gateway: GatewayIdentity) -> None:
    rotated = keyfile.rotate_signing(path.with_name("gateway.key"), Stream("rotated"))
    assert rotated.static == gateway.static and rotated.federation == gateway.federation
    assert rotated.signing.public != gateway.signing.public
    assert keyfile.read_gateway(path.with_name("gateway.key")) == rotated


def test_members_that_one_hand_introduces_are_members(tmp_path: Path, gateway: GatewayIdentity) -> None:
    names = [("device", "pi-01"), ("client", "laptop")]
    first, second = keyfile.introduce(tmp_path, names, gateway, Stream("hand"))
    device = keyfile.read_member(tmp_path / "pi-01.key", "device")
    assert (first.id, first.index, first.role, first.public) == ("pi-01", 1, "device", device.static.public)
    assert (second.id, second.index, second.role) == ("laptop", 2, "client")


def test_every_file_is_its_owners_alone(path: Path) -> None:
    keyfile.rotate_signing(path.with_name("gateway.key"), Stream("rotated"))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_use_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:04o}, others may read it: run chmod 600"):
        keyfile.read_member(path, "device")


def test_nothing_is_overwritten(path: Path, gateway: GatewayIdentity) -> None:
    before = [file.read_bytes() for file in sorted(path.parent.iterdir())]
    with pytest.raises(KeyFileError, match="exists and is not overwritten: move it away first"):
        keyfile.make_gateway(path.with_name("gateway.key"), "acme", Stream("other"))
    with pytest.raises(KeyFileError, match="exists and is not overwritten"):
        make(path, gateway)
    assert [file.read_bytes() for file in sorted(path.parent.iterdir())] == before


@pytest.mark.parametrize("name", ["Pi", "pi/1", "pi+", "#", "gateway", "", "a" * 25, "-pi", "pi 1", "pí"])
def test_an_id_that_is_no_topic_level_is_refused(tmp_path: Path, gateway: GatewayIdentity, name: str) -> None:
    with pytest.raises(KeyFileError, match="must be 1 to 24"):
        make(tmp_path / "x.key", gateway, name)
    assert not (tmp_path / "x.key").exists()


def test_a_federation_name_is_checked(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="federation 'Acme!'"):
        keyfile.make_gateway(tmp_path / "gateway.key", "Acme!", Stream("x"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "device"', 'kind = "client"', "kind is 'client', but a device key is needed"),
        ("index = 7", "index = -1", "index must be"),
        ("index = 7", "index = 65536", "index must be"),
        ("index = 7", 'index = "7"', "index must be"),
        ("index = 7", "index = true", "index must be"),
        ('id = "pi-07"', 'id = "../etc"', "id '../etc' must be"),
        ('id = "pi-07"', "", "id is missing"),
        ('federation = "acme"', 'federation = "A"', "federation 'A' must be"),
        ('private = "', 'private = "!', "private must be 32 bytes in base64"),
        ('gateway_static = "', 'gateway_static = "AAAA', "gateway_static must be 32 bytes"),
    ],
)
def test_a_wrong_field_is_named_without_its_secret(path: Path, old: str, new: str, words: str) -> None:
    content = path.read_text()
    secret = content.split('private = "')[1].split('"')[0]
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(KeyFileError) as caught:
        keyfile.read_member(path, "device")
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert secret not in str(caught.value)


def test_a_file_that_does_not_parse_is_not_quoted(path: Path) -> None:
    path.write_text("private = secret-without-quotes")
    with pytest.raises(KeyFileError) as caught:
        keyfile.read_member(path, "device")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        KeyFileError, match=r"nope\.key: No such file or directory; 'edge-fi gateway new' makes one"
    ):
        keyfile.read_gateway(tmp_path / "nope.key")
    with pytest.raises(KeyFileError, match="'edge-fi client join' makes one"):
        keyfile.read_member(tmp_path / "nope.key", "client")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="cannot write"):
        keyfile.make_gateway(tmp_path / "file" / "gateway.key", "acme", Stream("x"))


def test_a_link_to_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").symlink_to(tmp_path / "gone")
    with pytest.raises(KeyFileError, match="exists and is not overwritten"):
        keyfile.make_gateway(tmp_path / "gateway.key", "acme", Stream("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.key"]


def test_a_key_that_cannot_be_written_anew_is_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, before = path.with_name("gateway.key"), path.with_name("gateway.key").read_bytes()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(KeyFileError, match=r"cannot write .*gateway\.key: No space left on device"):
        keyfile.rotate_signing(key, Stream("rotated"))
    assert key.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["gateway.key", "pi-07.key"]


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match=r"cannot write .*gateway\.key: No space left on device"):
        keyfile.make_gateway(tmp_path / "gateway.key", "acme", Stream("x"))
    assert not list(tmp_path.iterdir())


def test_a_path_is_shown_without_detours(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError) as caught:
        keyfile.read_member(tmp_path / "configs" / ".." / "pi-07.key", "device")
    assert f"cannot read key file {tmp_path / 'pi-07.key'}: " in str(caught.value)
