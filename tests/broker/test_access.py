"""Who may say and hear what, and which users there can be at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import access
from broker.access import User

PASSWORD = "correct-horse-battery-staple"


def topics(text: str) -> tuple[str, ...]:
    return tuple(f"fi1/acme/{topic}" for topic in text.split())


# The rights of each role: the exact MQTT filters of docs/protocol.md


@pytest.mark.parametrize(
    ("user", "name", "write", "read"),
    [
        (
            access.gateway("acme", PASSWORD),
            "gateway",
            "q/+ d/+ cd/+ hd/+ j/+ s/+ gateway/state gateway/roster gateway/claim",
            "a/+ s/+ ca/+ ha/+ join gateway/state gateway/roster gateway/claim",
        ),
        (
            access.device("acme", "pi-07", PASSWORD, [1]),
            "pi-07",
            "a/pi-07 s/pi-07",
            "s/pi-07 d/pi-07 q/1 gateway/state",
        ),
        (
            access.device("acme", "pi-07", PASSWORD, [20, 3, 3]),
            "pi-07",
            "a/pi-07 s/pi-07",
            "s/pi-07 d/pi-07 q/3 q/20 gateway/state",
        ),
        (
            access.device("acme", "pi-07", PASSWORD, []),
            "pi-07",
            "a/pi-07 s/pi-07",
            "s/pi-07 d/pi-07 gateway/state",
        ),
        (access.client("acme", "laptop", PASSWORD), "laptop", "ca/laptop", "cd/laptop gateway/state"),
        (access.helper("acme", "bank", PASSWORD), "bank", "ha/bank", "hd/bank gateway/state"),
        (access.joiner("acme", 42, PASSWORD), "join_42", "join", "j/42"),
    ],
    ids=["gateway", "device", "device-of-two-tasks", "device-of-none", "client", "helper", "joiner"],
)
def test_a_role_may_exactly_this(user: User, name: str, write: str, read: str) -> None:
    assert user == User(name, PASSWORD, write=topics(write), read=topics(read))


def test_no_filter_spans_levels() -> None:
    for user in (access.gateway("acme", PASSWORD), access.device("acme", "pi-07", PASSWORD, [1, 2])):
        assert not any("#" in topic for topic in user.write + user.read)


# Names


@pytest.mark.parametrize("make", [access.client, access.helper])
@pytest.mark.parametrize("member", ["gateway", "join", "join_7", "+", "#", "a/b", "", "A", "pi 7", "pi\n7"])
def test_a_member_gets_no_name_that_is_not_an_id(make: type, member: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 24 of the characters"):
        make("acme", member, PASSWORD)
    with pytest.raises(ValueError, match="must be 1 to 24 of the characters"):
        access.device("acme", member, PASSWORD, [1])


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nuser root", "A", "+", "-a", "a" * 33])
def test_no_user_has_a_name_that_could_be_read_as_something_else(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be 1 to 32 of the characters"):
        User(name, PASSWORD, write=(), read=())


# Passwords


@pytest.mark.parametrize("password", ["", "secret", "a" * 21, "a" * 73])
def test_a_password_too_short_to_be_random_or_too_long_for_bcrypt_is_refused(password: str) -> None:
    with pytest.raises(ValueError, match=r"the password of pi-07 must be 22 to 72 characters"):
        access.device("acme", "pi-07", password, [1])


@pytest.mark.parametrize("letter", [" ", "\n", "\0", "é"])
def test_a_password_that_clients_could_send_in_two_ways_is_refused(letter: str) -> None:
    with pytest.raises(ValueError, match="must be printable ASCII without spaces"):
        access.device("acme", "pi-07", PASSWORD + letter, [1])


@pytest.mark.parametrize("password", [PASSWORD, PASSWORD[:21], PASSWORD + "\n"])
def test_a_password_is_in_no_repr_and_no_error(password: str) -> None:
    try:
        shown = repr(access.device("acme", "pi-07", password, [1]))
    except ValueError as error:
        shown = str(error)
    assert "pi-07" in shown and password not in shown


# Salts


def test_a_salt_is_the_same_for_the_same_user() -> None:
    assert access.joiner("acme", 7, PASSWORD).salt(16) == access.joiner("acme", 7, PASSWORD).salt(16)


def test_a_salt_does_not_change_with_rights() -> None:
    one, other = (access.device("acme", "pi-07", PASSWORD, tasks) for tasks in ([1], [2, 3]))
    assert one.salt(16) == other.salt(16)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_two_users_with_one_password_have_two_salts(one: int, other: int) -> None:
    salts = {access.joiner("acme", number, PASSWORD).salt(12) for number in (one, other)}
    assert len(salts) == len({one, other})


def test_one_user_with_another_password_has_another_salt() -> None:
    assert access.joiner("acme", 7, PASSWORD).salt(12) != access.joiner("acme", 7, PASSWORD + "!").salt(12)
