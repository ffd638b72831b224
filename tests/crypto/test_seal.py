"""How frames are sealed: what each key, mac and digest is made of, and that nothing else opens."""

import pytest
from nacl.bindings import crypto_generichash_blake2b_salt_personal

from edge_fi.crypto.keys import SigningKey
from edge_fi.crypto.seal import (
    Epoch,
    JoinKeys,
    SessionKeys,
    answer_key,
    check_hello_mac,
    check_join_mac,
    check_settled,
    claim_mac,
    gateway_password,
    hello_mac,
    join_mac,
    join_password,
    join_prologue,
    member_password,
    name_in,
    prologue,
    refused_mac,
    roster_key,
    settle_digest,
    settle_preimage,
    sign_query,
    verify_query,
)
from edge_fi.errors import SealError

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
TOKEN = bytes(range(16))
HEADER = b"\x01\x00" + bytes(3) + b"\x07" + bytes(3) + b"\x05"


def blake2b(key: bytes, purpose: bytes, context: bytes = b"", size: int = 32) -> bytes:
    """Libsodium's BLAKE2b, where the product uses hashlib's."""
    return crypto_generichash_blake2b_salt_personal(
        context, digest_size=size, key=key, person=purpose.ljust(16, b"\0")
    )


# Names and prologue


def test_a_name_has_its_length_in_front() -> None:
    assert name_in("acme") == b"\x04acme"


def test_the_prologue_names_federation_role_and_index() -> None:
    assert prologue("acme", "device", 0x0102) == b"".join([b"fi1", b"\x04acme", b"\x06device", b"\x01\x02"])


def test_no_two_members_share_a_prologue() -> None:
    prologues = {
        prologue("acme", "device", 1),
        prologue("acme", "device", 2),
        prologue("acme", "client", 1),
        prologue("acm", "device", 1),
        prologue("acmed", "evice", 1),
    }
    assert len(prologues) == 5


def test_the_prologue_of_joining_names_all_that_an_invite_grants() -> None:
    expected = b"fi1 join" + b"\x04acme" + b"\x06device" + b"\x05pi-07" + b"\x01\x02\x03\x04"
    assert join_prologue("acme", "device", "pi-07", 0x01020304) == expected


def test_no_two_invites_share_a_prologue_and_none_has_that_of_a_session() -> None:
    prologues = {
        join_prologue("acme", "device", "pi-07", 1),
        join_prologue("acme", "device", "pi-07", 2),
        join_prologue("acme", "device", "pi-7", 1),
        join_prologue("acme", "client", "pi-07", 1),
        join_prologue("acm", "device", "pi-07", 1),
        prologue("acme", "device", 1),
    }
    assert len(prologues) == 6


# Joining


def test_both_keys_of_joining_come_from_the_token_and_what_it_grants() -> None:
    keys = JoinKeys.from_token(TOKEN, b"context")
    assert keys.psk == blake2b(TOKEN, b"fi1 join psk", b"context")
    assert keys.mac == blake2b(TOKEN, b"fi1 join key", b"context")


def test_a_join_mac_is_eight_bytes_of_blake2b() -> None:
    assert join_mac(KEY, b"join") == blake2b(KEY, b"fi1 join mac", b"join", 8)
    check_join_mac(KEY, b"join", join_mac(KEY, b"join"))


def test_another_join_mac_is_refused() -> None:
    mac = join_mac(KEY, b"join")
    for key, maced, claimed in (
        (OTHER_KEY, b"join", mac),
        (KEY, b"joiN", mac),
        (KEY, b"join", mac[:-1]),
        (KEY, b"join", mac + b"\0"),
        (KEY, b"join", b""),
        (KEY, b"join", hello_mac(KEY, b"join")),
        (KEY, b"join", mac[:-1] + bytes([mac[-1] ^ 1])),
    ):
        with pytest.raises(SealError, match=r"^mac$"):
            check_join_mac(key, maced, claimed)


def test_a_refusals_mac_is_bound_to_the_join_that_it_refuses() -> None:
    assert refused_mac(KEY, b"refused", b"mac of 8") == blake2b(KEY, b"fi1 refused", b"refusedmac of 8", 8)


