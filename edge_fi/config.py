"""Configuration: one TOML file a role, checked whole before anything starts.

Any key can be overridden by the environment: `EDGE_FI_BROKER__HOST=...` is `host` in `[broker]`. One
environment serves every role: a key that only another role has is ignored, one that none has is
refused. Paths are relative to the file they stand in. Errors name the file or the variable, the key
and the next step.
"""

import contextlib
import difflib
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge_fi import plugins
from edge_fi.errors import ConfigError, DecodeError
from edge_fi.messages import VOTE_FORMS, Form, Task
from edge_fi.round import RoundPolicy
from edge_fi.voting import features
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.strategy import STRATEGIES

ENVIRONMENT_PREFIX = "EDGE_FI_"
FAMILIAR, UNKNOWN = [-16, 6], [-8, 0]
"""Nats that the weight codes of an answer span: of gates in a feature map, and without one."""
_FORMS = {form.title: form for form in VOTE_FORMS}
_DEFAULT = RoundPolicy()


Place = tuple[int | str, ...]
"""Of a value: the names of the tables that it is in, and its own."""


def _check_forms(names: list[str]) -> list[str]:
    for name in names:
        if name not in _FORMS:
            raise ValueError(f"{name!r} is none of {', '.join(_FORMS)}")
    if not names:
        raise ValueError(f"must name one form at least: {', '.join(_FORMS)}")
    return names


def _check_strategy(name: str) -> str:
    # Installed packages are looked through only for a name that is not edge_fi's own.
    if name not in STRATEGIES and name not in (others := plugins.names()):
        raise ValueError(f"{name!r} is none of {', '.join([*STRATEGIES, *others])}")
    return name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Broker(_Section):
    """Where the MQTT broker is."""

    host: str = "127.0.0.1"
    port: int = Field(default=1883, ge=1, le=65535)
    mqtt: Literal["3.1.1", "5"] = "3.1.1"
    """Protocol version. 3.1.1 does everything, and every broker speaks it."""
    keepalive_s: int = Field(default=30, ge=5, le=65535)
    tls: bool = False
    ca: str | None = None
    """The certificate of who vouches for the broker; the system's own list of them if absent."""
    username: str | None = None
    """By default one's id, with a password that follows from the keys."""
    password_file: str | None = None
    """A file whose first line is the password: so that it stands in no configuration."""

    @model_validator(mode="after")
    def _has_username(self) -> Self:
        # MQTT 3.1.1 section 3.1.2.9: without a user name there is no password.
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs a username beside it")
        if self.ca is not None and not self.tls:
            raise ValueError("ca needs tls = true beside it")
        return self


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
    strategy: Annotated[str, AfterValidator(_check_strategy)] = _DEFAULT.strategy
    least_confidence: float = _DEFAULT.least_confidence
    """An outcome less sure than this is none: the round abstains."""
    answer_forms: Annotated[list[str], AfterValidator(_check_forms)] = ["label"]

    @model_validator(mode="after")
    def _is_a_policy(self) -> Self:
        self.policy()
        return self

    def policy(self) -> RoundPolicy:
        """The policy that this section describes."""
        return RoundPolicy(
            timeout_s=self.timeout_s,
            quorum=self.quorum,
            stop_after=self.stop_after,
            reask_s=self.reask_s,
            strategy=self.strategy,
            least_confidence=self.least_confidence,
            forms=frozenset(_FORMS[name] for name in self.answer_forms),
        )


class Canaries(_Section):
    """Queries of one task whose answers the gateway knows: asked when its jury has suspects."""

    file: str
    """An .npz with `queries` and `labels`."""
    budget: float = Field(default=0.02, gt=0, le=0.5)
    """Their largest share of all queries."""


class GatewayConfig(_Section):
    """configs/gateway.toml."""

    key: str
    state: str
    """The file with the roster and everything else that survives the gateway."""
    broker_files: str = "broker"
    """The folder of `edge-fi broker config`, if there is one: kept in step with the roster."""
    tasks: list[str] = Field(min_length=1)
    broker: Broker = Broker()
    round: Round = Round()
    canaries: dict[str, Canaries] = {}
    """By the names of tasks."""


class Familiarity(_Section):
    """How a device tells what it is familiar with: `edge-fi device familiarize` writes this."""

    gate: str
    share: bool = True
    """Whether the gateway is given the gate; else each answer claims a weight."""


class DeviceConfig(_Section):
    """configs/device.toml."""

    key: str
    task: str
    model: Model
    familiarity: Familiarity | None = None
    answer_forms: Annotated[list[str], AfterValidator(_check_forms)] = list(_FORMS)
    broker: Broker = Broker()


