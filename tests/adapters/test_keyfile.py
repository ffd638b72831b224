"""Key files: made once, readable by their owner alone, wrong ones named without their content."""

import errno
import os
import stat
from pathlib import Path

import pytest

from edge_fi.adapters import keyfile
from edge_fi.errors import KeyFileError
from firmware_sim.stream import Stream


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keyfile.make_gateway(tmp_path, "acme", Stream("gateway"))
    return tmp_path


def make(folder: Path, member: str, role: str = "device", index: int | None = None) -> list[Path]:
    return keyfile.make_member(
        folder,
        role,
        member,
        gateway=folder / "gateway.pub",
        roster=folder / "roster",
        index=index,
        entropy=Stream(member),
    )


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    make(folder, "pi-07")
    make(folder, "laptop", "client")
    gateway = keyfile.read_gateway(folder / "gateway.key")
    device = keyfile.read_member(folder / "pi-07.key", "device")
    assert (device.id, device.index, device.role, device.federation) == ("pi-07", 1, "device", "acme")
    assert device.gateway_static == gateway.static.public
    assert device.gateway_verify == gateway.signing.public
    first, second = keyfile.read_roster(folder / "roster", "acme")
    assert (first.id, first.index, first.role, first.public) == ("pi-07", 1, "device", device.static.public)
    assert (second.id, second.index, second.role) == ("laptop", 2, "client")


def test_private_files_are_their_owners_alone(folder: Path) -> None:
    private, public = make(folder, "pi-07")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "gateway.key").stat().st_mode) == 0o600
    assert b"private" not in public.read_bytes()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_private_file_that_others_may_use_is_refused(folder: Path, mode: int) -> None:
    private, _ = make(folder, "pi-07")
    private.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:04o}, others may read it: run chmod 600"):
        keyfile.read_member(private, "device")


def test_nothing_is_overwritten(folder: Path) -> None:
    before = (folder / "gateway.key").read_bytes()
    with pytest.raises(KeyFileError, match="exists and is not overwritten"):
        keyfile.make_gateway(folder, "acme", Stream("other"))
    assert (folder / "gateway.key").read_bytes() == before
    make(folder, "pi-07")
    with pytest.raises(KeyFileError, match="pi-07 is in the roster"):
        make(folder, "pi-07")


def test_an_index_is_never_given_twice(folder: Path) -> None:
    make(folder, "pi-01", index=2)
    make(folder, "pi-02")
    make(folder, "pi-03")
    assert [member.index for member in keyfile.read_roster(folder / "roster")] == [1, 2, 3]
    with pytest.raises(KeyFileError, match="index 2 is taken"):
        make(folder, "pi-04", index=2)


@pytest.mark.parametrize("index", [0, 65536, -1])
def test_an_index_is_within_its_field(folder: Path, index: int) -> None:
    with pytest.raises(KeyFileError, match="must be 1 to 65535"):
        make(folder, "pi-01", index=index)


@pytest.mark.parametrize("name", ["Pi", "pi/1", "pi+", "#", "gateway", "", "a" * 25, "-pi", "pi 1", "pí"])
def test_an_id_that_is_no_topic_level_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="must be 1 to 24"):
        make(folder, name)


def test_a_federation_name_is_checked(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="federation 'Acme!'"):
        keyfile.make_gateway(tmp_path, "Acme!", Stream("x"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "device"', 'kind = "client"', "kind is 'client', but a device key is needed"),
        ("index = 1", "index = 0", "index must be"),
        ("index = 1", 'index = "1"', "index must be"),
        ("index = 1", "index = true", "index must be"),
        ('id = "pi-07"', 'id = "../etc"', "id '../etc' must be"),
        ('id = "pi-07"', "", "id is missing"),
        ('federation = "acme"', 'federation = "A"', "federation 'A' must be"),
        ('private = "', 'private = "!', "private must be 32 bytes in base64"),
        ('gateway_static = "', 'gateway_static = "AAAA', "gateway_static must be 32 bytes"),
        ('gateway_verify = "', 'verify = "', "gateway_verify must be 32 bytes"),
    ],
)
def test_a_wrong_field_is_named_without_its_secret(folder: Path, old: str, new: str, words: str) -> None:
    private, _ = make(folder, "pi-07")
    content = private.read_text()
    secret = content.split('private = "')[1].split('"')[0]
    assert old in content
    private.write_text(content.replace(old, new, 1))
    with pytest.raises(KeyFileError) as caught:
        keyfile.read_member(private, "device")
    assert words in str(caught.value) and str(private) in str(caught.value)
    assert secret not in str(caught.value)


