from collections.abc import Callable
from itertools import product

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.vectors import load, wire_vectors
from trionode.errors import DecryptError, HandshakeError, LocalError, VaultError, WireError
from trionode.protocol.handshake import noise
from trionode.protocol.handshake.classic_exchange import (
    MAX_IDENTITY_MESSAGE,
    ClassicExchange,
    IdentityKind,
    is_classic,
    read_first,
    write_first,
)
from trionode.protocol.handshake.exchange import Event, State
from trionode.protocol.handshake.noise import Role
from trionode.protocol.identity.classic_identity import ClassicHistory, create_classic_history, verify_classic_history
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.session.cipher import ChannelCipher, ClassicCipher
from trionode.protocol.session.session import Session
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import MAX_VALUE, Encoded, local
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.vault.memory import MemoryVault

NOW = 1_700_000_000
ALICES, BOBS = local("a" * 32), local("b" * 32)


@attrs.frozen
class Party:
    """An identity with a fixed key."""

    vault: MemoryVault
    signing: KeyHandle
    history: ClassicHistory

    def initiate(self, ours: Encoded = ALICES) -> ClassicExchange:
        return ClassicExchange.create(Role.INITIATOR, self.vault, self.signing, self.history, ours)

    def respond(self, ours: Encoded = BOBS) -> ClassicExchange:
        return ClassicExchange.create(Role.RESPONDER, self.vault, self.signing, self.history, ours)


def make_party(seed: int) -> Party:
    vault = MemoryVault()
    signing = vault.import_secret(KeyKind.ED25519, bytes([seed]) * 32)
    return Party(vault, signing, create_classic_history(vault, signing))


ALICE, BOB = make_party(1), make_party(2)


def taken(exchange: ClassicExchange, message: bytes) -> bytes:
    """The answer to a message that has one."""
    answer = exchange.receive(message, NOW)
    assert answer is not None
    return answer


def up_to(number: int, alice: ClassicExchange, bob: ClassicExchange) -> bytes:
    """Message `number`, after all before it have arrived."""
    message = alice.begin()
    for n in range(2, number + 1):
        if n == 5:
            assert alice.receive(message, NOW) is None
            last = alice.accept()
            assert last is not None
            return last
        message = taken(alice if n == 3 else bob, message)
    return message


def opened(alice: ClassicExchange, bob: ClassicExchange) -> tuple[ChannelCipher, ChannelCipher]:
    assert bob.receive(up_to(5, alice, bob), NOW) is None
    assert bob.accept() is None
    return alice.cipher(), bob.cipher()


def sent(sender: ChannelCipher, payload: bytes, *onward: str) -> bytes:
    return sender.encrypt(sender.encode(tuple(map(local, onward or ("echoer",))), (local("app"),), payload))


def received(reader: ChannelCipher, message: bytes) -> bytes:
    got = reader.decode(reader.decrypt(message))
    assert isinstance(got, tuple)
    assert got[:2] == ((local("echoer"),), (local("app"),))
    return got[2]


def refuses(exchange: ClassicExchange, message: bytes, *, ends: bool = False) -> str:
    """The text of the refusal; the exchange is as before, or it is over."""
    before = (exchange.state, exchange.peer, exchange._theirs)
    with pytest.raises(HandshakeError) as raised:
        exchange.receive(message, NOW)
    assert exchange.peer is before[1]
    assert exchange.state is (State.REFUSED if ends else before[0])
    assert ends or exchange._theirs == before[2]
    return str(raised.value)


# -- two parties -------------------------------------------------------------------------------------------------------


def test_two_parties_learn_each_others_identity_and_share_a_cipher() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    alices, bobs = opened(alice, bob)
    assert alice.state is bob.state is State.OPEN
    assert alice.peer is not None
    assert bob.peer is not None
    assert alice.peer.history == BOB.history
    assert bob.peer.identifier == ALICE.history.identifier
    assert alice.handshake_hash == bob.handshake_hash
    for number in range(100):
        text = b"%d" % number
        assert received(bobs, sent(alices, text)) == received(alices, sent(bobs, text)) == text