class ClientConfig(_Section):
    """configs/client.toml."""

    key: str
    tasks: list[str] = Field(min_length=1)
    broker: Broker = Broker()


class HelperConfig(_Section):
    """What `edge-fi helper join` writes."""

    key: str
    broker: Broker = Broker()


MEMBERS: dict[str, type[DeviceConfig | ClientConfig | HelperConfig]] = {
    "device": DeviceConfig,
    "client": ClientConfig,
    "helper": HelperConfig,
}
"""Of each role that joins."""

ROLES: tuple[type[_Section], ...] = (GatewayConfig, *MEMBERS.values())


class TaskFile(_Section):
    """A task: what a federation agrees on."""

    name: str
    number: int
    labels: list[str]
    shape: list[int]
    dtype: str
    log_weight: list[int] | None = None
    """By default of a task with a feature map FAMILIAR, and [-8, 0] of others."""
    description: str = ""
    features: str | None = None
    """The task's feature map, of `edge-fi task features`."""


S = TypeVar("S", bound=_Section)


def load(path: Path, section: type[S], environment: Mapping[str, str] = os.environ) -> S:
    """Read and check a configuration file. Raises ConfigError."""
    content = _parse(path)
    overrides: dict[Place, str] = {}
    for name, value in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            place = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
            if _override(content, section, place, name, value):
                overrides[place] = name
    return _validate(path, section, content, overrides)


def load_task(path: Path) -> Task:
    """Read and check a task file. Raises ConfigError."""
    return _task(path, _parse(path))


def parse_task(path: Path, text: str) -> Task:
    """As load_task, of a text that may come to stand in this file. Raises ConfigError."""
    try:
        return _task(path, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{_shown(path)} is not TOML: {error}") from None


def _task(path: Path, fields: dict[str, Any]) -> Task:
    file = _validate(path, TaskFile, fields, {})
    usual = UNKNOWN if file.features is None else FAMILIAR
    log_weight = usual if file.log_weight is None else file.log_weight
    if len(log_weight) != 2:
        raise ConfigError(f"{_shown(path)}: log_weight must be two whole numbers of nats")
    content = b"" if file.features is None else _read_features(path, file.features)
    try:
        return Task(
            name=file.name,
            number=file.number,
            labels=tuple(file.labels),
            shape=tuple(file.shape),
            dtype=file.dtype,
            log_weight=(log_weight[0], log_weight[1]),
            description=file.description,
            features=features.digest(content) if content else b"",
        )
    except ValueError as error:
        raise ConfigError(f"{_shown(path)}: {error}") from None


def load_features(path: Path, task: Task) -> FeatureMap | None:
    """The feature map of a task whose file this is, if it has one. Raises ConfigError."""
    file = _validate(path, TaskFile, _parse(path), {})
    if file.features is None:
        return None
    shown = _shown(path.parent / file.features)
    try:
        made = FeatureMap.decode(_read_features(path, file.features))
    except DecodeError:
        raise ConfigError(
            f"{shown} is no feature map, or a damaged one: make it anew with 'edge-fi task features', or "
            "copy it from the gateway"
        ) from None
    if made.shape != task.shape:
        raise ConfigError(
            f"{shown} is of queries {list(made.shape)}, but task {task.name} asks {list(task.shape)}: "
            "run 'edge-fi task features'"
        )
    return made


def _read_features(path: Path, name: str) -> bytes:
    try:
        return (path.parent / name).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the feature map {_shown(path.parent / name)} of {_shown(path)}: {error.strerror}; "
            "copy it from the gateway, or make it there with 'edge-fi task features'"
        ) from None


def load_tasks(folder: Path, names: list[str]) -> dict[str, Task]:
    """The tasks of these files, by name. Raises ConfigError, also where two are alike."""
    tasks: dict[str, Task] = {}
    for name in names:
        task = load_task(folder / name)
        for other in tasks.values():
            if task.name == other.name or task.number == other.number:
                raise ConfigError(f"{_shown(folder / name)}: name or number is that of task {other.name}")
        tasks[task.name] = task
    return tasks


def forms(path: Path, names: list[str]) -> frozenset[Form]:
    """The forms of these names. Raises ConfigError."""
    try:
        return frozenset(_FORMS[name] for name in _check_forms(names))
    except ValueError as error:
        raise ConfigError(f"{_shown(path)}: answer_forms: {error}") from None


