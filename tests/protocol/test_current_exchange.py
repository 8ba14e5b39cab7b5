from collections.abc import Callable
from itertools import product

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import DecryptError, HandshakeError, LocalError, VaultError
from trionode.protocol.handshake import noise
from trionode.protocol.handshake.current_exchange import CurrentExchange
from trionode.protocol.handshake.exchange import Event, State
from trionode.protocol.handshake.noise import Role
from trionode.protocol.identity.attestation import PurposeKeyAttestation
from trionode.protocol.identity.identity import create_history, rotate
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.identity.payload import IdentityPayload
from trionode.protocol.identity.signed import DataKind, Signed
from trionode.protocol.session.session import Session
from trionode.protocol.wire import cbor
from trionode.vault.memory import MemoryVault

NOW = 1_700_000_000


@attrs.frozen
class Party:
    """An identity with fixed keys, and how it says so."""

    vault: MemoryVault
    signing: KeyHandle
    static: KeyHandle
    payload: IdentityPayload

    def initiate(self) -> CurrentExchange:
        return CurrentExchange.create(Role.INITIATOR, self.vault, self.static, self.payload)

    def respond(self) -> CurrentExchange:
        return CurrentExchange.create(Role.RESPONDER, self.vault, self.static, self.payload)


def make_party(seed: int, *, created_at: int = NOW, expires_at: int = NOW + 1000) -> Party:
    vault = MemoryVault()
    signing = vault.import_secret(KeyKind.ED25519, bytes([seed]) * 32)
    static = vault.import_secret(KeyKind.X25519, bytes([seed + 100]) * 32)
    history = create_history(vault, signing, created_at)
    attestation = PurposeKeyAttestation.make(
        history, vault, signing, static, created_at=created_at, expires_at=expires_at
    )
    return Party(vault, signing, static, IdentityPayload(history, attestation))


ALICE, BOB = make_party(1), make_party(2)


def answered(alice: CurrentExchange, bob: CurrentExchange) -> bytes:
    """Message 2, after message 1 has been sent."""
    second = bob.receive(alice.begin(), NOW)
    assert second is not None
    return second


def third(alice: CurrentExchange, bob: CurrentExchange) -> bytes:
    """Message 3, after the initiator has accepted."""
    assert alice.receive(answered(alice, bob), NOW) is None
    last = alice.accept()
    assert last is not None
    return last


def opened(alice: CurrentExchange, bob: CurrentExchange) -> None:
    assert bob.receive(third(alice, bob), NOW) is None
    assert bob.accept() is None


def test_two_parties_learn_each_others_identity_and_share_sessions() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    opened(alice, bob)
    assert alice.state is bob.state is State.OPEN
    assert alice.peer is not None
    assert bob.peer is not None
    assert alice.peer.history == BOB.payload.history
    assert bob.peer.identifier == ALICE.payload.history.identifier
    assert alice.handshake_hash == bob.handshake_hash
    for number in range(40):
        text = str(number).encode()
        assert bob.session().decrypt(alice.session().encrypt(text)) == text
        assert alice.session().decrypt(bob.session().encrypt(text)) == text


def test_there_is_only_one_session_object() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    opened(alice, bob)
    assert alice.session() is alice.session()


def test_a_reflected_message_does_not_verify() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    opened(alice, bob)
    with pytest.raises(DecryptError):
        alice.session().decrypt(alice.session().encrypt(b"reflected"))


def test_the_peer_is_known_and_there_is_no_session_before_accept() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    alice.receive(answered(alice, bob), NOW)
    assert alice.state is State.DECIDING
    assert alice.peer is not None
    for exchange in (alice, bob):
        with pytest.raises(LocalError):
            exchange.session()
        with pytest.raises(LocalError):
            _ = exchange.handshake_hash


# Junk, and the right message after it


def junk(good: bytes) -> list[bytes]:
    flipped = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 7)]
    return [
        b"",
        b"\0",
        bytes(32),
        bytes(96),
        bytes(len(good)),
        good[:-1],
        good + b"\0",
        bytes(noise.MAX_MESSAGE + 1),
        *flipped,
    ]