def test_the_outer_sizes_are_those_of_the_specification() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    first = alice.begin()
    second = taken(bob, first)
    third = taken(alice, second)
    assert (len(first), len(second), len(third)) == (69, 97, 65)
    assert (first[:1], second[:1], third[:1]) == (b"\x20", b"\x60", b"\x40")


def test_the_peer_is_known_and_there_is_no_cipher_before_accept() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    alice.receive(up_to(4, alice, bob), NOW)
    assert alice.state is State.DECIDING
    assert alice.peer is not None
    for exchange in (alice, bob):
        with pytest.raises(LocalError):
            exchange.cipher()


def test_there_is_only_one_session_object() -> None:
    alice = ALICE.initiate()
    cipher, _ = opened(alice, BOB.respond())
    assert alice.cipher().session is cipher.session
    # The identity message was the first.
    assert sent(cipher, b"x")[1:9] == (1).to_bytes(8, "big")


# -- data --------------------------------------------------------------------------------------------------------------


def test_replays_and_repeated_identity_messages_are_refused_threat_5() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    last = up_to(5, alice, bob)
    bob.receive(last, NOW)
    bob.accept()
    alices, bobs = alice.cipher(), bob.cipher()
    messages = [sent(alices, b"%d" % n) for n in range(33)]
    for message in reversed(messages):
        received(bobs, message)
    for message in (last, *messages):
        with pytest.raises(DecryptError):
            bobs.decrypt(message)


def test_a_reflected_message_does_not_verify_threat_12() -> None:
    alices, _ = opened(ALICE.initiate(), BOB.respond())
    with pytest.raises(DecryptError):
        alices.decrypt(sent(alices, b"reflected"))


@pytest.mark.parametrize("onward", [(), (BOBS,), (ALICES, local("echoer")), (local("echoer"), BOBS)])
def test_a_channel_message_without_an_address_behind_the_channel_is_refused(onward: tuple[Encoded, ...]) -> None:
    alices, bobs = opened(ALICE.initiate(), BOB.respond())
    plaintext = bobs.decrypt(alices.encrypt(CLASSIC.encode(onward, (), b"")))
    with pytest.raises(WireError):
        bobs.decode(plaintext)
    assert received(bobs, sent(alices, b"next")) == b"next"


@given(st.data())
def test_a_flipped_bit_is_refused_and_changes_no_state_threat_3(data: st.DataObject) -> None:
    alices, bobs = opened(ALICE.initiate(), BOB.respond())
    message = sent(alices, data.draw(st.binary(max_size=200)))
    bit = data.draw(st.integers(0, 8 * len(message) - 1))
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    for wrong in (bytes(changed), message[: bit // 8], message + b"\0"):
        with pytest.raises((DecryptError, WireError)):
            bobs.decrypt(wrong)
    received(bobs, message)


@given(
    st.binary(max_size=300), st.lists(st.binary(max_size=40), max_size=5), st.lists(st.binary(max_size=40), max_size=5)
)
def test_a_cipher_adds_at_most_its_overheads(payload: bytes, onward: list[bytes], back: list[bytes]) -> None:
    cipher = ClassicCipher(Session(bytes(32), bytes(32), rekey=False), ALICES, BOBS)
    routes = (tuple(map(local, [b"x", *onward])), tuple(map(local, back)))
    plaintext = cipher.encode(*routes, payload)
    # As the current version encodes it, at least: four heads of a byte each.
    assert (
        len(plaintext)
        <= 4 + sum(map(len, routes[0])) + sum(map(len, routes[1])) + len(payload) + 1 + cipher.encoding_overhead
    )
    assert len(cipher.encrypt(plaintext)) <= len(plaintext) + cipher.encryption_overhead


# -- junk, and the right message after it ------------------------------------------------------------------------------


def junk(good: bytes) -> list[bytes]:
    flipped = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 5)]
    content = bare.Reader(good).data()
    return [
        b"",
        b"\0",
        b"\xff" * 12,
        content,
        good[:-1],
        good + b"\0",
        bare.data(content[:-1]),
        bare.data(content + b"\0"),
        bare.data(bytes(len(content))),
        bare.data(bytes(8) + bytes(MAX_IDENTITY_MESSAGE)),
        *flipped,
    ]


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_junk_instead_of_a_message_changes_nothing(number: int) -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    good = up_to(number, alice, bob)
    waiting = bob if number % 2 else alice
    assert len({refuses(waiting, message) for message in junk(good)}) == 1, "one text for every cause"
    waiting.receive(good, NOW)


