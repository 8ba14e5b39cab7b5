"""Sessions against loss, reordering, duplication, forgery and far-future nonces."""

import attrs
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import ClosedError, DecryptError
from trionode.protocol.session import session as session_module
from trionode.protocol.session.session import INTERVAL, JUMP, NONCE_LIMIT, OVERHEAD, STRIDE, Session, next_key

ONE, OTHER = bytes(range(32)), bytes(range(32, 64))
AHEAD = JUMP * INTERVAL  # 32,768 messages


def pair(*, rekey: bool = True) -> tuple[Session, Session]:
    return Session(ONE, OTHER, rekey=rekey), Session(OTHER, ONE, rekey=rekey)


def sealed_at(key: bytes, nonce: int, plaintext: bytes) -> bytes:
    """The blob with this nonce, made as the specification says and not as Session does."""
    for _ in range(nonce // INTERVAL):
        key = AESGCM(key).encrypt(bytes(4) + b"\xff" * 8, bytes(32), None)[:32]
    head = nonce.to_bytes(8, "big")
    return head + AESGCM(key).encrypt(bytes(4) + head, plaintext, None)


def forged_at(nonce: int) -> bytes:
    return nonce.to_bytes(8, "big") + bytes(40)


def state(receiver: Session) -> tuple[object, ...]:
    """What must not move when a blob is refused (checkpoints may: they are a cache)."""
    keys, window = receiver._keys, receiver._window
    return keys.interval, keys.current, keys.previous, window.highest, window._accepted, receiver.newest


def refuses(receiver: Session, blob: bytes) -> None:
    before = state(receiver)
    with pytest.raises(DecryptError):
        receiver.decrypt(blob)
    assert state(receiver) == before


@attrs.frozen
class Arrival:
    """One blob that the network delivers: which one, and the bit it flips, if any."""

    index: int
    flip: int | None


def arrivals(sent: int) -> st.SearchStrategy[list[Arrival]]:
    flips = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 8 * (8 + 4 + 16) - 1))
    near = st.builds(Arrival, st.integers(0, sent - 1), flips)
    return st.lists(near, min_size=1, max_size=120)


@given(st.data(), st.booleans())
@settings(deadline=None)
def test_each_message_is_accepted_at_most_once_on_any_network(data: st.DataObject, rekey: bool) -> None:
    sender, receiver = pair(rekey=rekey)
    blobs = [sender.encrypt(index.to_bytes(4, "big")) for index in range(300)]
    accepted = set[int]()
    for arrival in data.draw(arrivals(len(blobs))):
        blob, newest = blobs[arrival.index], max(accepted, default=-1)
        if arrival.flip is not None:
            flipped = bytearray(blob)
            flipped[arrival.flip // 8] ^= 1 << arrival.flip % 8
            refuses(receiver, bytes(flipped))
        elif arrival.index in accepted or arrival.index < newest - 32:
            refuses(receiver, blob)
        else:
            assert receiver.decrypt(blob) == arrival.index.to_bytes(4, "big")
            assert receiver.newest == (arrival.index > newest)
            accepted.add(arrival.index)
    assert receiver.decrypt(sender.encrypt(b"the channel goes on")) == b"the channel goes on"


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.lists(st.integers(0, 2**64 - 1), max_size=4))
@settings(deadline=None, max_examples=30)
def test_loss_and_forged_nonces_never_end_a_channel(lost: list[int], forged: list[int]) -> None:
    sender, receiver = pair()
    for run in lost:
        late = [sender.encrypt(b"lost") for _ in range(run)][-1]
        for nonce in forged:
            refuses(receiver, forged_at(nonce))
        assert receiver.decrypt(sender.encrypt(b"kept")) == b"kept"
        assert receiver.newest
        assert receiver.decrypt(late) == b"lost"
        assert not receiver.newest


def test_a_ciphertext_has_a_nonce_before_it_and_a_tag_behind_it() -> None:
    sender, _ = pair()
    assert [sender.encrypt(b"hi")[:8] for _ in range(3)] == [nonce.to_bytes(8, "big") for nonce in range(3)]
    assert len(sender.encrypt(bytes(100))) == 100 + OVERHEAD


def test_both_directions_have_their_own_key() -> None:
    alice, bob = pair()
    refuses(alice, alice.encrypt(b"reflected"))
    assert bob.decrypt(alice.encrypt(b"to bob")) == b"to bob"
    assert alice.decrypt(bob.encrypt(b"to alice")) == b"to alice"


