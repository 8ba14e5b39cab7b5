"""The XX handshake against the wire vectors, and against junk, wrong turns, wrong names and bad keys."""

from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import HandshakeError, LocalError, MessageTooLargeError
from trionode.protocol.handshake.noise import (
    CLASSIC,
    MAX_MESSAGE,
    OCKAM_CURRENT,
    CipherState,
    HandshakeState,
    Role,
    SymmetricState,
)
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.vault import MemoryVault

PAYLOADS = (b"first", b"second", b"third")


def side(
    role: Role, vault: MemoryVault | None = None, name: bytes = OCKAM_CURRENT, prologue: bytes = b""
) -> HandshakeState:
    vault = vault or MemoryVault()
    static, ephemeral = vault.generate(KeyKind.X25519), vault.generate(KeyKind.X25519, ephemeral=True)
    return HandshakeState(role, vault, static, ephemeral, name, prologue)


def known_side(role: Role, static: str, ephemeral: str, name: bytes, prologue: bytes = b"") -> HandshakeState:
    vault = MemoryVault()
    keys = [vault.import_secret(KeyKind.X25519, bytes.fromhex(secret)) for secret in (static, ephemeral)]
    return HandshakeState(role, vault, keys[0], keys[1], name, prologue)


@attrs.frozen
class Exchange:
    """Two sides, and whose turn each of the three messages is."""

    initiator: HandshakeState
    responder: HandshakeState

    @property
    def turns(self) -> list[tuple[HandshakeState, HandshakeState]]:
        return [(self.initiator, self.responder), (self.responder, self.initiator), (self.initiator, self.responder)]


def exchange() -> Exchange:
    return Exchange(side(Role.INITIATOR), side(Role.RESPONDER))


@pytest.mark.parametrize(("protocol_version", "name"), [("current", OCKAM_CURRENT), ("classic", CLASSIC)])
def test_handshakes_reproduce_the_wire_vectors(protocol_version: str, name: bytes) -> None:
    for vector in wire_vectors(f"{protocol_version}_noise.json", f"{protocol_version}.noise"):
        known: dict[str, Any] = vector["fields"]
        assert bytes.fromhex(known["protocol_name"]) == name.ljust(32, b"\0")
        both = Exchange(
            known_side(Role.INITIATOR, known["initiator_static"], known["initiator_ephemeral"], name),
            known_side(Role.RESPONDER, known["responder_static"], known["responder_ephemeral"], name),
        )
        for number, (writer, reader) in enumerate(both.turns, start=1):
            payload = bytes.fromhex(known["payloads"][number - 1])
            message = writer.write_message(payload)
            assert reader.read_message(message) == payload
            if number == known["message"]:
                assert message.hex() == vector["hex"]
        for done in (both.initiator, both.responder):
            assert done.handshake_hash.hex() == known["final_h"]
            k1, k2 = done.split()
            assert (k1.hex(), k2.hex()) == (known["k1_responder_to_initiator"], known["k2_initiator_to_responder"])


def test_messages_with_empty_payloads_have_32_96_and_64_bytes() -> None:
    both = exchange()
    sizes = list[int]()
    for writer, reader in both.turns:
        message = writer.write_message()
        sizes.append(len(message))
        assert reader.read_message(message) == b""
    assert sizes == [32, 96, 64]


def test_both_sides_end_with_the_same_secrets_and_each_others_keys() -> None:
    both = exchange()
    for (writer, reader), payload in zip(both.turns, PAYLOADS, strict=True):
        assert reader.read_message(writer.write_message(payload)) == payload
    initiator, responder = both.initiator, both.responder
    assert initiator.finished
    assert responder.finished
    assert initiator.split() == responder.split()
    assert len(set(initiator.split())) == 2
    assert initiator.handshake_hash == responder.handshake_hash
    assert initiator.remote_static == responder._static.public
    assert responder.remote_static == initiator._static.public


@given(st.integers(0, 2), st.binary(max_size=200))
@settings(deadline=None)
def test_junk_is_refused_and_the_right_message_is_accepted_afterwards(spoiled: int, junk: bytes) -> None:
    both = exchange()
    for number, (writer, reader) in enumerate(both.turns):
        message = writer.write_message()
        # Message 1 is in the open: whatever has 32 bytes is one.
        if number == spoiled and (number > 0 or len(junk) < 32):
            with pytest.raises(HandshakeError):
                reader.read_message(junk)
        reader.read_message(message)
    assert both.initiator.split() == both.responder.split()


