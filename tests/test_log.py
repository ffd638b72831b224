"""The log: one event a line, and no flood of lines, whatever strangers publish."""

import io
import json
import math

from edge_fi.adapters.mqtt import Down, Up
from edge_fi.effects import Admit, Adopt, Deliver, Joined, Noticed, Rejected, Restless
from edge_fi.log import Log
from edge_fi.messages import Fate, Form, Member, Outcome, Status


class Written:
    """A log of JSON lines, and the time it goes by."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._stream = io.StringIO()
        self.log = Log(is_json=True, stream=self._stream, clock=lambda: self.now_s)

    def events(self) -> list[dict[str, object]]:
        """What was written since the last look, without times."""
        lines = self._stream.getvalue().splitlines()
        self._stream.seek(0)
        self._stream.truncate()
        return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def rejected(count: int) -> dict[str, object]:
    return {"event": "rejected", "reason": "tag", "peer": "pi-01", "count": count}


def presence(state: str, **more: object) -> dict[str, object]:
    return {"event": "presence", "peer": "pi-01", "state": state, **more}


def test_rejections_are_counted_and_the_count_is_written_in_its_time() -> None:
    written = Written()
    for _ in range(1000):
        written.log.watch(Rejected(reason="tag", peer="pi-01"))
    assert written.events() == [rejected(1)]
    assert written.log.tick() == 10.0
    written.now_s += 9.9
    written.log.tick()
    assert written.events() == []
    written.now_s += 0.1
    assert written.log.tick() == math.inf
    assert written.events() == [rejected(999)]
    written.log.watch(Rejected(reason="tag", peer="pi-01"))
    assert written.events() == []


def test_what_is_held_back_is_written_at_the_end() -> None:
    written = Written()
    for _ in range(3):
        written.log.watch(Rejected(reason="tag", peer="pi-01"))
    for state in ("init", "ready"):
        written.log.watch(Noticed("pi-01", state))
    written.events()
    written.log.flush()
    assert written.events() == [rejected(2), presence("ready")]
    assert written.log.tick() == math.inf
    written.log.flush()
    assert written.events() == []


def test_a_presence_that_does_not_change_is_written_once() -> None:
    written = Written()
    for _ in range(1000):
        written.log.watch(Noticed("pi-01", "ready"))
        written.now_s += 1
    assert written.events() == [presence("ready")]
    assert written.log.tick() == math.inf


def test_a_presence_that_flaps_is_one_line_a_second_with_the_last_state_and_a_count() -> None:
    written = Written()
    written.log.watch(Noticed("pi-01", "ready"))
    for _ in range(500):
        written.log.watch(Noticed("pi-01", "lost"))
        written.log.watch(Noticed("pi-01", "ready"))
    written.log.watch(Noticed("pi-01", "lost"))
    assert written.events() == [presence("ready")]
    assert written.log.tick() == 1.0
    written.now_s += 1.0
    assert written.log.tick() == math.inf
    assert written.events() == [presence("lost", changes=1001)]


def test_a_flapping_peer_holds_no_other_back() -> None:
    written = Written()
    for state in ("ready", "lost"):
        written.log.watch(Noticed("pi-01", state))
    written.log.watch(Noticed("pi-02", "ready"))
    assert [event["peer"] for event in written.events()] == ["pi-01", "pi-02"]
    written.now_s += 0.5
    assert written.log.tick() == 0.5


def test_an_outcome_names_its_query_and_its_class_by_index() -> None:
    written = Written()
    fates = (("pi-01", Fate.COUNTED), ("pi-02", Fate.MISSING))
    outcome = Outcome(status=Status.ANSWERED, label=7, agreement=0.5, fates=fates, seq=41, elapsed_us=1250)
    written.log.watch(Deliver("reference", outcome))
    assert written.events() == [
        {
            "event": "outcome",
            "seq": 41,
            "status": "answered",
            "class_index": 7,
            "agreement": 0.5,
            "counted": 1,
            "asked": 2,
            "missing": ["pi-02"],
            "elapsed_ms": 1.2,
        }
    ]


def test_the_link_and_who_joins_are_written() -> None:
    written = Written()
    for notice in (Up(), Down("gone", was_up=True), Down("refused", was_up=False)):
        written.log.watch(notice)
    written.log.watch(Joined("pi-01", frozenset({Form.LABEL})))
    assert written.events() == [
        {"event": "connected"},
        {"event": "disconnected", "reason": "gone"},
        {"event": "broker_unreachable", "reason": "refused"},
        {"event": "joined", "peer": "pi-01", "forms": [Form.LABEL.title]},
    ]


def test_who_is_admitted_and_what_was_recovered_are_written_without_keys() -> None:
    written = Written()
    member = Member(id="pi-07", index=7, role="device", public=b"\xab" * 32)
    for notice in (Admit(3, member), Adopt(9, 12, frozenset({4, 5})), Restless("pi-07")):
        written.log.watch(notice)
    hint = "session after session: does another device hold a copy of its key?"
    assert written.events() == [
        {"event": "admitted", "peer": "pi-07", "role": "device", "invite": 3},
        {"event": "roster_recovered", "version": 9, "revoked": 2},
        {"event": "restless", "peer": "pi-07", "hint": hint},
    ]


def test_for_people_a_line_has_words_and_leaves_out_what_is_empty() -> None:
    stream = io.StringIO()
    Log(stream=stream).event("outcome_of", seq=3, missing=["a", "b"], label=None, more=[], reason="")
    assert stream.getvalue()[8:] == " outcome of seq=3 missing=a,b\n"