def test_junk_instead_of_a_handshake_message_changes_nothing() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    first = alice.begin()
    for message in (b"", bytes(31), bytes(32)):
        with pytest.raises(HandshakeError):
            bob.receive(message, NOW)
    second = bob.receive(first, NOW)
    assert second is not None
    for message in junk(second):
        with pytest.raises(HandshakeError):
            alice.receive(message, NOW)
        assert alice.peer is None
    alice.receive(second, NOW)
    last = alice.accept()
    assert last is not None
    for message in junk(last):
        with pytest.raises(HandshakeError):
            bob.receive(message, NOW)
        assert bob.peer is None
    bob.receive(last, NOW)
    bob.accept()
    assert bob.session().decrypt(alice.session().encrypt(b"all the same")) == b"all the same"


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_only_the_expected_message_changes_the_state(messages: list[bytes]) -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    second = answered(alice, bob)
    for exchange in (alice, bob):
        for message in messages:
            with pytest.raises(HandshakeError):
                exchange.receive(message, NOW)
    assert alice.receive(second, NOW) is None


def test_messages_out_of_turn_are_refused() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    with pytest.raises(HandshakeError):
        alice.receive(bytes(32), NOW)
    second = answered(alice, bob)
    alice.receive(second, NOW)
    with pytest.raises(HandshakeError):
        alice.receive(second, NOW)
    last = alice.accept()
    assert last is not None
    bob.receive(last, NOW)
    with pytest.raises(HandshakeError):
        bob.receive(last, NOW)
    bob.accept()
    for exchange in (alice, bob):
        with pytest.raises(HandshakeError):
            exchange.receive(last, NOW)


def test_messages_of_another_handshake_are_refused() -> None:
    alice, bob, other_alice, other_bob = ALICE.initiate(), BOB.respond(), ALICE.initiate(), BOB.respond()
    answered(alice, bob)
    with pytest.raises(HandshakeError):
        alice.receive(answered(other_alice, other_bob), NOW)


def test_a_first_message_may_carry_a_payload() -> None:
    alice = ALICE.vault.generate(KeyKind.X25519, ephemeral=True)
    handshake = noise.HandshakeState(noise.Role.INITIATOR, ALICE.vault, ALICE.static, alice)
    bob = BOB.respond()
    second = bob.receive(handshake.write_message(b"hello"), NOW)
    assert second is not None
    assert IdentityPayload.decode(handshake.read_message(second)) == BOB.payload


@pytest.mark.parametrize(
    "point",
    [bytes(32), (1).to_bytes(32, "little"), (2**255 - 19).to_bytes(32, "little"), (2**255 - 18).to_bytes(32, "little")],
)
def test_points_of_small_order_are_refused(point: bytes) -> None:
    bob = BOB.respond()
    with pytest.raises(HandshakeError):
        bob.receive(point, NOW)
    assert bob.state is State.READY


# Identities that are not good enough


def says(sender: Party, payload: bytes) -> Callable[[CurrentExchange], bytes]:
    """Return a function that makes message 2 for an initiator: valid Noise with that party's keys, any payload."""

    def answer(alice: CurrentExchange) -> bytes:
        ephemeral = sender.vault.generate(KeyKind.X25519, ephemeral=True)
        handshake = noise.HandshakeState(noise.Role.RESPONDER, sender.vault, sender.static, ephemeral)
        handshake.read_message(alice.begin())
        return handshake.write_message(payload)

    return answer


