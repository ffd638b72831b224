"""What `edge-fi <role> join` leaves in a new member's folder beside its key: configuration and tasks."""

import json
import os
from pathlib import Path

from edge_fi import config
from edge_fi.errors import ConfigError
from edge_fi.messages import Task
from edge_fi.wire.invites import Invite
from edge_fi.wire.payloads import Accept

Options = dict[str, str | None]
"""What the user has said of the device's model and task, by the names of the command's options."""


def refuse_another_member(path: Path, invite: Invite) -> None:
    """One folder, one member of a role: its configuration is kept, and names one key."""
    if path.exists():
        its_key = config.load(path, config.MEMBERS[invite.role], {}).key
        if its_key != f"{invite.id}.key":
            raise ConfigError(
                f"{path} is of another member, with the key {its_key}: choose another folder with --out, "
                "or move it away"
            )


def configure(path: Path, invite: Invite, accept: Accept, about_model: Options) -> None:
    """Write task files and the role's configuration, which is kept where there is one."""
    tasks, wanted = path.parent / "tasks", about_model.get("task")
    names = [task.name for task in accept.tasks]
    if wanted is not None and wanted not in names and not (tasks / f"{wanted}.toml").exists():
        raise ConfigError(
            f"federation {invite.federation} has no task {wanted!r} for {invite.id}, but "
            f"{', '.join(names) or 'none'}: give the command with one of these; the invite is good for it"
        )
    for task, features in zip(accept.tasks, accept.features, strict=True):
        write(tasks / f"{task.name}.toml", task_content(task))
        if features:
            write_bytes(tasks / f"{task.name}.features", features)
    if not path.exists():
        write(path, _configuration(invite, accept, about_model))


def _configuration(invite: Invite, accept: Accept, about_model: Options) -> str:
    names = [task.name for task in accept.tasks]
    lines = [
        f"# {invite.role} {invite.id} of federation {invite.federation}: made by edge-fi {invite.role} join"
    ]
    lines += ["# Paths are relative to this file.", "", f'key = "{invite.id}.key"']
    if invite.role == "device":
        wanted = about_model.get("task") or (names[0] if names else "task")
        lines.append(f'task = "tasks/{wanted}.toml"')
        lines += _model_section(about_model)
    elif invite.role == "client":
        lines.append(f"tasks = {json.dumps([f'tasks/{name}.toml' for name in names])}")
    lines += ["", "[broker]", f"host = {json.dumps(invite.host)}", f"port = {invite.port}"]
    if invite.tls:
        lines.append("tls = true")
    if invite.pin:
        lines.append('ca = "ca.pem"')
    return "\n".join(lines) + "\n"


def _model_section(about_model: Options) -> list[str]:
    model, labels = about_model.get("model"), about_model.get("labels")
    path = os.path.abspath(model) if model else "model.onnx"
    lines = ["", "[model]", f"path = {json.dumps(path)}"]
    if labels:
        lines.append(f"labels = {json.dumps(labels.split(','))}")
    lines += [
        f"{key} = {json.dumps(about_model[key])}" for key in ("scores", "output") if about_model.get(key)
    ]
    return lines


def absent_maps(path: Path, accept: Accept) -> list[Path]:
    """Feature maps that task files name, and that are not there: ACCEPT had no room for them."""
    named = [path.parent / "tasks" / f"{task.name}.features" for task in accept.tasks if task.features]
    return [its for its in named if not its.exists()]


def task_content(task: Task) -> str:
    """A task file."""
    fields: dict[str, object] = {
        "name": task.name,
        "number": task.number,
        "labels": list(task.labels),
        "shape": list(task.shape),
        "dtype": task.dtype,
        "log_weight": list(task.log_weight),
    }
    if task.features:
        fields["features"] = f"{task.name}.features"
    # JSON of names and lists is TOML too, but for DEL, which TOML wants escaped.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(lines).replace("\x7f", "\\u007f") + "\n"


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file, and the folders above it. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a mode is given to what is made
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def write(path: Path, content: str) -> None:
    """Write a file that is no secret, and the folders above it. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