# Passwords of the broker


def test_every_password_is_32_hexadecimal_digits_of_blake2b() -> None:
    context = prologue("acme", "device", 7)
    assert join_password(TOKEN) == blake2b(TOKEN, b"fi1 join user", b"", 16).hex()
    assert member_password(KEY, context) == blake2b(KEY, b"fi1 broker", context, 16).hex()
    gateway = prologue("acme", "gateway", 0)
    assert gateway_password(KEY, "acme") == blake2b(KEY, b"fi1 broker", gateway, 16).hex()


# The gateway's words to itself


def test_a_claims_mac_is_of_a_key_that_only_the_gateway_has() -> None:
    claim_key = blake2b(KEY, b"fi1 claim key")
    for purpose in (b"fi1 claim", b"fi1 held"):
        assert claim_mac(KEY, purpose, b"maced") == blake2b(claim_key, purpose, b"maced", 8)


def test_every_roster_word_has_a_key_of_its_own() -> None:
    key = blake2b(KEY, b"fi1 roster")
    assert roster_key(KEY, b"header") == blake2b(key, b"fi1 roster", b"header")
    assert roster_key(KEY, b"headeR") != roster_key(KEY, b"header") != roster_key(OTHER_KEY, b"header")


# HELLO's mac


def test_a_hello_mac_is_eight_bytes_of_blake2b() -> None:
    assert hello_mac(KEY, b"hello") == blake2b(KEY, b"fi1 hello mac", b"hello", 8)


def test_a_hello_mac_is_accepted() -> None:
    check_hello_mac(KEY, b"hello", hello_mac(KEY, b"hello"))


def test_another_mac_is_refused() -> None:
    mac = hello_mac(KEY, b"hello")
    for key, maced, claimed in (
        (OTHER_KEY, b"hello", mac),
        (KEY, b"hellO", mac),
        (KEY, b"hello", mac[:-1]),
        (KEY, b"hello", mac + b"\0"),
        (KEY, b"hello", b""),
        (KEY, b"hello", mac[:-1] + bytes([mac[-1] ^ 1])),
    ):
        with pytest.raises(SealError, match=r"^mac$"):
            check_hello_mac(key, maced, claimed)


# Queries


def test_an_epoch_has_two_keys_and_neither_is_the_one_that_travels() -> None:
    epoch = Epoch.from_key(7, KEY)
    assert epoch.number == 7
    assert epoch.seal_key == blake2b(KEY, b"fi1 query seal")
    assert epoch.digest_key == blake2b(KEY, b"fi1 query hash")


def test_a_sealed_query_opens() -> None:
    epoch = Epoch.from_key(7, KEY)
    sealed = epoch.seal_query(b"query", seq=5, header=HEADER)
    assert len(sealed) == 5 + 16
    assert Epoch.from_key(7, KEY).open_query(sealed, seq=5, header=HEADER) == b"query"


def test_a_query_does_not_open_elsewhere() -> None:
    epoch = Epoch.from_key(7, KEY)
    sealed = epoch.seal_query(b"query", seq=5, header=HEADER)
    for other, seq, header in (
        (Epoch.from_key(7, OTHER_KEY), 5, HEADER),
        (epoch, 6, HEADER),
        (epoch, 5, HEADER[:-1] + b"\x06"),
    ):
        with pytest.raises(SealError, match=r"^seal$"):
            other.open_query(sealed, seq=seq, header=header)


def test_a_query_hash_commits_to_the_epoch_and_to_every_byte() -> None:
    epoch = Epoch.from_key(7, KEY)
    assert epoch.query_hash(b"frame") == blake2b(epoch.digest_key, b"fi1 query hash", b"frame")
    assert epoch.query_hash(b"frame") != epoch.query_hash(b"framE")
    assert epoch.query_hash(b"frame") != Epoch.from_key(7, OTHER_KEY).query_hash(b"frame")