def bad_payloads() -> dict[str, tuple[Party, bytes]]:
    mallory = make_party(3)
    history = mallory.payload.history
    key = mallory.vault.import_secret(KeyKind.ED25519, bytes([33]) * 32)
    newer = rotate(history, mallory.vault, mallory.signing, key, NOW)
    channel: cbor.Value = [0, [mallory.static.public]]

    def forged(inner: cbor.Value, signer: KeyHandle) -> bytes:
        signed = Signed.make(DataKind.ATTESTATION, inner, mallory.vault, signer)
        return cbor.encode([history.item, signed.item, []])

    return {
        "no payload": (mallory, b""),
        "no identity": (mallory, cbor.encode([[], [], []])),
        "another identity and its attestation": (mallory, BOB.payload.encode()),
        "another identity, own attestation": (
            mallory,
            cbor.encode([BOB.payload.history.item, mallory.payload.attestation.signed.item, []]),
        ),
        "attested by another key": (
            mallory,
            forged([history.identifier.value, history.latest.hash, channel, NOW, NOW + 10], key),
        ),
        "another subject": (
            mallory,
            forged(
                [BOB.payload.history.identifier.value, history.latest.hash, channel, NOW, NOW + 10], mallory.signing
            ),
        ),
        "attested before the rotation": (mallory, IdentityPayload(newer, mallory.payload.attestation).encode()),
        "expired": (late := make_party(4, expires_at=NOW), late.payload.encode()),
        "from the future": (early := make_party(5, created_at=NOW + 61), early.payload.encode()),
        "our own identity": (ALICE, ALICE.payload.encode()),
        "credentials that are none": (
            mallory,
            cbor.encode([history.item, mallory.payload.attestation.signed.item, [[b"", b""]]]),
        ),
    }


@pytest.mark.parametrize("case", bad_payloads())
def test_an_invalid_identity_is_refused_and_the_right_one_still_accepted(case: str) -> None:
    sender, payload = bad_payloads()[case]
    alice = ALICE.initiate()
    texts = set()
    with pytest.raises(HandshakeError) as raised:
        alice.receive(says(sender, payload)(alice), NOW)
    texts.add(str(raised.value))
    with pytest.raises(HandshakeError) as raised:
        alice.receive(b"", NOW)
    texts.add(str(raised.value))
    assert len(texts) == 1, "one text for every cause"
    assert alice.peer is None
    assert alice.state is State.AWAITING


@pytest.mark.parametrize("case", bad_payloads())
def test_a_responder_refuses_the_same_identities(case: str) -> None:
    initiator, payload = bad_payloads()[case]
    bob = make_party(1).respond() if case == "our own identity" else make_party(6).respond()
    ephemeral = initiator.vault.generate(KeyKind.X25519, ephemeral=True)
    handshake = noise.HandshakeState(noise.Role.INITIATOR, initiator.vault, initiator.static, ephemeral)
    second = bob.receive(handshake.write_message(), NOW)
    assert second is not None
    handshake.read_message(second)
    with pytest.raises(HandshakeError, match="does not verify"):
        bob.receive(handshake.write_message(payload), NOW)
    assert bob.peer is None


def test_an_invalid_identity_in_valid_noise_does_not_block_the_right_answer() -> None:
    alice, bob, mallory = ALICE.initiate(), BOB.respond(), make_party(3)
    first = alice.begin()
    second = bob.receive(first, NOW)
    assert second is not None
    ephemeral = mallory.vault.generate(KeyKind.X25519, ephemeral=True)
    handshake = noise.HandshakeState(noise.Role.RESPONDER, mallory.vault, mallory.static, ephemeral)
    handshake.read_message(first)
    with pytest.raises(HandshakeError):
        alice.receive(handshake.write_message(BOB.payload.encode()), NOW)
    alice.receive(second, NOW)
    assert alice.peer is not None
    assert alice.peer.history == BOB.payload.history


def test_reflected_messages_open_nothing() -> None:
    alice, mirror = ALICE.initiate(), ALICE.respond()
    first = alice.begin()
    with pytest.raises(HandshakeError):
        alice.receive(first, NOW)
    second = mirror.receive(first, NOW)
    assert second is not None
    with pytest.raises(HandshakeError):
        alice.receive(second, NOW)
    with pytest.raises(HandshakeError):
        mirror.receive(second, NOW)


