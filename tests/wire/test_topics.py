"""Topics: what is built, what a gateway takes, and which names exist at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.errors import DecodeError
from edge_fi.wire import topics

HOSTILE = [
    "",
    "+",
    "#",
    "$SYS",
    "a/b",
    "/",
    "a b",
    "a\0",
    "a\n",
    "A",
    "a_b",
    "a.b",
    "\N{CYRILLIC SMALL LETTER A}",  # looks like a Latin one
    "\N{ARABIC-INDIC DIGIT ONE}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
]


def test_every_topic_is_this_string() -> None:
    assert topics.query("acme", 7) == "fi1/acme/q/7"
    assert topics.to_device("acme", "pi-1") == "fi1/acme/d/pi-1"
    assert topics.from_device("acme", "pi-1") == "fi1/acme/a/pi-1"
    assert topics.presence("acme", "pi-1") == "fi1/acme/s/pi-1"
    assert topics.to_client("acme", "laptop") == "fi1/acme/cd/laptop"
    assert topics.from_client("acme", "laptop") == "fi1/acme/ca/laptop"
    assert topics.to_helper("acme", "bank") == "fi1/acme/hd/bank"
    assert topics.from_helper("acme", "bank") == "fi1/acme/ha/bank"
    assert topics.join("acme") == "fi1/acme/join"
    assert topics.joined("acme", 4_294_967_295) == "fi1/acme/j/4294967295"
    assert topics.gateway_state("acme") == "fi1/acme/gateway/state"
    assert topics.gateway_roster("acme") == "fi1/acme/gateway/roster"
    assert topics.gateway_claim("acme") == "fi1/acme/gateway/claim"


def test_a_plus_gives_the_filter_over_all_devices() -> None:
    assert topics.from_device("acme", "+") == "fi1/acme/a/+"
    assert topics.query("acme", "+") == "fi1/acme/q/+"
    assert topics.joined("acme", "+") == "fi1/acme/j/+"


@pytest.mark.parametrize("number", [0, 1, 4_294_967_295])
def test_no_member_can_be_called_like_the_holder_of_an_invite(number: int) -> None:
    assert topics.joiner_user(number) == f"join_{number}"
    with pytest.raises(ValueError, match="must be 1 to 24 of the characters"):
        topics.check_id(topics.joiner_user(number))


def test_no_member_can_be_called_like_the_gateway() -> None:
    assert topics.GATEWAY_USER == "gateway"
    with pytest.raises(ValueError, match="and be none of"):
        topics.check_id(topics.GATEWAY_USER)


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        ("fi1/acme/join", "fi1/acme/join"),
        ("fi1/acme/a/+", "fi1/acme/a/pi-1"),
        ("fi1/acme/+/pi-1", "fi1/acme/s/pi-1"),
        ("+/+/+", "fi1/acme/join"),
        ("fi1/acme/a/+", "fi1/acme/a/"),  # an empty level is a level
        ("+", ""),
    ],
)
def test_a_filter_matches_level_by_level(topic_filter: str, topic: str) -> None:
    assert topics.matches(topic_filter, topic)


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        ("fi1/acme/a/pi-1", "fi1/acme/a/pi-2"),
        ("fi1/acme/a/pi", "fi1/acme/a/pi-1"),
        ("fi1/acme/a/pi-1", "fi1/acme/a/+"),  # a plus in a topic is no wildcard
        ("fi1/acme/a/+", "fi1/acme/s/pi-1"),
        ("fi1/acme/a/+", "fi1/acme/a"),
        ("fi1/acme/a/+", "fi1/acme/a/pi-1/x"),
        ("fi1/acme/a/p+", "fi1/acme/a/pi-1"),  # nor is one within a level
        ("+", "fi1/acme"),
    ],
)
def test_a_filter_matches_nothing_else(topic_filter: str, topic: str) -> None:
    assert not topics.matches(topic_filter, topic)


@pytest.mark.parametrize("name", ["a", "acme", "a" * 16, "0", "-", "plant-4"])
def test_a_federation_may_have_this_name(name: str) -> None:
    assert topics.check_federation(name) == name


@pytest.mark.parametrize("name", [*HOSTILE, "a" * 17])
def test_a_federation_may_not_have_this_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"federation .* must be 1 to 16 of the characters"):
        topics.check_federation(name)


@pytest.mark.parametrize("name", ["a", "pi-1", "7", "a" * 24, "a-", "gateway-2", "joiner"])
def test_a_member_may_have_this_id(name: str) -> None:
    assert topics.check_id(name) == name


@pytest.mark.parametrize("name", [*HOSTILE, "a" * 25, "-a"])
def test_a_member_may_not_have_this_id(name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 24 of the characters"):
        topics.check_id(name)


@pytest.mark.parametrize("name", ["gateway", "helper", "client", "join"])
def test_a_reserved_id_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"and be none of client, gateway, helper, join$"):
        topics.check_id(name)


def test_a_gateway_reads_level_and_member_of_a_topic() -> None:
    assert topics.parse_member("fi1/acme/a/pi-1", "acme") == ("a", "pi-1")
    assert topics.parse_member("fi1/acme/s/pi-1", "acme") == ("s", "pi-1")
    assert topics.parse_member("fi1/acme/ca/laptop", "acme") == ("ca", "laptop")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fi1",
        "fi1/acme/a",
        "fi1/acme/a/pi-1/x",
        "/fi1/acme/a/pi-1",
        "fi1/acme/a/pi-1/",
        "fi2/acme/a/pi-1",
        "fi1/other/a/pi-1",
        "fi1/acme/d/pi-1",
        "fi1/acme/q/1",
        "fi1/acme/cd/laptop",
        "fi1/acme/gateway/state",
        "fi1/acme/A/pi-1",
        "fi1/acme/a/-pi",
        "fi1/acme/a/" + "a" * 25,
        *(f"fi1/acme/a/{name}" for name in HOSTILE),
    ],
)
def test_a_gateway_refuses_any_other_topic(topic: str) -> None:
    with pytest.raises(DecodeError, match=r"^topic$"):
        topics.parse_member(topic, "acme")


levels = st.lists(st.one_of(st.sampled_from(["fi1", "acme", "a", "s", "ca", "pi-1"]), st.text(max_size=5)))
members = st.builds("fi1/acme/{}/{}".format, st.sampled_from(["a", "s", "ca", "d"]), st.text(max_size=26))


@given(st.one_of(st.text(), levels.map("/".join), members))
def test_an_arbitrary_topic_is_refused_or_is_one_that_is_built_here(topic: str) -> None:
    try:
        level, member = topics.parse_member(topic, "acme")
    except DecodeError:
        return
    build = {"a": topics.from_device, "s": topics.presence, "ca": topics.from_client}[level]
    assert build("acme", member) == topic
    assert set(member) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