def test_a_query_is_signed_with_its_purpose_and_federation() -> None:
    signing = SigningKey.from_seed(KEY)
    signature = sign_query(signing, "acme", b"frame")
    assert signature == signing.sign(b"fi1 query" + name_in("acme") + b"frame")
    verify_query(signing.public, "acme", b"frame", signature)


def test_the_signature_of_another_query_is_refused() -> None:
    signing = SigningKey.from_seed(KEY)
    signature = sign_query(signing, "acme", b"frame")
    for public, federation, signed in (
        (SigningKey.from_seed(OTHER_KEY).public, "acme", b"frame"),
        (signing.public, "acm", b"eframe"),
        (signing.public, "acmf", b"frame"),
        (signing.public, "acme", b"framE"),
    ):
        with pytest.raises(SealError, match=r"^signature$"):
            verify_query(public, federation, signed, signature)
    with pytest.raises(SealError, match=r"^signature$"):
        verify_query(signing.public, "acme", b"frame", signing.sign(b"frame"))


# Sessions and answers


def test_each_use_of_a_session_has_its_own_key() -> None:
    keys = SessionKeys.from_transport(KEY, OTHER_KEY)
    assert keys.answer == blake2b(KEY, b"fi1 answer")
    assert keys.up == blake2b(KEY, b"fi1 frame")
    assert keys.ask == blake2b(KEY, b"fi1 ask")
    assert keys.down == blake2b(OTHER_KEY, b"fi1 frame")
    assert len({keys.answer, keys.up, keys.ask, keys.down}) == 4


def test_an_answer_key_is_bound_to_header_epoch_query_and_model() -> None:
    key = answer_key(KEY, b"header-8", epoch=0x01020304, query_hash=b"h" * 32, model=b"model-01")
    context = b"header-8" + b"\x01\x02\x03\x04" + b"h" * 32 + b"model-01"
    assert key == blake2b(KEY, b"fi1 answer key", context)


# SETTLED


def test_a_preimage_is_sixteen_bytes_from_the_secret_and_the_place() -> None:
    place = bytes.fromhex("00000007 00000005")
    assert settle_preimage(KEY, 7, 5) == blake2b(KEY, b"fi1 settle", place, 16)


def test_a_digest_is_eight_bytes_from_the_preimage_the_place_and_the_federation() -> None:
    context = bytes.fromhex("00000007 00000005") + b"\x04acme"
    assert settle_digest(b"p" * 16, 7, 5, "acme") == blake2b(b"p" * 16, b"fi1 settled", context, 8)


def test_the_preimage_of_a_digest_is_accepted() -> None:
    preimage = settle_preimage(KEY, 7, 5)
    check_settled(settle_digest(preimage, 7, 5, "acme"), preimage, 7, 5, "acme")


def test_another_preimage_or_place_is_refused() -> None:
    preimage = settle_preimage(KEY, 7, 5)
    digest = settle_digest(preimage, 7, 5, "acme")
    for claimed, epoch, seq, federation in (
        (settle_preimage(OTHER_KEY, 7, 5), 7, 5, "acme"),
        (settle_preimage(KEY, 7, 6), 7, 5, "acme"),
        (bytes(16), 7, 5, "acme"),
        (preimage, 8, 5, "acme"),
        (preimage, 7, 6, "acme"),
        (preimage, 7, 5, "acmf"),
    ):
        with pytest.raises(SealError, match=r"^settled$"):
            check_settled(digest, claimed, epoch, seq, federation)
    with pytest.raises(SealError, match=r"^settled$"):
        check_settled(bytes(8), preimage, 7, 5, "acme")


# Secrets


@pytest.mark.parametrize(
    "secret_holder",
    [
        Epoch(7, b"a" * 32, b"b" * 32),
        SessionKeys(b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32),
        JoinKeys(b"a" * 32, b"b" * 32),
    ],
)
def test_keys_never_show(secret_holder: object) -> None:
    shown = repr(secret_holder)
    for letter in "abcd":
        assert letter * 8 not in shown
        assert letter.encode().hex() * 8 not in shown


def test_an_epoch_shows_its_number() -> None:
    assert repr(Epoch(7, b"a" * 32, b"b" * 32)) == "Epoch(number=7)"