@given(st.integers(1, 4), st.data())
@settings(max_examples=200)
def test_duplicates_reflections_splices_and_earlier_messages_change_nothing(number: int, data: st.DataObject) -> None:
    # Of two handshakes between the same two, all messages so far, in any order and as often as may be.
    alice, bob, other_alice, other_bob = ALICE.initiate(), BOB.respond(), ALICE.initiate(), BOB.respond()
    second = taken(other_bob, first := other_alice.begin())
    fourth = taken(other_bob, third := taken(other_alice, second))
    seen = [first, second, third, fourth]
    message = alice.begin()
    for n in range(2, number + 1):
        seen.append(message)
        message = taken(alice if n % 2 else bob, message)
    waiting = bob if number % 2 else alice
    first_at_bob = waiting.state is State.READY
    wrong = [each for each in seen if not (first_at_bob and is_classic(each))]
    for each in data.draw(st.lists(st.sampled_from(wrong or [b""]), max_size=6)):
        refuses(waiting, each)
    waiting.receive(message, NOW)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_only_the_expected_message_changes_the_state(messages: list[bytes]) -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    message = up_to(2, alice, bob)
    for exchange in (alice, bob):
        for each in messages:
            refuses(exchange, each)
    taken(bob, taken(alice, message))


def test_messages_out_of_turn_are_refused() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    refuses(alice, bytes(32))
    fourth = up_to(4, alice, bob)
    refuses(bob, fourth)
    alice.receive(fourth, NOW)
    refuses(alice, fourth)
    last = alice.accept()
    assert last is not None
    refuses(alice, last)
    bob.receive(last, NOW)
    refuses(bob, last)
    bob.accept()
    refuses(bob, last)


def test_data_before_message_5_are_refused_and_the_exchange_goes_on() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    last = up_to(5, alice, bob)
    early = sent(alice.cipher(), b"too early")
    refuses(bob, early)
    bob.receive(last, NOW)
    bob.accept()
    # What overtook is not lost for good: nothing was opened.
    assert received(bob.cipher(), early) == b"too early"


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 19).to_bytes(32, "little")])
def test_points_of_small_order_are_refused_threat_14(point: bytes) -> None:
    refuses(BOB.respond(), write_first(point, ALICES))


# -- message 1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        b"",
        bytes(32),
        bare.data(bytes(32)),
        bare.data(bytes(32)) + b"\0",  # no address
        bare.data(bytes(32)) + b"\1" + bare.data(b""),
        bare.data(bytes(31)) + bare.optional(bare.data(b"\0\1x")),
        bare.data(bytes(33)) + bare.optional(bare.data(b"\0\1x")),
        bare.data(bytes(32)) + bare.optional(bare.data(b"\0\1xy")),
        bare.data(bytes(32)) + bare.optional(bare.data(b"\0\2x")),
        bare.data(bytes(32)) + bare.optional(bare.data(b"\0\1x")) + b"\0",
        bare.data(bytes(32)) + bare.optional(bare.data(b"\0" + bare.data(bytes(MAX_VALUE + 1)))),
        bare.data(bytes(32)) + b"\2" + bare.data(b"\0\1x"),
    ],
)
def test_an_invalid_first_message_is_not_classic(first: bytes) -> None:
    assert not is_classic(first)
    refuses(BOB.respond(), first)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=MAX_VALUE))
