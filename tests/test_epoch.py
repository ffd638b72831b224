"""One task's epoch: its number and keys, the seqs that outlive it, and the rounds that do."""

from collections.abc import Mapping

import pytest
from federation import FEDERATION, TASK, TENSOR, gateway_identity

from edge_fi import epoch as epoch_module
from edge_fi.crypto import seal
from edge_fi.epoch import CLOSED_KEPT, MAX_AHEAD, MAX_QUERIES, Asked, TaskEpoch
from edge_fi.messages import Form, Query, Vote
from edge_fi.replay import WINDOW
from edge_fi.round import Round, RoundPolicy
from edge_fi.voting.panel import Key, Pooled
from edge_fi.wire import frames, payloads
from firmware_sim.stream import Stream

SECRET = b"s" * 32


def make_epoch(seed: str = "epoch") -> TaskEpoch:
    """The epoch of a task that nobody has asked yet."""
    return TaskEpoch(TASK, Stream(seed), SECRET)


def _never(key: Key, votes: Mapping[int, Vote]) -> Pooled:
    raise AssertionError("no vote can come")


def ask(epoch: TaskEpoch, *, policy: RoundPolicy | None = None) -> Asked:
    """A query to nobody."""
    its_round = Round(
        seq=epoch.next_seq(), policy=policy or RoundPolicy(), asked=(), awaited=(), opened_us=0, decide=_never
    )
    return epoch.ask(gateway_identity(), its_round, TENSOR, "me")


def read(asked: Asked, keys: seal.Epoch) -> Query:
    """What somebody with these keys reads of it."""
    frame = frames.parse_query(asked.frame)
    return payloads.decode_query(keys.open_query(frame.sealed, seq=frame.seq, header=frame.header))


def test_an_epoch_begins_with_a_random_number_and_key() -> None:
    one, other = make_epoch("one"), make_epoch("other")
    assert one.number != other.number and one.key != other.key and len(one.key) == 32
    drawn = Stream("one")
    assert (one.number, one.key) == (int.from_bytes(drawn(4), "big"), drawn(32))


def test_a_new_epoch_has_the_next_number_and_another_key() -> None:
    epoch = make_epoch()
    number, key, keys = epoch.number, epoch.key, epoch.keys
    epoch.rotate(Stream("later"))
    assert epoch.number == number + 1
    assert epoch.key == Stream("later")(32) != key
    assert epoch.keys == seal.Epoch.from_key(epoch.number, epoch.key) != keys


def test_after_the_last_number_comes_0() -> None:
    epoch = TaskEpoch(TASK, lambda size: b"\xff" * size, SECRET)
    assert epoch.number == 0xFFFFFFFF
    epoch.rotate(Stream("later"))
    assert epoch.number == 0
    assert frames.parse_query(ask(epoch).frame).epoch == 0


def test_a_query_is_sealed_and_signed_for_the_epoch_of_its_time() -> None:
    epoch = make_epoch()
    keys = epoch.keys
    asked = ask(epoch, policy=RoundPolicy(timeout_s=1.5, forms=frozenset({Form.PROBS_4})))
    frame = frames.parse_query(asked.frame)
    seal.verify_query(gateway_identity().signing.public, FEDERATION, frame.signed, frame.signature)
    assert (frame.epoch, frame.seq) == (asked.epoch, asked.round.seq) == (epoch.number, 1)
    query = read(asked, keys)
    assert (query.task, query.deadline_ms, query.forms) == (1, 1500, asked.forms)
    assert asked.query_hash == keys.query_hash(asked.frame)
    seal.check_settled(query.settle, epoch.settled(asked)[-16:], epoch.number, 1, FEDERATION)


def test_seqs_go_on_in_the_next_epoch() -> None:
    epoch = make_epoch()
    first = ask(epoch)
    epoch.rotate(Stream("later"))
    second = ask(epoch)
    assert (first.round.seq, second.round.seq) == (1, 2)
    assert second.epoch == first.epoch + 1


def test_what_is_open_stays_open_and_as_it_was() -> None:
    epoch = make_epoch()
    keys, asked = epoch.keys, ask(epoch)
    before = asked.frame, asked.epoch, asked.query_hash
    epoch.rotate(Stream("later"))
    assert epoch.find(1) is asked and (asked.frame, asked.epoch, asked.query_hash) == before
    assert epoch.floor == 1
    query = read(asked, keys)
    settled = epoch.settled(asked)
    assert settled[:10] == frames.build_settled(asked.epoch, 1, b"")
    seal.check_settled(query.settle, settled[-16:], asked.epoch, 1, FEDERATION)


def test_the_floor_is_the_lowest_seq_that_is_open_or_the_next_one() -> None:
    epoch = make_epoch()
    assert epoch.floor == 1
    first, second = ask(epoch), ask(epoch)
    assert epoch.floor == 1
    epoch.close(second)
    assert epoch.floor == 1
    epoch.close(first)
    assert epoch.floor == 3


def test_a_closed_query_is_found_without_its_frame_and_votes() -> None:
    epoch = make_epoch()
    asked = ask(epoch)
    epoch.close(asked)
    assert epoch.find(1) is asked and epoch.open == {} and epoch.closed == {1: asked}
    assert asked.frame == b"" and asked.round.votes == {}
    assert epoch.find(2) is None


def test_of_closed_queries_the_latest_256_are_found() -> None:
    epoch = make_epoch()
    for _ in range(CLOSED_KEPT + 1):
        epoch.close(ask(epoch))
    assert epoch.find(1) is None and epoch.find(2) is not None
    assert len(epoch.closed) == CLOSED_KEPT == 256


def test_an_epoch_is_full_when_a_window_could_forget_the_oldest_open_query() -> None:
    epoch = make_epoch()
    oldest = ask(epoch)
    for _ in range(MAX_AHEAD - 1):
        assert not epoch.is_full
        epoch.close(ask(epoch))
    assert epoch.is_full and MAX_AHEAD <= WINDOW // 2
    epoch.rotate(Stream("later"))
    assert epoch.is_full
    epoch.close(oldest)
    assert not epoch.is_full


def test_the_last_seq_is_used_and_none_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert epoch_module.MAX_SEQ == 2**32 - 1
    monkeypatch.setattr(epoch_module, "MAX_SEQ", 2)
    epoch = make_epoch()
    epoch.close(ask(epoch))
    assert not epoch.is_full
    epoch.close(ask(epoch))
    assert epoch.is_full
    epoch.rotate(Stream("later"))
    assert epoch.is_full


def test_a_key_is_spent_after_so_many_queries_and_the_next_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_QUERIES == 1_048_576
    monkeypatch.setattr(epoch_module, "MAX_QUERIES", 2)
    epoch = make_epoch()
    for is_spent in (False, False, True):
        assert epoch.is_spent is is_spent
        ask(epoch)
    epoch.rotate(Stream("later"))
    assert not epoch.is_spent


def test_an_epoch_does_not_show_its_keys_in_what_it_has_asked() -> None:
    epoch = make_epoch()
    shown = repr(ask(epoch)) + repr(epoch.keys)
    for secret in (epoch.key, epoch.keys.seal_key, epoch.keys.digest_key, SECRET):
        assert repr(secret)[2:-1] not in shown and secret.hex() not in shown