@pytest.mark.parametrize("first", [0, 1, 31, 32, 33, 1000])
def test_the_first_message_that_arrives_may_be_any(first: int) -> None:
    _, receiver = pair()
    assert receiver.decrypt(sealed_at(ONE, first, b"first")) == b"first"
    assert receiver.newest


def test_reordering_within_32_works_across_a_key_change_and_after_a_jump() -> None:
    _, receiver = pair()
    for nonce in (31, 5, 32, 33, 8, 1000, 999, 968, 1031, 1000 + 32 * 16, 1000 + 32 * 15):
        assert receiver.decrypt(sealed_at(ONE, nonce, b"%d" % nonce)) == b"%d" % nonce
    refuses(receiver, sealed_at(ONE, 1000 + 32 * 15 - 1, b"33 behind"))


@pytest.mark.parametrize("highest", [None, 0, 31, 32, 500])
def test_a_jump_of_32768_works_and_earlier_messages_may_arrive_late(highest: int | None) -> None:
    _, receiver = pair()
    if highest is not None:
        receiver.decrypt(sealed_at(ONE, highest, b"before"))
    far = (highest or 0) + AHEAD
    assert receiver.decrypt(sealed_at(ONE, far, b"far")) == b"far"
    assert receiver.decrypt(sealed_at(ONE, far - 32, b"late")) == b"late"
    refuses(receiver, sealed_at(ONE, far, b"far"))
    assert receiver.decrypt(sealed_at(ONE, far + 1, b"next")) == b"next"