def test_a_rotated_identity_is_accepted_with_its_new_attestation() -> None:
    bob = make_party(2)
    key = bob.vault.import_secret(KeyKind.ED25519, bytes([22]) * 32)
    history = rotate(bob.payload.history, bob.vault, bob.signing, key, NOW)
    attestation = PurposeKeyAttestation.make(history, bob.vault, key, bob.static, created_at=NOW, expires_at=NOW + 9)
    alice, responder = (
        ALICE.initiate(),
        CurrentExchange.create(Role.RESPONDER, bob.vault, bob.static, IdentityPayload(history, attestation)),
    )
    opened(alice, responder)
    assert alice.peer is not None
    assert len(alice.peer.history.changes) == 2
    assert alice.peer.identifier == BOB.payload.history.identifier


def test_the_payload_must_attest_the_static_key_that_is_used() -> None:
    other = ALICE.vault.generate(KeyKind.X25519)
    with pytest.raises(LocalError, match="attests another key"):
        CurrentExchange.create(Role.INITIATOR, ALICE.vault, other, ALICE.payload)


# Verbs, and the ephemeral key


def test_ephemeral_keys_are_forgotten_after_use() -> None:
    vault = make_party(7)
    bobs = make_party(8)
    ephemeral = vault.vault.generate(KeyKind.X25519, ephemeral=True)
    theirs = bobs.vault.generate(KeyKind.X25519, ephemeral=True)
    alice = CurrentExchange.create(Role.INITIATOR, vault.vault, vault.static, vault.payload, ephemeral)
    bob = CurrentExchange.create(Role.RESPONDER, bobs.vault, bobs.static, bobs.payload, theirs)
    opened(alice, bob)
    for holder, handle in ((vault, ephemeral), (bobs, theirs)):
        with pytest.raises(VaultError):
            holder.vault.x25519(handle, ALICE.static.public)
        assert holder.vault.x25519(holder.static, ALICE.static.public)


def test_an_exchange_can_be_refused_in_every_state_and_forgets_its_key() -> None:
    for steps in range(3):
        party = make_party(7)
        ephemeral = party.vault.generate(KeyKind.X25519, ephemeral=True)
        alice = CurrentExchange.create(Role.INITIATOR, party.vault, party.static, party.payload, ephemeral)
        bob = BOB.respond()
        second = answered(alice, bob) if steps else b""
        if steps == 2:
            alice.receive(second, NOW)
        alice.refuse()
        alice.refuse()
        assert alice.state is State.REFUSED
        with pytest.raises(VaultError):
            party.vault.x25519(ephemeral, BOB.static.public)
        with pytest.raises(HandshakeError):
            alice.receive(second, NOW)
        with pytest.raises(LocalError):
            alice.accept()


def test_methods_out_of_turn_raise_local_error() -> None:
    with pytest.raises(LocalError):
        BOB.respond().begin()
    alice = ALICE.initiate()
    with pytest.raises(LocalError):
        alice.accept()
    alice.begin()
    with pytest.raises(LocalError):
        alice.begin()


@pytest.mark.parametrize("role", Role)
def test_the_table_ends_and_can_always_be_refused(role: Role) -> None:
    table = CurrentExchange.TABLES[role]
    reached, waiting = {State.READY}, [State.READY]
    while waiting:
        state = waiting.pop()
        for event in Event:
            step = table.get((state, event))
            if step and step[1] not in reached:
                reached.add(step[1])
                waiting.append(step[1])
    assert reached == set(State) - {State.AGREEING}
    assert all((state, Event.REFUSE) in table for state in reached)
    assert all(
        (state, event) not in table
        for state, event in product((State.OPEN, State.REFUSED), Event)
        if event is not Event.REFUSE
    )


def test_no_repr_contains_a_secret() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    opened(alice, bob)
    to_initiator, to_responder = alice._noise.split()
    for text in (repr(alice), repr(bob.peer)):
        for secret in (to_initiator, to_responder, bytes([1]) * 32, bytes([101]) * 32):
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


# Vectors