def round_policy(path: Path, section: Round) -> RoundPolicy:
    """The policy that this section describes. Raises ConfigError where the section is not a checked one."""
    try:
        return section.policy()
    except ValueError as error:
        raise ConfigError(f"{_shown(path)}: round: {error}") from None


def read_password(folder: Path, broker: Broker) -> str | None:
    """The broker password, from its file. Raises ConfigError."""
    if broker.password_file is None:
        return None
    path = folder / broker.password_file
    shown = _shown(path)
    try:
        # Opened before its mode is asked, so that both speak of the same file.
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"broker.password_file {shown} has mode {mode:04o}, others may read it: "
                    f"run chmod 600 {shown}"
                )
            return file.readline().removesuffix(b"\n").removesuffix(b"\r").decode()
    except OSError as error:
        raise ConfigError(
            f"cannot read broker.password_file {shown}: {error.strerror}; "
            f"write the password to its first line"
        ) from None
    except UnicodeDecodeError:  # its message could quote the password
        raise ConfigError(f"cannot read broker.password_file {shown}: it must be a text file") from None


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {_shown(path)}: {error.strerror}; examples are in the folder configs"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_shown(path)} is not TOML: {error}") from None


def _override(content: dict[str, Any], section: type[_Section], place: Place, name: str, value: str) -> bool:
    """Put the value in its place. False if the place is another role's, or no table is there."""
    if not _has(section, place):
        if any(_has(role, place) for role in ROLES):
            return False
        raise ConfigError(f"environment variable {name}: {_unknown(section, place)}")
    *tables, key = map(str, place)
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            return False
    content[key] = value
    if not _is_text(section, place):
        with contextlib.suppress(tomllib.TOMLDecodeError):  # the check says what it should be
            content[key] = tomllib.loads(f"value = {value}")["value"]
    return True


def _holder(section: type[BaseModel], tables: Place) -> type[BaseModel] | None:
    """The section that these nested tables name; None where one of them is no table."""
    for table in tables:
        field = section.model_fields.get(str(table))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    return section


def _has(section: type[BaseModel], place: Place) -> bool:
    holder = _holder(section, place[:-1])
    return holder is not None and place[-1] in holder.model_fields


def _is_text(section: type[BaseModel], place: Place) -> bool:
    """Whether its values are str, str | None, or a Literal of str."""
    holder = _holder(section, place[:-1])
    annotation = holder.model_fields[str(place[-1])].annotation if holder else None
    if get_origin(annotation) is list:
        return False
    parts = get_args(annotation) or (annotation,)
    return all(part in (str, type(None)) or isinstance(part, str) for part in parts)


def _unknown(section: type[BaseModel], place: Place) -> str:
    tables = place[:-1]
    for role in (section, *ROLES):
        if _holder(role, tables) is not None:
            return f"unknown key {'.'.join(map(str, place))}{_suggestion(role, place)}"
    if any(_has(role, tables[:1]) for role in ROLES):
        return f"{'.'.join(map(str, tables))} is no table"
    return f"unknown key {tables[0]}{_suggestion(section, tables[:1])}"


def _validate(path: Path, section: type[S], content: dict[str, Any], overrides: dict[Place, str]) -> S:
    try:
        return section.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    place = first["loc"]
    key = ".".join(map(str, place))
    told = f"{_origin(path, place, overrides)}: "
    if first["type"] == "extra_forbidden":
        raise ConfigError(f"{told}unknown key {key}{_suggestion(section, place)}")
    if first["type"] == "missing":
        raise ConfigError(f"{told}key {key} is missing")
    if first["type"] == "value_error":  # of a validator above
        raise ConfigError(f"{told}{key}: {first['ctx']['error']}")
    raise ConfigError(f"{told}{key}: {first['msg'][0].lower()}{first['msg'][1:]}")


def _origin(path: Path, place: Place, overrides: dict[Place, str]) -> str:
    """Where what is wrong at this place was written: in the file, or in variables above or below it."""
    names = [
        name
        for its_place, name in overrides.items()
        if place[: len(its_place)] == its_place or its_place[: len(place)] == place
    ]
    if not names:
        return _shown(path)
    return f"environment variable{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _suggestion(section: type[BaseModel], place: Place) -> str:
    holder = _holder(section, place[:-1])
    if holder is None:
        return ""  # in a table whose names are free
    known = list(holder.model_fields)
    close = difflib.get_close_matches(str(place[-1]), known, 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _shown(path: Path) -> str:
    """As a message shows it: `tasks/x.toml` for `configs/../tasks/x.toml`."""
    return os.path.normpath(path)