def test_jumps_may_follow_each_other() -> None:
    _, receiver = pair()
    for nonce in (AHEAD, 2 * AHEAD, 2 * AHEAD + 777, 3 * AHEAD):
        assert receiver.decrypt(sealed_at(ONE, nonce, b"far")) == b"far"


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every key that a receiver derives from now on."""
    keys = list[bytes]()

    def counted(cipher: AESGCM) -> bytes:
        keys.append(next_key(cipher))
        return keys[-1]

    monkeypatch.setattr(session_module, "next_key", counted)
    return keys


@pytest.mark.parametrize("nonce", [AHEAD + INTERVAL, 1_000_000, 2**63, NONCE_LIMIT - 1, NONCE_LIMIT])
def test_a_nonce_farther_ahead_is_refused_at_no_cost(nonce: int, derived: list[bytes]) -> None:
    _, receiver = pair()
    refuses(receiver, forged_at(nonce))
    assert not derived


def test_a_good_message_one_interval_too_far_ahead_is_refused() -> None:
    _, receiver = pair()
    refuses(receiver, sealed_at(ONE, AHEAD + INTERVAL, b"too far"))


def test_a_forged_nonce_costs_many_key_changes_only_once(derived: list[bytes]) -> None:
    _, receiver = pair()
    refuses(receiver, forged_at(AHEAD))
    assert len(derived) == JUMP
    for nonce in range(AHEAD, 0, -997):
        derived.clear()
        refuses(receiver, forged_at(nonce))
        assert len(derived) < STRIDE
    assert len(receiver._keys._checkpoints) == JUMP // STRIDE


def test_forgeries_stay_cheap_and_past_keys_are_dropped(derived: list[bytes]) -> None:
    sender, receiver = pair()
    refuses(receiver, forged_at(AHEAD))
    for count in range(40 * INTERVAL):
        receiver.decrypt(sender.encrypt(b"traffic"))
        if count % 100 == 0:
            refuses(receiver, forged_at(count + AHEAD))
            derived.clear()
            refuses(receiver, forged_at(count + AHEAD - 50))
            assert len(derived) < STRIDE
    keys = receiver._keys
    first = keys.interval // STRIDE + 1
    chain, expected = AESGCM(ONE), list[bytes]()
    for interval in range(1, keys.interval + JUMP + 1):
        key = next_key(chain)
        chain = AESGCM(key)
        if interval % STRIDE == 0 and interval >= first * STRIDE:
            expected.append(key)
    assert keys._checkpoints == expected[: len(keys._checkpoints)]
    assert len(keys._checkpoints) <= JUMP // STRIDE


def test_a_jump_drops_the_checkpoints_that_it_passes() -> None:
    _, receiver = pair()
    refuses(receiver, forged_at(AHEAD))
    assert receiver.decrypt(sealed_at(ONE, AHEAD, b"far")) == b"far"
    assert receiver._keys._checkpoints == []


def test_in_order_traffic_derives_one_key_an_interval(derived: list[bytes]) -> None:
    sender, receiver = pair()
    for _ in range(10 * INTERVAL + 1):
        receiver.decrypt(sender.encrypt(b""))
    assert len(derived) == 10


@pytest.mark.parametrize("size", range(OVERHEAD))
def test_a_ciphertext_that_is_too_short_is_refused(size: int) -> None:
    _, receiver = pair()
    refuses(receiver, bytes(size))


def test_an_empty_plaintext_is_a_message() -> None:
    sender, receiver = pair()
    assert receiver.decrypt(sender.encrypt(b"")) == b""


def test_the_last_nonce_is_never_received() -> None:
    receiver = Session(OTHER, ONE, rekey=False)
    head = NONCE_LIMIT.to_bytes(8, "big")
    refuses(receiver, head + AESGCM(ONE).encrypt(bytes(4) + head, b"", None))


@pytest.mark.parametrize("rekey", [True, False])
def test_the_last_nonce_is_never_sent(*, rekey: bool) -> None:
    sender, _ = pair(rekey=rekey)
    sender._next = NONCE_LIMIT - 1
    sender._change_at = NONCE_LIMIT
    assert sender.encrypt(b"last")[:8] == (NONCE_LIMIT - 1).to_bytes(8, "big")
    for _ in range(2):
        with pytest.raises(ClosedError, match="open a new channel"):
            sender.encrypt(b"one more")


def test_the_last_key_change_is_followed_by_the_end() -> None:
    sender, _ = pair()
    sender._next = sender._change_at = NONCE_LIMIT - 31
    for _ in range(31):
        sender.encrypt(b"")
    with pytest.raises(ClosedError):
        sender.encrypt(b"")


def test_a_failed_encryption_uses_no_nonce_twice_and_changes_the_key_once() -> None:
    sender, receiver = pair()
    for _ in range(INTERVAL):
        sender.encrypt(b"")
    with pytest.raises(TypeError):
        sender.encrypt(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sealed = sender.encrypt(b"goes on")
    assert sealed[:8] == (INTERVAL + 1).to_bytes(8, "big")  # the nonce of the failed encryption counts as used
    assert receiver.decrypt(sealed) == b"goes on"


def test_a_classic_session_never_changes_its_key_and_accepts_any_distance_ahead() -> None:
    sender, receiver = pair(rekey=False)
    blob = [sender.encrypt(b"x") for _ in range(100)][-1]
    assert AESGCM(ONE).decrypt(bytes(4) + blob[:8], blob[8:], None) == b"x"
    head = (2**63).to_bytes(8, "big")
    assert receiver.decrypt(head + AESGCM(ONE).encrypt(bytes(4) + head, b"far", None)) == b"far"
    refuses(receiver, blob)


def test_a_session_has_no_key_in_its_repr() -> None:
    shown = repr(pair()[0]) + repr(pair()[0]._keys)
    assert ONE.hex() not in shown
    assert repr(ONE) not in shown


def test_the_current_wire_vectors_encrypt_and_decrypt() -> None:
    for vector in wire_vectors("current_cipher.json", "current.cipher"):
        known, blob = vector["fields"], bytes.fromhex(vector["hex"])
        key, plaintext = bytes.fromhex(known["initial_key"]), bytes.fromhex(known["plaintext"])
        assert Session(OTHER, key).decrypt(blob) == plaintext
        sender = Session(key, OTHER)
        for _ in range(known["nonce"]):
            sender.encrypt(b"")
        assert sender.encrypt(plaintext) == blob


def test_the_current_sessions_decrypt_in_captured_order() -> None:
    receivers = dict[str, Session]()
    for vector in wire_vectors("current_cipher.json", "current.cipher"):
        known = vector["fields"]
        receiver = receivers.setdefault(known["initial_key"], Session(OTHER, bytes.fromhex(known["initial_key"])))
        assert receiver.decrypt(bytes.fromhex(vector["hex"])).hex() == known["plaintext"]
        assert receiver.newest


def test_the_classic_wire_vectors_encrypt_and_decrypt() -> None:
    for vector in wire_vectors("classic_cipher.json", "classic.cipher"):
        known, blob = vector["fields"], bytes.fromhex(vector["hex"])
        key, plaintext = bytes.fromhex(known["key"]), bytes.fromhex(known["plaintext"])
        assert Session(OTHER, key, rekey=False).decrypt(blob) == plaintext
        sender = Session(key, OTHER, rekey=False)
        for _ in range(known["nonce"]):
            sender.encrypt(b"")
        assert sender.encrypt(plaintext) == blob


def test_the_wire_vectors_of_the_key_change() -> None:
    for vector in wire_vectors("current_cipher.json", "current.rekey"):
        assert next_key(AESGCM(bytes.fromhex(vector["fields"]["from_key"]))).hex() == vector["hex"]