def test_first_messages_round_trip(first: bytes, value: bytes) -> None:
    assert read_first(write_first(first, local(value))) == (first, local(value))


@given(st.binary(min_size=32, max_size=32))
def test_no_current_first_message_looks_like_a_classic_one_threat_11(first: bytes) -> None:
    assert not is_classic(first)


# -- identities that are not good enough -------------------------------------------------------------------------------


def sealed(exchange: ClassicExchange, plaintext: bytes) -> bytes:
    """Any plaintext as the first message that this side seals."""
    to_initiator, to_responder = exchange._noise.split()
    key = to_responder if exchange._noise.role is Role.INITIATOR else to_initiator
    return bare.data(Session(key, key, rekey=False).encrypt(plaintext))


def said(kind: int, history: bytes, signature: bytes) -> bytes:
    return bare.uint(kind) + bare.data(history) + bare.data(signature)


#: Makes an invalid identity message: from its sender, both addresses (the receiver's first) and the expected kind.
Bad = Callable[[Party, ClassicExchange, Encoded, Encoded, int], bytes]


def _says(change: Callable[[Party, bytes, int], bytes]) -> Bad:
    return lambda sender, exchange, theirs, ours, kind: CLASSIC.encode(
        (theirs,), (ours,), change(sender, exchange.handshake_hash, kind)
    )


def _good(sender: Party, h: bytes, kind: int) -> bytes:
    return said(kind, sender.history.encoded, sender.vault.sign(sender.signing, h))