def test_a_file_that_does_not_parse_is_not_quoted(folder: Path) -> None:
    private, _ = make(folder, "pi-07")
    private.write_text("private = secret-without-quotes")
    with pytest.raises(KeyFileError) as caught:
        keyfile.read_member(private, "device")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        KeyFileError, match=r"nope\.key: No such file or directory; make one with 'edge-fi keys new'"
    ):
        keyfile.read_gateway(tmp_path / "nope.key")
    with pytest.raises(KeyFileError, match="no roster folder"):
        keyfile.read_roster(tmp_path / "roster")


def test_a_roster_of_two_federations_or_two_equal_indices_is_refused(folder: Path) -> None:
    _, public = make(folder, "pi-01")
    with pytest.raises(KeyFileError, match="federation is acme, but the gateway's is other"):
        keyfile.read_roster(folder / "roster", "other")
    copy = public.with_name("pi-02.pub")
    copy.write_text(public.read_text().replace("pi-01", "pi-02"))
    with pytest.raises(KeyFileError, match="index 1 is that of pi-01"):
        keyfile.read_roster(folder / "roster")
    copy.write_text(public.read_text().replace("index = 1", "index = 2"))
    with pytest.raises(KeyFileError, match="id pi-01 is in the roster twice"):
        keyfile.read_roster(folder / "roster")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="cannot write"):
        keyfile.make_gateway(tmp_path / "file", "acme", Stream("x"))


@pytest.mark.parametrize(("moved", "there"), [("gateway.key", "gateway.pub"), ("gateway.pub", "gateway.key")])
def test_half_a_pair_of_gateway_keys_is_never_joined_by_new_ones(
    folder: Path, moved: str, there: str
) -> None:
    (folder / moved).unlink()
    before = (folder / there).read_bytes()
    with pytest.raises(KeyFileError, match=rf"{there} exists and is not overwritten: move it away first"):
        keyfile.make_gateway(folder, "acme", Stream("other"))
    assert [path.name for path in folder.iterdir()] == [there]
    assert (folder / there).read_bytes() == before


def test_a_link_to_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "gateway.pub").symlink_to(tmp_path / "gone")
    with pytest.raises(KeyFileError, match="exists and is not overwritten"):
        keyfile.make_gateway(tmp_path, "acme", Stream("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.pub"]


def test_a_member_whose_roster_cannot_be_written_leaves_no_private_key(folder: Path) -> None:
    (folder / "roster").write_text("a file where a folder should be")
    with pytest.raises(KeyFileError, match=r"cannot write .*roster/pi-07\.pub"):
        make(folder, "pi-07")
    assert not (folder / "pi-07.key").exists()
    (folder / "roster").unlink()
    make(folder, "pi-07")
    assert keyfile.read_member(folder / "pi-07.key", "device").index == 1


def test_a_full_disk_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, *arguments: object, **options: object) -> None:
        os.close(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(KeyFileError, match=r"cannot write .*gateway\.key: No space left on device"):
        keyfile.make_gateway(tmp_path, "acme", Stream("x"))
    assert not list(tmp_path.iterdir())


def test_a_path_is_shown_without_detours(folder: Path) -> None:
    with pytest.raises(KeyFileError) as caught:
        keyfile.read_member(folder / "configs" / ".." / "pi-07.key", "device")
    assert f"cannot read key file {folder / 'pi-07.key'}: " in str(caught.value)
