"""Roles as services of systemd: the unit that is written, what it allows, and what is refused."""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edge_fi
from edge_fi.adapters import keyfile
from edge_fi.cli import service
from edge_fi.cli.main import main
from edge_fi.cli.unit import Service, render
from edge_fi.errors import ConfigError

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(edge_fi.__file__).parents[1]
ASSETS = ROOT / "edge_fi" / "demo" / "assets"
ME = pwd.getpwuid(os.getuid()).pw_name

ONE = Service(
    role="device",
    program=Path("/opt/edge/bin/edge-fi"),
    config=Path("/srv/acme/device.toml"),
    user="pi",
    code=(Path("/opt/edge"), Path("/usr")),
    reads=(Path("/srv/acme"),),
    writes=(),
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["edge-fi", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """The configuration file of a device, whose model is elsewhere."""
    folder = tmp_path / "device"
    gateway = keyfile.make_gateway(tmp_path / "gateway.key", "acme", os.urandom)
    keyfile.introduce(folder, [("device", "pi-01")], gateway, os.urandom)
    shutil.copy(ASSETS / "digits.toml", folder)
    (tmp_path / "models").mkdir()
    shutil.copy(ASSETS / "pi-01.onnx", tmp_path / "models")
    path = folder / "device.toml"
    path.write_text('key = "pi-01.key"\ntask = "digits.toml"\n[model]\npath = "../models/pi-01.onnx"\n')
    return path


@pytest.fixture
def gateway(tmp_path: Path, run: Run) -> Path:
    """The configuration file of a gateway."""
    out = tmp_path / "acme"
    assert (
        run("gateway", "new", "--federation", "acme", "--task", ASSETS / "digits.toml", "--out", out)[0] == 0
    )
    return out / "gateway.toml"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    folder = tmp_path / "units"
    folder.mkdir()
    return folder


def settings(unit: str) -> dict[str, list[str]]:
    """Every setting of a unit file, with all its values."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


# What is written


@pytest.mark.parametrize("role", ["device", "gateway"])
def test_a_unit_is_written_and_the_next_commands_are_told(
    run: Run, request: pytest.FixtureRequest, units: Path, role: str
) -> None:
    path: Path = request.getfixturevalue(role)
    code, out, err = run(role, "install-service", "--config", path, "--unit-dir", units)
    assert (code, err) == (0, "")
    name = f"edge-fi-{role}.service"
    assert out.splitlines() == [
        f"{units}/{name}  written; the {role} runs as {ME}",
        "next:",
        "  sudo systemctl daemon-reload",
        f"  sudo systemctl enable --now {name}",
    ]
    unit = settings((units / name).read_text())
    program = Path(sys.executable).with_name("edge-fi")
    assert unit["ExecStart"] == [f"{program} {role} run --config {path}"]
    assert unit["User"] == [ME]
    assert unit["Type"] == ["notify"] and unit["NotifyAccess"] == ["main"] and unit["WatchdogSec"] == ["60"]
    assert unit["Restart"] == ["on-failure"] and unit["RestartPreventExitStatus"] == ["2 3 4 5 8"]
    assert oct((units / name).stat().st_mode & 0o777) == "0o644"


def test_with_json_the_same_is_an_object(run: Run, device: Path, units: Path) -> None:
    code, out, _ = run("device", "install-service", "--config", device, "--unit-dir", units, "--json")
    name = "edge-fi-device.service"
    assert code == 0 and json.loads(out) == {
        "unit": f"{units}/{name}",
        "user": ME,
        "started": False,
        "next": ["systemctl daemon-reload", f"systemctl enable --now {name}"],
    }


def test_a_unit_that_is_only_shown_is_the_one_that_would_be_written(
    run: Run, device: Path, units: Path
) -> None:
    arguments = ("device", "install-service", "--config", device, "--unit-dir", units)
    _, shown, _ = run(*arguments, "--print")
    assert list(units.iterdir()) == []
    _, shown_as_json, _ = run(*arguments, "--print", "--json")
    run(*arguments)
    written = (units / "edge-fi-device.service").read_text()
    assert written == shown == json.loads(shown_as_json)["content"]


def test_a_relative_path_becomes_absolute(
    run: Run, device: Path, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(device.parent)
    code, _, _ = run("device", "install-service", "--unit-dir", units)
    unit = settings((units / "edge-fi-device.service").read_text())
    assert code == 0 and unit["ExecStart"][0].endswith(f" --config {device}")


def test_the_same_service_can_be_installed_again_and_another_not_over_it(
    run: Run, device: Path, units: Path
) -> None:
    arguments = ("device", "install-service", "--unit-dir", units, "--config")
    assert run(*arguments, device)[0] == run(*arguments, device)[0] == 0
    other = device.with_name("other.toml")
    shutil.copy(device, other)
    code, _, err = run(*arguments, other)
    assert code == 3 and "edge-fi-device.service is the service of another configuration" in err


# What the service may touch


def test_a_device_reads_its_files_and_writes_nothing(run: Run, device: Path, tmp_path: Path) -> None:
    _, shown, _ = run("device", "install-service", "--config", device, "--print")
    unit = settings(shown)
    bound = {str(device.parent), str(tmp_path / "models" / "pi-01.onnx")}
    assert bound <= set(unit["BindReadOnlyPaths"])
    assert "BindPaths" not in unit and "ReadWritePaths" not in unit


def test_a_gateway_writes_its_folder_and_nothing_else(run: Run, gateway: Path) -> None:
    _, shown, _ = run("gateway", "install-service", "--config", gateway, "--print")
    unit = settings(shown)
    assert unit["BindPaths"] == [str(gateway.parent)]
    assert not any(str(gateway.parent) in path for path in unit.get("BindReadOnlyPaths", []))


def test_a_gateways_state_elsewhere_can_be_written_too(run: Run, gateway: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (gateway.parent / "state.db").rename(tmp_path / "kept" / "state.db")
    gateway.write_text(gateway.read_text().replace('"state.db"', '"../kept/state.db"'))
    _, shown, _ = run("gateway", "install-service", "--config", gateway, "--print")
    assert settings(shown)["BindPaths"] == [str(gateway.parent), str(tmp_path / "kept")]


def paths(
    *, code: tuple[str, ...] = (), reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()
) -> list[str]:
    """The lines that say which paths the service has."""
    unit = render(
        Service(
            role="gateway",
            program=ONE.program,
            config=ONE.config,
            user="pi",
            code=tuple(map(Path, code)),
            reads=tuple(map(Path, reads)),
            writes=tuple(map(Path, writes)),
        )
    )
    return re.findall(r"^(?:Bind|ReadWrite|BindReadOnly)Paths=.*$", unit, re.MULTILINE)


def test_what_is_not_hidden_need_not_be_bound() -> None:
    assert paths(code=("/usr", "/opt/edge"), reads=("/srv/acme", "/etc/ssl/ca.pem")) == []
    assert paths(writes=("/srv/acme",)) == ["ReadWritePaths=/srv/acme"]


def test_of_the_home_folders_there_is_only_what_is_needed() -> None:
    assert paths(code=("/home/pi/venv", "/usr"), reads=("/home/pi/acme", "/home/pi/acme/key"), writes=()) == [
        "BindReadOnlyPaths=/home/pi/acme",
        "BindReadOnlyPaths=/home/pi/venv",
    ]


def test_a_program_inside_the_folder_that_may_be_written_stays_as_it_is() -> None:
    assert paths(code=("/home/pi/acme/.venv",), reads=("/home/pi/acme/a",), writes=("/home/pi/acme",)) == [
        "BindReadOnlyPaths=/home/pi/acme/.venv",
        "BindPaths=/home/pi/acme",
    ]
    assert paths(code=("/srv/acme/.venv",), writes=("/srv/acme",)) == [
        "BindReadOnlyPaths=/srv/acme/.venv",
        "ReadWritePaths=/srv/acme",
    ]


def test_a_path_with_links_in_it_is_bound_with_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert paths(reads=(str(tmp_path / "link"),)) == [
        f"BindReadOnlyPaths={tmp_path}/link",
        f"BindReadOnlyPaths={tmp_path}/real",
    ]


@pytest.mark.parametrize("hidden", ["/root", "/home", "/tmp"])
def test_a_whole_home_is_not_bound(hidden: str) -> None:
    with pytest.raises(ConfigError, match=f"a service cannot have all of {hidden}: move"):
        paths(reads=(hidden,))


@pytest.mark.parametrize(
    "name", ["a b", 'a"b', "a%b", "a$b", "a:b", "a\\b", "a;b", "a\nUser=root", "a\u2028b"]
)
def test_a_name_that_systemd_would_read_in_another_way_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="has characters that systemd reads in another way"):
        paths(reads=(f"/srv/{name}",))


# What systemd itself says of it

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


@needs_systemd
@pytest.mark.parametrize("role", ["device", "gateway"])
def test_systemd_reads_the_unit_without_complaint(
    run: Run, request: pytest.FixtureRequest, units: Path, role: str
) -> None:
    run(role, "install-service", "--config", request.getfixturevalue(role), "--unit-dir", units)
    unit = units / f"edge-fi-{role}.service"
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    # Of units that are not ours it may complain as well.
    complaints = [line for line in verified.stderr.splitlines() if "edge-fi" in line]
    assert complaints == []


@needs_systemd
def test_verification_does_find_a_fault(tmp_path: Path) -> None:
    unit = tmp_path / "edge-fi-device.service"
    unit.write_text(render(ONE).replace("WatchdogSec=60", "WatchdogSec=often"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    assert "Failed to parse" in verified.stderr


@needs_systemd
@pytest.mark.parametrize("role", ["device", "gateway"])
def test_systemd_finds_the_service_little_exposed(
    run: Run, request: pytest.FixtureRequest, units: Path, role: str
) -> None:
    run(role, "install-service", "--config", request.getfixturevalue(role), "--unit-dir", units)
    unit = units / f"edge-fi-{role}.service"
    unit.write_text(unit.read_text().replace(f"User={ME}", "User=daemon"))  # tests may run as root
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    exposure = re.search(r"Overall exposure level for .*: (\d+\.\d+)", judged.stdout)
    assert exposure and float(exposure[1]) <= 1.5, judged.stdout + judged.stderr


_WITHOUT_WRITABLE_CODE = """
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if "confined" not in sys.argv:
    if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
        sys.exit(77)
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "confined"])
import mmap
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
    sys.exit("the kernel allows it")