BAD: dict[str, Bad] = {
    "nothing": lambda *_: b"",
    "an empty message": _says(lambda *_: b""),
    "the other kind": _says(lambda sender, h, kind: _good(sender, h, 1 - kind)),
    "a confirmation": _says(lambda *_: b"\2"),
    "a byte more": _says(lambda sender, h, kind: _good(sender, h, kind) + b"\0"),
    "a byte less": _says(lambda sender, h, kind: _good(sender, h, kind)[:-1]),
    "no history": _says(lambda sender, h, kind: said(kind, b"\0", sender.vault.sign(sender.signing, h))),
    "a history of 2^40 bytes": _says(lambda _sender, _h, kind: bare.uint(kind) + bare.uint(2**40)),
    "a history that does not verify": _says(
        lambda sender, h, kind: said(kind, sender.history.encoded[:-1] + b"\0", sender.vault.sign(sender.signing, h))
    ),
    "another history": _says(
        lambda sender, h, kind: said(kind, make_party(9).history.encoded, sender.vault.sign(sender.signing, h))
    ),
    "no signature": _says(lambda sender, _h, kind: said(kind, sender.history.encoded, b"")),
    "a signature of another handshake": _says(
        lambda sender, h, kind: said(kind, sender.history.encoded, sender.vault.sign(sender.signing, h[::-1]))
    ),
    "to another address": lambda sender, exchange, _theirs, ours, kind: CLASSIC.encode(
        (local("x"),), (ours,), _good(sender, exchange.handshake_hash, kind)
    ),
    "to an address behind us": lambda sender, exchange, theirs, ours, kind: CLASSIC.encode(
        (theirs, local("x")), (ours,), _good(sender, exchange.handshake_hash, kind)
    ),
    "from nowhere": lambda sender, exchange, theirs, _ours, kind: CLASSIC.encode(
        (theirs,), (), _good(sender, exchange.handshake_hash, kind)
    ),
    "from afar": lambda sender, exchange, theirs, ours, kind: CLASSIC.encode(
        (theirs,), (ours, ours), _good(sender, exchange.handshake_hash, kind)
    ),
    "data": lambda _sender, _exchange, theirs, ours, _kind: CLASSIC.encode((theirs, local("echoer")), (ours,), b"data"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("role", Role)
def test_a_bad_identity_ends_the_exchange_with_one_text_for_all_causes_threat_25(case: str, role: Role) -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    if role is Role.INITIATOR:
        good = up_to(4, alice, bob)
        waiting, bad = alice, BAD[case](BOB, bob, ALICES, BOBS, IdentityKind.REQUEST)
        wrong = sealed(bob, bad)
    else:
        good = up_to(5, alice, bob)
        waiting, bad = bob, BAD[case](ALICE, alice, BOBS, ALICES, IdentityKind.RESPONSE)
        wrong = sealed(alice, bad)
    text = refuses(waiting, b"")
    assert refuses(waiting, wrong, ends=True) == text
    assert refuses(waiting, good) == text, "there is no second try"
    with pytest.raises(LocalError):
        waiting.accept()


def test_a_response_from_another_address_than_message_1_said_ends_the_exchange() -> None:
    alice, bob = ALICE.initiate(), BOB.respond()
    up_to(5, alice, bob)
    elsewhere = CLASSIC.encode((BOBS,), (local("x"),), _good(ALICE, alice.handshake_hash, IdentityKind.RESPONSE))
    refuses(bob, sealed(alice, elsewhere), ends=True)


def test_our_own_request_reflected_as_a_response_is_refused_threat_12() -> None:
    # ockam 0.77.0 accepts this: a peer that returns Bob's own signature to him counts as "Bob" (spec §8).
    mallory, bob = make_party(3).initiate(), BOB.respond()
    _, _, request = CLASSIC.decode(opened_by(mallory, up_to(4, mallory, bob)))
    assert request[0] == IdentityKind.REQUEST
    reflected = CLASSIC.encode((BOBS,), (ALICES,), bytes([IdentityKind.RESPONSE]) + request[1:])
    refuses(bob, sealed(mallory, reflected), ends=True)


def opened_by(exchange: ClassicExchange, message: bytes) -> bytes:
    """What a message says, opened with a copy of the session's key."""
    to_initiator, to_responder = exchange._noise.split()
    key = to_initiator if exchange._noise.role is Role.INITIATOR else to_responder
    return Session(key, key, rekey=False).decrypt(bare.Reader(message).data())


@pytest.mark.parametrize("role", Role)
def test_our_own_identity_is_refused_at_either_end_threat_12(role: Role) -> None:
    if role is Role.INITIATOR:
        alice, bob = ALICE.initiate(), ALICE.respond()
        refuses(alice, up_to(4, alice, bob), ends=True)
    else:
        # The initiator that does not mind: it accepts a peer that it should refuse.
        alice, bob = ALICE.initiate(), ALICE.respond()
        up_to(4, alice, bob)
        own = CLASSIC.encode((BOBS,), (ALICES,), _good(ALICE, alice.handshake_hash, IdentityKind.RESPONSE))
        refuses(bob, sealed(alice, own), ends=True)


def rotated() -> tuple[MemoryVault, KeyHandle, KeyHandle, ClassicHistory]:
    """An identity that has rotated its root key: its vault, the old key, the new one, the history."""
    (vector,) = [each for each in load("wire/classic_identities.json") if each["name"] == "classic_identity_rotated_7"]
    vault = MemoryVault()
    seeds = vector["fields"]["ed25519_seeds"]
    keys = [vault.import_secret(KeyKind.ED25519, bytes.fromhex(seed)) for seed in seeds]
    history = verify_classic_history(bytes.fromhex(vector["hex"]))
    (new,) = [key for key in keys if key.public == history.root_key]
    (old,) = [key for key in keys if key.public == history.changes[0].key]
    return vault, old, new, history


def test_a_rotated_identity_signs_with_its_current_root_key_and_no_older_one_threat_15() -> None:
    vault, old, new, history = rotated()
    alice = ALICE.initiate()
    opened(alice, ClassicExchange.create(Role.RESPONDER, vault, new, history, BOBS))
    assert alice.peer is not None
    assert alice.peer.history == history
    with pytest.raises(LocalError, match="root key"):
        ClassicExchange.create(Role.RESPONDER, vault, old, history, BOBS)
    alice, bob = ALICE.initiate(), ClassicExchange.create(Role.RESPONDER, vault, new, history, BOBS)
    up_to(4, alice, bob)
    by_the_old = said(IdentityKind.REQUEST, history.encoded, vault.sign(old, bob.handshake_hash))
    refuses(alice, sealed(bob, CLASSIC.encode((ALICES,), (BOBS,), by_the_old)), ends=True)


# -- verbs, and the keys -----------------------------------------------------------------------------------------------


def test_the_keys_of_a_handshake_are_forgotten_after_use() -> None:
    parties = make_party(7), make_party(8)
    before = [len(party.vault._keys) for party in parties]
    alice, bob = parties[0].initiate(), parties[1].respond()
    assert [len(party.vault._keys) for party in parties] == [count + 2 for count in before]
    assert all(len(party.vault.keys()) == 1 for party in parties)
    up_to(4, alice, bob)
    assert [len(party.vault._keys) for party in parties] == before


@pytest.mark.parametrize("steps", range(1, 5))
def test_an_exchange_can_be_refused_in_every_state_and_forgets_its_keys(steps: int) -> None:
    party = make_party(7)
    alice, bob = party.initiate(), BOB.respond()
    message = up_to(steps, alice, bob)
    if steps % 2 == 0:
        alice.receive(message, NOW)
    alice.refuse()
    alice.refuse()
    assert alice.state is State.REFUSED
    assert len(party.vault._keys) == 1
    with pytest.raises(HandshakeError):
        alice.receive(message, NOW)
    with pytest.raises(LocalError):
        alice.accept()


def test_a_missing_signing_key_does_not_change_the_state() -> None:
    party = make_party(7)
    alice, bob = ALICE.initiate(), party.respond()
    third = up_to(3, alice, bob)
    party.vault.forget(party.signing)
    for _ in range(2):
        with pytest.raises(VaultError):
            bob.receive(third, NOW)
        assert bob.state is State.AGREEING


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
    table = ClassicExchange.TABLES[role]
    reached, waiting = {State.READY}, [State.READY]
    while waiting:
        state = waiting.pop()
        for event in Event:
            step = table.get((state, event))
            if step and step[1] not in reached:
                reached.add(step[1])
                waiting.append(step[1])
    assert reached == set(State)
    assert all((state, Event.REFUSE) in table for state in State)
    assert all(
        (state, event) not in table
        for state, event in product((State.OPEN, State.REFUSED), Event)
        if event is not Event.REFUSE
    )


def test_no_repr_contains_a_secret() -> None:
    alice = ALICE.initiate()
    cipher, _ = opened(alice, BOB.respond())
    secrets = (*alice._noise.split(), bytes([1]) * 32)
    for text in (repr(alice), repr(cipher), repr(alice.peer)):
        for secret in secrets:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


# -- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payloads", ["empty", "payloads"])
def test_handshakes_reproduce_the_noise_vectors(payloads: str) -> None:
    vectors = {each["name"]: each for each in load("wire/classic_noise.json")}
    numbers = [number for number in (1, 2, 3) if f"noise_{payloads}_msg{number}" in vectors]
    assert numbers
    fields, vault = vectors[f"noise_{payloads}_msg{numbers[0]}"]["fields"], MemoryVault()

    def handshake(role: Role) -> noise.HandshakeState:
        secrets = (bytes.fromhex(fields[f"{role.value}_{name}"]) for name in ("static", "ephemeral"))
        static, ephemeral = (vault.import_secret(KeyKind.X25519, secret) for secret in secrets)
        return noise.HandshakeState(role, vault, static, ephemeral, noise.CLASSIC)

    alice, bob = handshake(Role.INITIATOR), handshake(Role.RESPONDER)
    for number, (writer, reader) in enumerate(((alice, bob), (bob, alice), (alice, bob)), 1):
        payload = fields["payloads"][number - 1]
        message = writer.write_message(bytes.fromhex(payload))
        assert number not in numbers or message.hex() == vectors[f"noise_{payloads}_msg{number}"]["hex"]
        assert reader.read_message(message).hex() == payload
    for side in (alice, bob):
        assert side.handshake_hash.hex() == fields["final_h"]
        assert [key.hex() for key in side.split()] == [
            fields["k1_responder_to_initiator"],
            fields["k2_initiator_to_responder"],
        ]


def address(text: str) -> Encoded:
    kind, _, value = text.partition("#")
    assert kind == "0"
    return local(value)


@pytest.mark.parametrize("side", Role)
def test_exchange_and_cipher_reproduce_the_transcripts(side: Role) -> None:
    # The other side of each was a running ockam 0.77.0.
    (transcript,) = [
        each
        for each in wire_vectors("classic_transcripts.json", "classic.transcript")
        if each["fields"]["known_side"] == side.value
    ]
    fields, steps = transcript["fields"], transcript["steps"]
    outer = {step["step"]: CLASSIC.decode(bytes.fromhex(step["hex"])[2:])[2] for step in steps}
    introduction = steps[3 if side is Role.RESPONDER else 4]
    ours = address(introduction["inner_return"][0])
    vault = MemoryVault()
    signing = vault.import_secret(KeyKind.ED25519, bytes.fromhex(fields["ed25519_seed"]))
    static, ephemeral = (
        vault.import_secret(KeyKind.X25519, bytes.fromhex(fields[f"{name}_secret"])) for name in ("static", "ephemeral")
    )
    history = create_classic_history(vault, signing)
    exchange = ClassicExchange.create(side, vault, signing, history, ours, keys=(static, ephemeral))
    if side is Role.INITIATOR:
        assert exchange.begin() == outer[1]
        assert exchange.receive(outer[2], NOW) == outer[3]
        assert exchange.receive(outer[4], NOW) is None
        assert exchange.accept() == outer[5]
    else:
        assert exchange.receive(outer[1], NOW) == outer[2]
        assert exchange.receive(outer[3], NOW) == outer[4]
        assert exchange.receive(outer[5], NOW) is None
        assert exchange.accept() is None
    assert exchange.handshake_hash.hex() == fields["h"]
    assert exchange.peer is not None
    assert str(exchange.peer.identifier) == steps[3 if side is Role.INITIATOR else 4]["identity"]
    replay_data(side, exchange.cipher(), ours, outer, steps[5:])


def replay_data(
    side: Role, cipher: ChannelCipher, ours: Encoded, outer: dict[int, bytes], steps: list[dict[str, object]]
) -> None:
    sent_so_far, checked = 1, 0
    for step in steps:
        number, nonce = step["step"], step["nonce"]
        assert isinstance(number, int)
        assert isinstance(nonce, int)
        routes = [step["inner_onward"], step["inner_return"]]
        assert all(isinstance(route, list) for route in routes)
        onward, back = (tuple(map(address, route)) for route in routes if isinstance(route, list))
        payload = bytes.fromhex(str(step["inner_payload"]))
        if str(step["direction"]).startswith(side.value):
            while sent_so_far < nonce:
                cipher.encrypt(b"left out of the transcript")
                sent_so_far += 1
            assert cipher.encrypt(cipher.encode(onward[1:], back, payload)) == outer[number]
            sent_so_far += 1
        else:
            assert onward[0] == ours
            assert cipher.decode(cipher.decrypt(outer[number])) == (onward[1:], back, payload)
        checked += 1
    assert checked in (2, 9)


def test_a_cipher_reproduces_the_vectors() -> None:
    for vector in load("wire/classic_cipher.json"):
        fields = vector["fields"]
        key, plaintext = bytes.fromhex(fields["key"]), bytes.fromhex(fields["plaintext"])
        cipher = ClassicCipher(Session(key, key, rekey=False), ALICES, BOBS)
        assert cipher.decrypt(bare.data(bytes.fromhex(vector["hex"]))) == plaintext
        if fields["nonce"] < 100:
            for _ in range(fields["nonce"]):
                cipher.encrypt(b"")
            assert cipher.encrypt(plaintext) == bare.data(bytes.fromhex(vector["hex"]))
