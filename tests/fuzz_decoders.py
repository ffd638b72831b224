"""The decoders under a fuzzer that is guided by coverage: whatever bytes come, they refuse or they decode.

    pip install 'edge-fi[fuzz]'
    python -m tests.fuzz_decoders [-max_total_time=60] [-runs=1000000] [CORPUS_FOLDER]

Options are libFuzzer's. Each decoder may raise ProtocolError, or ValueError where it reads what a person
typed; anything else is a finding, and so is a value that does not encode to the very bytes it came from.
"""

import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["edge_fi"]):
    from edge_fi.errors import ProtocolError
    from edge_fi.messages import VOTE_FORMS
    from edge_fi.wire import frames, invites, payloads, presence, topics, votes
    from edge_fi.wire.frames import Type

CLASSES = (2, 10, 17, 257)
SCALE = (-8, 0)


def _frame(data: bytes) -> None:
    kind = frames.parse_type(data)
    match kind:
        case Type.QUERY:
            frames.parse_query(data)
        case Type.SETTLED:
            frames.parse_settled(data)
        case Type.HELLO | Type.WELCOME:
            frames.parse_handshake(data)
        case Type.JOIN | Type.ACCEPT | Type.REFUSED:
            frames.parse_joining(data)
        case Type.ROSTER:
            frames.parse_roster(data)
        case Type.CLAIM | Type.HELD:
            frames.parse_claim(data)
        case _:
            frames.parse_session_frame(data)


def _same(encoded: bytes, data: bytes) -> None:
    if encoded != data:
        raise AssertionError(f"decodes to what is encoded as {encoded.hex()}")


def _query(data: bytes) -> None:
    query = payloads.decode_query(data)
    # Bits of forms of a later version are overlooked, and so not written again.
    _same(payloads.encode_query(query)[3:], data[3:])


def _accept(data: bytes) -> None:
    _same(payloads.encode_accept(payloads.decode_accept(data), longest=len(data)), data)


def _roster(data: bytes) -> None:
    _same(payloads.encode_roster(*payloads.decode_roster(data)), data)


def _rekey(data: bytes) -> None:
    _same(payloads.encode_rekey(payloads.decode_rekey(data)), data)


def _ask(data: bytes) -> None:
    said = payloads.decode_ask(data)
    if isinstance(said, payloads.Feedback):
        _same(payloads.encode_feedback(said), data)
    else:
        _same(payloads.encode_ask(said), data)


def _vote(data: bytes) -> None:
    if len(data) > 1:
        form = VOTE_FORMS[data[0] % len(VOTE_FORMS)]
        votes.dequantize(form, data[2:], CLASSES[data[1] % len(CLASSES)], scale=SCALE)


def _invite(data: bytes) -> None:
    text = data.decode("latin-1")
    if invites.encode(invites.decode(text)) != "".join(text.split()).upper():
        raise AssertionError("another text is the same invite")


def _topic(data: bytes) -> None:
    topics.parse_member(data.decode("latin-1"), "acme")


DECODERS: tuple[Callable[[bytes], object], ...] = (
    _frame,
    _query,
    _accept,
    _roster,
    _rekey,
    _ask,
    _vote,
    _invite,
    _topic,
    payloads.decode_hello,
    payloads.decode_outcome,
    payloads.decode_ready,
    lambda data: payloads.decode_welcome(data, is_device=True),
    lambda data: payloads.decode_welcome(data, is_device=False),
    presence.parse_gateway_state,
)


def test_one_input(data: bytes) -> None:
    """The first byte chooses the decoder."""
    if not data:
        return
    decoder = DECODERS[data[0] % len(DECODERS)]
    try:
        decoder(data[1:])
    except ProtocolError:
        pass
    except ValueError:
        if decoder is not _invite:
            raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
