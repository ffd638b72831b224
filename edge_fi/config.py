"""Configuration: one TOML file a role, checked whole before anything starts.

Any key can be overridden by the environment: `EDGE_FI_BROKER__HOST=...` is `host` in `[broker]`.
Paths are relative to the file they stand in. Errors name the file, the key and the next step.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_fi.errors import ConfigError
from edge_fi.messages import VOTE_FORMS, Form, Task
from edge_fi.round import RoundPolicy
from edge_fi.voting.strategy import STRATEGIES

ENVIRONMENT_PREFIX = "EDGE_FI_"
_FORMS = {form.title: form for form in VOTE_FORMS}
_DEFAULT = RoundPolicy()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Broker(_Section):
    """Where the MQTT broker is."""

    host: str = "127.0.0.1"
    port: int = Field(default=1883, ge=1, le=65535)
    mqtt: Literal["3.1.1", "5"] = "3.1.1"
    """Protocol version. 3.1.1 does everything, and every broker speaks it."""
    keepalive_s: int = Field(default=30, ge=5, le=65535)
    username: str | None = None
    password_file: str | None = None
    """A file whose first line is the password: so that it stands in no configuration."""


class Model(_Section):
    """A device's model."""

    path: str
    labels: list[str] | None = None
    """The task's labels that the outputs stand for, in order; all of them if absent."""
    scores: Literal["logits", "probabilities"] = "logits"
    output: str | None = None
    """Name of the output to read, where the model has several."""


class Round(_Section):
    """When a round is over, and how its votes are pooled."""

    timeout_s: float = _DEFAULT.timeout_s
    quorum: int = _DEFAULT.quorum
    stop_after: int = _DEFAULT.stop_after
    reask_s: float = _DEFAULT.reask_s
    strategy: str = _DEFAULT.strategy
    answer_forms: list[str] = ["label"]


class GatewayConfig(_Section):
    """configs/gateway.toml."""

    key: str
    roster: str
    tasks: list[str] = Field(min_length=1)
    broker: Broker = Broker()
    round: Round = Round()


class DeviceConfig(_Section):
    """configs/device.toml."""

    key: str
    task: str
    model: Model
    answer_forms: list[str] = list(_FORMS)
    broker: Broker = Broker()


class ClientConfig(_Section):
    """configs/client.toml."""

    key: str
    tasks: list[str] = Field(min_length=1)
    broker: Broker = Broker()


class TaskFile(_Section):
    """A task: what a federation agrees on."""

    name: str
    number: int
    labels: list[str]
    shape: list[int]
    dtype: str
    log_weight: list[int] = [-8, 0]
    description: str = ""


S = TypeVar("S", bound=_Section)


def load(path: Path, section: type[S], environment: Mapping[str, str] = os.environ) -> S:
    """Read and check a configuration file. Raises ConfigError."""
    content = _parse(path)
    for name, value in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            _override(content, name, value)
    return _validate(path, section, content)


def load_task(path: Path) -> Task:
    """Read and check a task file. Raises ConfigError."""
    file = _validate(path, TaskFile, _parse(path))
    if len(file.log_weight) != 2:
        raise ConfigError(f"{path}: log_weight must be two whole numbers of nats")
    try:
        return Task(
            name=file.name,
            number=file.number,
            labels=tuple(file.labels),
            shape=tuple(file.shape),
            dtype=file.dtype,
            log_weight=(file.log_weight[0], file.log_weight[1]),
            description=file.description,
        )
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def load_tasks(folder: Path, names: list[str]) -> dict[str, Task]:
    """The tasks of these files, by name. Raises ConfigError, also where two are alike."""
    tasks: dict[str, Task] = {}
    for name in names:
        task = load_task(folder / name)
        for other in tasks.values():
            if task.name == other.name or task.number == other.number:
                raise ConfigError(f"{folder / name}: name or number is that of task {other.name}")
        tasks[task.name] = task
    return tasks


def forms(path: Path, names: list[str]) -> frozenset[Form]:
    """The forms of these names. Raises ConfigError."""
    for name in names:
        if name not in _FORMS:
            raise ConfigError(f"{path}: answer_forms: {name!r} is none of {', '.join(_FORMS)}")
    if not names:
        raise ConfigError(f"{path}: answer_forms must name one form at least: {', '.join(_FORMS)}")
    return frozenset(_FORMS[name] for name in names)


def round_policy(path: Path, section: Round) -> RoundPolicy:
    """The policy that this section describes. Raises ConfigError."""
    if section.strategy not in STRATEGIES:
        raise ConfigError(f"{path}: round.strategy: {section.strategy!r} is none of {', '.join(STRATEGIES)}")
    try:
        return RoundPolicy(
            timeout_s=section.timeout_s,
            quorum=section.quorum,
            stop_after=section.stop_after,
            reask_s=section.reask_s,
            strategy=section.strategy,
            forms=forms(path, section.answer_forms),
        )
    except ValueError as error:
        raise ConfigError(f"{path}: round: {error}") from None


def read_password(folder: Path, broker: Broker) -> str | None:
    """The broker password, from its file. Raises ConfigError."""
    if broker.password_file is None:
        return None
    path = folder / broker.password_file
    try:
        return path.read_text(encoding="utf-8").split("\n", 1)[0]
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"cannot read broker.password_file {path}: it must be a text file") from None


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; examples are in the folder configs"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _override(content: dict[str, Any], name: str, value: str) -> None:
    *tables, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
    for table in tables:
        nested = content.setdefault(table, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"environment variable {name}: {table} is no table")
        content = nested
    try:
        content[key] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        content[key] = value  # a bare word is a text


def _validate(path: Path, section: type[S], content: dict[str, Any]) -> S:
    try:
        return section.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{path}: unknown key {key}{_suggestion(section, first['loc'])}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{path}: key {key} is missing") from None
        raise ConfigError(f"{path}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _suggestion(section: type[BaseModel], place: tuple[int | str, ...]) -> str:
    *tables, key = place
    for table in tables:
        annotation = section.model_fields[str(table)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    known = list(section.model_fields)
    close = difflib.get_close_matches(str(key), known, 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
