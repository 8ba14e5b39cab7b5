"""Mutations of sessions and of their messages: attacks 1 to 8, 10 and 30."""

from tests.mutations.mutation import Mutation

SESSIONS = (
    Mutation(
        "inner-routes-only-inside",
        (1,),
        "channel/hops.py",
        "return self._send(plaintext, self._back, message.deliveries, promised=message.is_promised)",
        "return self._send(plaintext, message.back, message.deliveries, promised=message.is_promised)",
        ("channels/test_secure_channel::test_two_identities_of_one_node_have_a_channel",),
    ),
    Mutation(
        "no-plaintext-beside-the-ciphertext",
        (1,),
        "channel/hops.py",
        ("        onward = message.onward[1:]\n        if not onward:"),
        (
            "        onward = message.onward[1:]\n"
            "        self._router.deliver(Message(self.route, (), message.payload))\n"
            "        if not onward:"
        ),
        ("channels/test_secure_channel::test_refreshed_credentials_of_the_same_identity_are_taken",),
    ),
    Mutation(
        "identity-only-under-keys",
        (
            1,
            12,
        ),
        "protocol/handshake/noise.py",
        "        cipher, ciphertext = self.cipher.encrypt(self.transcript, plaintext)\n",
        "        cipher, ciphertext = self.cipher._used(), plaintext + bytes(TAG_SIZE)\n",
        ("protocol/test_noise::test_messages_with_empty_payloads_have_32_96_and_64_bytes",),
    ),
    Mutation(
        "verifier-lists-addresses",
        (2,),
        "verify/paths.py",
        "        addresses += (body.stream, *body.onward, *body.back)\n",
        "",
        ("verify/test_paths::test_store_sees_its_records_and_network_sees_kafka",),
    ),
    Mutation(
        "verifier-lists-the-networks-view",
        (2,),
        "verify/paths.py",
        "    yield step.at, visible if endpoint.is_seen_by_network else NOTHING\n",
        "    yield step.at, NOTHING\n",
        ("verify/test_paths::test_hop_that_the_channel_trusts_could_read",),
    ),
    Mutation(
        "tag-is-checked",
        (
            3,
            10,
        ),
        "protocol/session/session.py",
        '            raise DecryptError("an encrypted message whose tag does not verify") from None\n',
        "            plaintext = ciphertext[8:-16]\n",
        ("protocol/test_session::test_both_directions_have_their_own_key",),
    ),
    Mutation(
        "a-bad-message-is-counted",
        (3,),
        "channel/hops.py",
        ("            self.refused += 1\n            self._router.counters[DropReason.DECRYPT_FAILED] += 1\n"),
        "",
        ("channels/test_secure_channel::test_the_responder_follows_the_initiator_to_a_new_link",),
    ),
    Mutation(
        "a-bad-message-does-not-end-the-channel",
        (
            3,
            4,
        ),
        "channel/hops.py",
        ("            self._router.counters[DropReason.DECRYPT_FAILED] += 1\n            return None\n"),
        (
            "            self._router.counters[DropReason.DECRYPT_FAILED] += 1\n"
            '            self.end("a bad message")\n'
            "            return None\n"
        ),
        ("channels/test_secure_channel::test_the_responder_follows_the_initiator_to_a_new_link",),
    ),
    Mutation(
        "close-only-under-the-session-key",
        (4,),
        "channel/hops.py",
        "            opened = cipher.decode(cipher.decrypt(message.payload))\n",
        (
            '            closes = message.payload.endswith(b"\\x82\\x82\\x02\\x80\\x40")\n'
            "            opened = cipher.decode(message.payload[-5:] if closes else cipher.decrypt(message.payload))\n"
        ),
        ("streams/test_hostile_hub::test_no_invalid_record_reaches_a_handler_and_the_next_valid_record_arrives",),
    ),
    Mutation(
        "refresh-only-of-the-same-identity",
        (
            4,
            12,
        ),
        "channel/hops.py",
        "        if not continues or len(credentials) > MAX_CREDENTIALS:\n",
        "        if len(credentials) > MAX_CREDENTIALS:\n",
        ("channels/test_secure_channel::test_refreshed_credentials_that_are_not_the_peers_are_refused_threat_15",),
    ),
    Mutation(
        "refresh-not-of-an-older-history",
        (
            4,
            15,
        ),
        "channel/hops.py",
        "in (Relation.SAME, Relation.NEWER)",
        "in (Relation.SAME, Relation.NEWER, Relation.OLDER)",
        ("channels/test_secure_channel::test_refreshed_credentials_that_are_not_the_peers_are_refused_threat_15",),
    ),
    Mutation(
        "refresh-bounded",
        (
            4,
            16,
        ),
        "channel/hops.py",
        "if not continues or len(credentials) > MAX_CREDENTIALS:",
        "if not continues:",
        ("channels/test_secure_channel::test_refreshed_credentials_that_are_not_the_peers_are_refused_threat_15",),
    ),
    Mutation(
        "replayed-nonce-refused",
        (5,),
        "protocol/session/replay.py",
        "(behind <= BACKWARD and not self._accepted >> behind & 1)",
        "behind <= BACKWARD",
        ("protocol/test_replay::test_the_edges_of_the_window",),
    ),
    Mutation(
        "nonce-behind-the-window-refused",
        (5,),
        "protocol/session/replay.py",
        "(behind <= BACKWARD and not self._accepted >> behind & 1)",
        "not self._accepted >> behind & 1",
        ("protocol/test_session::test_a_classic_session_never_changes_its_key_and_accepts_any_distance_ahead",),
    ),
    Mutation(
        "newest-nonce-marked",
        (5,),
        "protocol/session/replay.py",
        "(self._accepted << ahead | 1) & _REMEMBERED if ahead <= BACKWARD else 1",
        "(self._accepted << ahead) & _REMEMBERED if ahead <= BACKWARD else 1",
        ("protocol/test_replay::test_the_edges_of_the_window",),
    ),
    Mutation(
        "late-nonce-marked",
        (5,),
        "protocol/session/replay.py",
        "            self._accepted |= 1 << -ahead\n",
        "",
        ("protocol/test_replay::test_the_edges_of_the_window",),
    ),
    Mutation(
        "window-asked",
        (5,),
        "protocol/session/session.py",
        "if not window.accepts(nonce) or nonce == NONCE_LIMIT:",
        "if nonce == NONCE_LIMIT:",
        ("protocol/test_session::test_a_classic_session_never_changes_its_key_and_accepts_any_distance_ahead",),
    ),
    Mutation(
        "window-moves-after-the-tag",
        (
            3,
            5,
        ),
        "protocol/session/session.py",
        "        interval = nonce >> self._shift\n",
        ("        self.newest = window.mark(nonce)\n        interval = nonce >> self._shift\n"),
        ("protocol/test_session::test_the_current_sessions_decrypt_in_captured_order",),
    ),
    Mutation(
        "keys-move-after-the-tag",
        (
            3,
            17,
        ),
        "protocol/session/session.py",
        "        cipher = keys.current if interval == keys.interval else keys.at(interval)\n",
        (
            "        cipher = keys.current if interval == keys.interval else keys.at(interval)\n"
            "        if interval > keys.interval:\n"
            "            keys.advance(interval, cipher)\n"
        ),
        ("protocol/test_session::test_a_jump_drops_the_checkpoints_that_it_passes",),
    ),
    Mutation(
        "reserved-nonce-refused",
        (
            5,
            30,
        ),
        "protocol/session/session.py",
        " or nonce == NONCE_LIMIT:",
        ":",
        ("protocol/test_session::test_the_last_nonce_is_never_received",),
    ),
    Mutation(
        "fresh-ephemeral-keys",
        (
            6,
            30,
        ),
        "protocol/handshake/current_exchange.py",
        "ephemeral = ephemeral or vault.generate(KeyKind.X25519, ephemeral=True)",
        "ephemeral = ephemeral or static",
        ("protocol/test_current_exchange::test_messages_of_another_handshake_are_refused",),
    ),
    Mutation(
        "transcript-binds-the-handshake",
        (
            6,
            10,
            12,
        ),
        "protocol/handshake/noise.py",
        "attrs.evolve(self, transcript=hashlib.sha256(self.transcript + data).digest())",
        "attrs.evolve(self, transcript=hashlib.sha256(self.transcript).digest())",
        ("protocol/test_noise::test_a_changed_first_message_is_detected_in_the_second",),
    ),
    Mutation(
        "two-directions-two-keys",
        (10,),
        "protocol/handshake/exchange.py",
        (
            "            return Session(to_responder, to_initiator, rekey=rekey)\n"
            "        return Session(to_initiator, to_responder, rekey=rekey)"
        ),
        (
            "            return Session(to_responder, to_responder, rekey=rekey)\n"
            "        return Session(to_responder, to_responder, rekey=rekey)"
        ),
        ("protocol/test_current_exchange::test_a_reflected_message_does_not_verify",),
    ),
    Mutation(
        "an-identity-message-only-once",
        (6,),
        "protocol/handshake/current_exchange.py",
        ("        self._noise = attempt\n        self._forget_keys()  # the"),
        "        # the",
        ("protocol/test_current_exchange::test_no_repr_contains_a_secret",),
    ),
    Mutation(
        "route-follows-the-newest-message-only",
        (7,),
        "channel/hops.py",
        "if self._follows and self._session.newest and",
        "if self._follows and",
        ("channels/test_secure_channel::test_a_late_message_by_another_way_moves_no_route_threat_7",),
    ),
    Mutation(
        "initiators-route-stays",
        (
            7,
            20,
        ),
        "channel/hops.py",
        "        self._follows = follows and cipher.follows_peer\n",
        "        self._follows = cipher.follows_peer\n",
        ("channels/test_hostile_route::test_with_any_route_handlers_get_only_sent_messages_and_each_once",),
    ),
    Mutation(
        "32768-lost-messages-survived",
        (8,),
        "protocol/session/session.py",
        "JUMP = 1024\n",
        "JUMP = 1\n",
        ("protocol/test_session::test_jumps_may_follow_each_other",),
    ),
    Mutation(
        "previous-key-kept-for-late-messages",
        (
            7,
            8,
        ),
        "protocol/session/session.py",
        "        previous = self._derive(interval - 1)  # after a jump too: earlier messages may arrive late\n",
        "        previous = self.current\n",
        ("protocol/test_session::test_reordering_within_32_works_across_a_key_change_and_after_a_jump",),
    ),
    Mutation(
        "messages-in-flight-after-a-key-change",
        (8,),
        "protocol/session/session.py",
        "            return self.previous  # the replay window refuses anything older\n",
        '            raise DecryptError("too old")\n',
        ("protocol/test_session::test_reordering_within_32_works_across_a_key_change_and_after_a_jump",),
    ),
    Mutation(
        "nonce-counted-before-sealing",
        (30,),
        "protocol/session/session.py",
        (
            "        self._next = nonce + 1  # before encrypting: after any exception the nonce counts as used\n"
            "        iv = _IV.pack(nonce)\n"
            "        return iv[4:] + self._seal(iv, plaintext, None)\n"
        ),
        (
            "        iv = _IV.pack(nonce)\n"
            "        sealed = iv[4:] + self._seal(iv, plaintext, None)\n"
            "        self._next = nonce + 1\n"
            "        return sealed\n"
        ),
        ("protocol/test_session::test_a_failed_encryption_uses_no_nonce_twice_and_changes_the_key_once",),
    ),
    Mutation(
        "key-changes-every-32-messages",
        (30,),
        "protocol/session/session.py",
        "        self._change_at = min(nonce + INTERVAL, NONCE_LIMIT)\n",
        "        self._change_at = NONCE_LIMIT\n",
        ("protocol/test_session::test_in_order_traffic_derives_one_key_an_interval",),
    ),
    Mutation(
        "last-nonce-never-used",
        (30,),
        "protocol/session/session.py",
        (
            "        if nonce == NONCE_LIMIT:\n"
            '            raise ClosedError("this session has used its last nonce, 2^64 - 2: open a new channel")\n'
        ),
        "",
        ("protocol/test_session::test_the_last_key_change_is_followed_by_the_end",),
    ),
    Mutation(
        "one-session-for-each-exchange",
        (30,),
        "protocol/handshake/exchange.py",
        "        return self._session\n",
        "        return self._make_session(rekey=True)\n",
        ("protocol/test_classic_exchange::test_data_before_message_5_are_refused_and_the_exchange_goes_on",),
    ),
    Mutation(
        "too-large-message-uses-no-nonce",
        (30,),
        "channel/hops.py",
        "        if limit is not None and len(plaintext) + sum(map(len, back)) > limit:\n",
        (
            '        self.cipher.encrypt(b"")\n'
            "        if limit is not None and len(plaintext) + sum(map(len, back)) > limit:\n"
        ),
        ("channels/test_secure_channel::test_a_message_beyond_the_largest_frame_raises_over_a_link",),
    ),
)