except PermissionError:
    pass
from edge_fi.adapters.onnx import OnnxModel
from edge_fi.demo.members import ASSETS, heldout, members, task
for member in members():
    model = OnnxModel.load(ASSETS / member.model, task(), labels=member.labels, scores=member.scores)
    assert all(scores is not None for scores in model.infer(heldout()[0][:8]))
print("inferred")
"""


def test_a_model_runs_without_memory_that_is_written_and_executed() -> None:
    """What MemoryDenyWriteExecute refuses, the kernel can refuse without systemd (6.3 and later)."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_WRITABLE_CODE], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert (done.returncode, done.stdout) == (0, "inferred\n"), done.stderr


# What is refused


def test_without_the_rights_of_root_the_line_with_sudo_is_told(
    run: Run, device: Path, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = units / "edge-fi-device.service"
    if os.geteuid() == 0:  # whom no mode keeps out

        def refuse(self: Path, *_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "write_text", refuse)
    else:
        units.chmod(0o500)
    code, _, err = run("device", "install-service", "--config", device, "--unit-dir", units)
    program = Path(sys.executable).with_name("edge-fi")
    assert code == 3 and err == (
        f"edge-fi: only root may write {target}: run 'sudo {program} device install-service "
        f"--config {device} --user {ME}'\n"
    )


def test_a_machine_without_systemd_is_told(run: Run, device: Path, tmp_path: Path) -> None:
    code, _, err = run("device", "install-service", "--config", device, "--unit-dir", tmp_path / "no")
    assert (
        code == 3 and f"there is no folder {tmp_path}/no: is systemd this machine's service manager?" in err
    )


def test_nothing_is_started_where_systemd_does_not_run(
    run: Run, device: Path, units: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_BOOTED", tmp_path / "no")
    code, _, err = run("device", "install-service", "--config", device, "--unit-dir", units, "--now")
    assert code == 3 and "systemd does not run here: leave --now out" in err
    assert list(units.iterdir()) == []


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in its place that writes down how it is called; which ends as it is told to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "systemctl").write_text(
        '#!/bin/sh\necho "$@" >> "$0.called"\n[ ! -e "$0.fails" ] || { cat "$0.fails" >&2; exit 1; }\n'
    )
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(service, "_BOOTED", tmp_path)
    return folder / "systemctl"


def test_with_now_systemd_is_told_to_start_it(run: Run, device: Path, units: Path, systemctl: Path) -> None:
    code, out, _ = run("device", "install-service", "--config", device, "--unit-dir", units, "--now")
    assert code == 0 and out.splitlines()[1:] == ["it runs; its log: journalctl -u edge-fi-device.service"]
    called = systemctl.with_name("systemctl.called").read_text().splitlines()
    assert called == ["--quiet daemon-reload", "--quiet enable --now edge-fi-device.service"]


def test_what_systemd_answers_to_a_start_that_fails_is_passed_on(
    run: Run, device: Path, units: Path, systemctl: Path
) -> None:
    systemctl.with_name("systemctl.fails").write_text("Job for it failed.\nSee elsewhere.\n")
    code, _, err = run("device", "install-service", "--config", device, "--unit-dir", units, "--now")
    assert code == 3 and err == (
        "edge-fi: 'systemctl daemon-reload' failed: Job for it failed.; its log says more: "
        "journalctl -u edge-fi-device.service\n"
    )


def test_a_configuration_that_is_missing_or_wrong_is_named(run: Run, device: Path, units: Path) -> None:
    arguments = ("device", "install-service", "--unit-dir", units, "--config")
    code, _, err = run(*arguments, device.with_name("no.toml"))
    assert code == 3 and f"cannot read {device.with_name('no.toml')}: No such file" in err
    device.write_text("key = 7\n")
    assert run(*arguments, device)[0] == 3
    assert list(units.iterdir()) == []


def test_a_file_that_the_configuration_names_must_be_there(run: Run, device: Path, units: Path) -> None:
    (device.parent.parent / "models" / "pi-01.onnx").unlink()
    code, _, err = run("device", "install-service", "--config", device, "--unit-dir", units)
    assert code == 3 and "models/pi-01.onnx, which is not there: put it there first" in err


def test_an_account_that_is_none_is_named(run: Run, device: Path, units: Path) -> None:
    code, _, err = run(
        "device", "install-service", "--config", device, "--unit-dir", units, "--user", "nobody-1"
    )
    assert code == 3 and "there is no account nobody-1: name an account of this machine with --user" in err


def test_an_account_that_cannot_read_the_key_is_told_how_it_can(run: Run, device: Path, units: Path) -> None:
    code, _, err = run(
        "device", "install-service", "--config", device, "--unit-dir", units, "--user", "daemon"
    )
    key = device.with_name("pi-01.key")
    assert code == 3 and f"{key} does not belong to daemon" in err and f"'sudo chown daemon {key}'" in err


def test_the_variables_of_this_shell_are_not_the_services(
    run: Run, device: Path, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be taken to be complete, and the service would not find its model."""
    monkeypatch.setenv("EDGE_FI_MODEL__PATH", str(device.parent.parent / "models" / "pi-01.onnx"))
    device.write_text('key = "pi-01.key"\ntask = "digits.toml"\n[model]\n')
    code, _, err = run("device", "install-service", "--config", device, "--unit-dir", units)
    assert code == 3 and "key model.path is missing" in err