@pytest.mark.parametrize("payloads", ["empty", "payloads"])
def test_handshakes_reproduce_the_noise_vectors(payloads: str) -> None:
    vectors = {vector["name"]: vector for vector in wire_vectors("current_noise.json", "current.noise")}
    first, second, last = (vectors[f"noise_ockam_{payloads}_msg{number}"] for number in (1, 2, 3))
    fields, vault = first["fields"], MemoryVault()

    def handshake(role: noise.Role) -> noise.HandshakeState:
        secrets = (bytes.fromhex(fields[f"{role.value}_{name}"]) for name in ("static", "ephemeral"))
        static, ephemeral = (vault.import_secret(KeyKind.X25519, secret) for secret in secrets)
        return noise.HandshakeState(role, vault, static, ephemeral)

    alice, bob = handshake(noise.Role.INITIATOR), handshake(noise.Role.RESPONDER)
    for writer, reader, vector, payload in zip(
        (alice, bob, alice), (bob, alice, bob), (first, second, last), fields["payloads"], strict=True
    ):
        message = writer.write_message(bytes.fromhex(payload))
        assert message.hex() == vector["hex"]
        assert reader.read_message(message).hex() == payload
    for side in (alice, bob):
        assert side.handshake_hash.hex() == fields["final_h"]
        assert [key.hex() for key in side.split()] == [
            fields["k1_responder_to_initiator"],
            fields["k2_initiator_to_responder"],
        ]


def test_exchange_and_session_reproduce_the_transcripts() -> None:
    replayed = 0
    for transcript in wire_vectors("current_transcripts.json", "current.transcript"):
        fields, steps = transcript["fields"], transcript["steps"]
        noises = {step["message"]: step for step in steps if step["message"].startswith("noise")}
        for side in ("initiator", "responder"):
            static = fields.get(f"{side}_static_secret") or (fields["known_side"] == side and fields["static_secret"])
            ephemeral = fields.get(f"{side}_ephemeral_secret") or (
                fields["known_side"] == side and fields["ephemeral_secret"]
            )
            if static and ephemeral:
                exchange = replay_handshake(side, static, ephemeral, noises)
                assert exchange.handshake_hash.hex() == fields["h"]
                replay_data(side, exchange.session(), [step for step in steps if "plaintext" in step])
                replayed += 1
    assert replayed == 3


def replay_handshake(side: str, static: str, ephemeral: str, noises: dict[str, dict[str, str]]) -> CurrentExchange:
    vault = MemoryVault()
    keys = [vault.import_secret(KeyKind.X25519, bytes.fromhex(secret)) for secret in (static, ephemeral)]
    first, second, last = (bytes.fromhex(noises[f"noise {number}"]["noise"]) for number in (1, 2, 3))
    said = noises["noise 3" if side == "initiator" else "noise 2"]["noise_payload"]
    theirs = noises["noise 2" if side == "initiator" else "noise 3"]["noise_payload"]
    payload = IdentityPayload.decode(bytes.fromhex(said))
    now = payload.attestation.created_at
    if side == "initiator":
        exchange = CurrentExchange.create(Role.INITIATOR, vault, keys[0], payload, keys[1])
        assert exchange.begin() == first
        exchange.receive(second, now)
        assert exchange.accept() == last
    else:
        exchange = CurrentExchange.create(Role.RESPONDER, vault, keys[0], payload, keys[1])
        assert exchange.receive(first, now) == second
        exchange.receive(last, now)
        assert exchange.accept() is None
    assert exchange.peer is not None
    assert exchange.peer.history == IdentityPayload.decode(bytes.fromhex(theirs)).history
    return exchange


def replay_data(side: str, session: Session, steps: list[dict[str, str | int]]) -> None:
    sent = 0
    for step in steps:
        blob_size = 8 + len(str(step["plaintext"])) // 2 + 16
        frame, plaintext = bytes.fromhex(str(step["hex"])), bytes.fromhex(str(step["plaintext"]))
        # Rust's messages end in an empty tracing text behind the blob, the others in the blob.
        blob = frame[-blob_size - 3 : -3] if step["tracing"] == "{}" else frame[-blob_size:]
        if str(step["direction"]).startswith(side):
            while sent < int(step["nonce"]):
                session.encrypt(b"left out of the transcript")
                sent += 1
            assert session.encrypt(plaintext) == blob
            sent += 1
        else:
            assert session.decrypt(blob) == plaintext