@given(st.sampled_from([1, 2]), st.integers(min_value=0))
@settings(deadline=None)
def test_any_flipped_bit_is_refused_and_the_right_message_is_accepted_afterwards(spoiled: int, bit: int) -> None:
    both = exchange()
    for number, ((writer, reader), payload) in enumerate(zip(both.turns, PAYLOADS, strict=True)):
        message = writer.write_message(payload)
        if number == spoiled:
            flipped = bytearray(message)
            # The top bit of an X25519 key is ignored by the curve but not by the transcript: it too must be refused.
            flipped[bit // 8 % len(message)] ^= 1 << bit % 8
            for bad in (bytes(flipped), message[:-1], message + b"\0", message[:40], b""):
                with pytest.raises(HandshakeError):
                    reader.read_message(bad)
        assert reader.read_message(message) == payload
    assert both.initiator.handshake_hash == both.responder.handshake_hash


def test_a_changed_first_message_is_detected_in_the_second() -> None:
    both = exchange()
    first = both.initiator.write_message(b"hello")
    assert both.responder.read_message(first[:-1] + b"!") == b"hell!"
    with pytest.raises(HandshakeError):
        both.initiator.read_message(both.responder.write_message())


def test_every_cause_has_the_same_error_text() -> None:
    both = exchange()
    message = both.initiator.write_message()
    said = set[str]()
    both.responder.read_message(message)
    answer = both.responder.write_message()
    for bad in (b"", answer[:50], bytes(96), answer[:-1] + bytes([answer[-1] ^ 1]), bytes(MAX_MESSAGE + 1)):
        with pytest.raises(HandshakeError) as refused:
            both.initiator.read_message(bad)
        said.add(str(refused.value))
        assert refused.value.__cause__ is None
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "prologue"),
    [(CLASSIC, b"ours"), (OCKAM_CURRENT, b"theirs")],
    ids=["another protocol version", "another prologue"],
)
def test_sides_with_different_parameters_do_not_agree(name: bytes, prologue: bytes) -> None:
    initiator = side(Role.INITIATOR, name=OCKAM_CURRENT, prologue=b"ours")
    responder = side(Role.RESPONDER, name=name, prologue=prologue)
    responder.read_message(initiator.write_message())
    with pytest.raises(HandshakeError):
        initiator.read_message(responder.write_message())


# The points of small order on Curve25519 (RFC 7748 §7 asks for this check), some of them written non-canonically.
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_small_order_ephemeral_is_refused_before_an_answer(point: str) -> None:
    responder = side(Role.RESPONDER)
    responder.read_message(bytes.fromhex(point))
    with pytest.raises(HandshakeError):
        responder.write_message()


class LyingVault(MemoryVault):
    """Claims an all-zero static key, and agrees on the all-zero secret that any peer would have with it."""

    def x25519(self, handle: KeyHandle, public: bytes) -> bytes:
        return bytes(32) if handle.public == bytes(32) else super().x25519(handle, public)


def test_a_small_order_static_is_refused_although_its_tags_verify() -> None:
    vault = LyingVault()
    static = attrs.evolve(vault.generate(KeyKind.X25519), public=bytes(32))
    liar = HandshakeState(Role.RESPONDER, vault, static, vault.generate(KeyKind.X25519))
    initiator = side(Role.INITIATOR)
    liar.read_message(initiator.write_message())
    with pytest.raises(HandshakeError):
        initiator.read_message(liar.write_message())


def test_a_call_out_of_turn_raises_local_error() -> None:
    both = exchange()
    with pytest.raises(LocalError, match="read it"):
        both.responder.write_message()
    with pytest.raises(LocalError, match="write it"):
        both.initiator.read_message(bytes(32))
    first = both.initiator.write_message()
    with pytest.raises(LocalError, match="message 2"):
        both.initiator.write_message()
    both.responder.read_message(first)
    with pytest.raises(LocalError, match="message 2"):
        both.responder.read_message(first)


def test_results_are_not_available_before_the_end() -> None:
    both = exchange()
    for reach in (
        both.initiator.split,
        lambda: both.initiator.handshake_hash,
        lambda: both.initiator.remote_static,
    ):
        with pytest.raises(LocalError):
            reach()


def test_a_finished_handshake_accepts_no_more_messages() -> None:
    both = exchange()
    for writer, reader in both.turns:
        reader.read_message(writer.write_message())
    with pytest.raises(LocalError, match="finished"):
        both.responder.write_message()
    with pytest.raises(LocalError, match="finished"):
        both.responder.read_message(b"")


def test_the_longest_message_is_65535_bytes_and_a_longer_one_is_not_written() -> None:
    both = exchange()
    with pytest.raises(MessageTooLargeError):
        both.initiator.write_message(bytes(MAX_MESSAGE - 31))
    longest = bytes(MAX_MESSAGE - 32)
    assert both.responder.read_message(both.initiator.write_message(longest)) == longest


def test_no_repr_contains_a_secret() -> None:
    secret = "77" * 32
    for state in (
        known_side(Role.INITIATOR, secret, secret, OCKAM_CURRENT),
        SymmetricState.start(OCKAM_CURRENT, b"").mix_key(b"w" * 32),
    ):
        shown = repr(state)
        assert "77777777" not in shown
        assert "wwww" not in shown
        assert "chaining_key" not in shown


def test_a_message_beyond_the_largest_is_refused_though_it_fits_threat_16() -> None:
    first = side(Role.INITIATOR).write_message()
    side(Role.RESPONDER).read_message(first + bytes(MAX_MESSAGE - len(first)))  # message 1 is not encrypted
    with pytest.raises(HandshakeError):
        side(Role.RESPONDER).read_message(first + bytes(MAX_MESSAGE - len(first) + 1))


def test_the_key_of_a_cipher_is_not_in_its_repr_threat_27() -> None:
    key = bytes(range(32))
    assert repr(key) not in repr(CipherState(key))
