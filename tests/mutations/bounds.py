"""Mutations of bounds in bytes, items and seconds: attacks 16 to 18."""

from tests.mutations.mutation import Mutation

BOUNDS = (
    Mutation(
        "frame-length-bounded-at-once",
        (16,),
        "protocol/wire/framing.py",
        ("        if not self._smallest <= length <= self._max_frame:\n            msg"),
        ("        if length < self._smallest:\n            msg"),
        ("protocol/test_framing::test_max_frame_can_only_lower_the_limit_of_the_version",),
    ),
    Mutation(
        "empty-frame-refused",
        (16,),
        "protocol/wire/framing.py",
        "self._smallest: Final = 0 if protocol_version.tolerated else 1\n",
        "self._smallest: Final = 0\n",
        ("protocol/test_framing::test_max_frame_can_only_lower_the_limit_of_the_version",),
    ),
    Mutation(
        "transports-own-frame-limit",
        (16,),
        "protocol/wire/framing.py",
        "min(protocol_version.max_frame, max_frame or protocol_version.max_frame)",
        "protocol_version.max_frame",
        ("protocol/test_framing::test_max_frame_can_only_lower_the_limit_of_the_version",),
    ),
    Mutation(
        "cbor-depth",
        (16,),
        "protocol/wire/cbor.py",
        "            if len(levels) > max_depth:\n",
        "            if len(levels) > 10**6:\n",
        ("protocol/test_current_codec::test_an_invalid_message_is_refused_by_both_decoders",),
    ),
    Mutation(
        "cbor-items-bounded",
        (16,),
        "protocol/wire/cbor.py",
        "            if children > end - position or items > MAX_ITEMS:\n",
        "            if children > end - position:\n",
        ("protocol/test_cbor::test_the_largest_allowed_number_of_items_is_accepted",),
    ),
    Mutation(
        "cbor-string-within-the-input",
        (16,),
        "protocol/wire/cbor.py",
        "            if argument > end - position:\n",
        "            if argument > 2**63:\n",
        ("protocol/test_current_codec::test_an_invalid_message_is_refused_by_both_decoders",),
    ),
    Mutation(
        "cbor-doubled-key-refused",
        (16,),
        "protocol/wire/cbor.py",
        "            if key in level.keys:\n",
        "            if key is level.keys:\n",
        ("protocol/test_cbor::test_an_item_outside_the_subset_is_refused",),
    ),
    Mutation(
        "cbor-rest-refused",
        (16,),
        "protocol/wire/cbor.py",
        ('    if position != end:\n        raise WireError(f"{end - position} bytes behind a CBOR value")\n'),
        "    data = data[:position]\n",
        ("protocol/test_cbor::test_an_item_outside_the_subset_is_refused",),
    ),
    Mutation(
        "varint-bounded",
        (16,),
        "protocol/wire/bare.py",
        "for shift in range(0, 7 * MAX_UINT_BYTES, 7):",
        "for shift in range(0, 7 * 10**6, 7):",
        ("protocol/test_bare::test_invalid_values_are_refused",),
    ),
    Mutation(
        "varint-64-bits",
        (16,),
        "protocol/wire/bare.py",
        ("                if value > MAX_UINT:\n                    break\n"),
        "",
        ("protocol/test_bare::test_invalid_values_are_refused",),
    ),
    Mutation(
        "bare-length-before-slice",
        (16,),
        "protocol/wire/bare.py",
        "        if length > len(self._source) - start:\n",
        "        if length > 2**64:\n",
        ("protocol/test_bare::test_a_huge_length_allocates_nothing",),
    ),
    Mutation(
        "bare-list-within-the-input",
        (16,),
        "protocol/wire/bare.py",
        "        if count * smallest > self.left:\n",
        "        if count < 0:\n",
        ("protocol/test_bare::test_a_huge_length_allocates_nothing",),
    ),
    Mutation(
        "hops-bounded",
        (
            16,
            19,
        ),
        "protocol/wire/current_codec.py",
        "if not isinstance(value, list) or len(value) > MAX_HOPS:",
        "if not isinstance(value, list):",
        ("protocol/test_current_codec::test_an_invalid_message_is_refused_by_both_decoders",),
    ),
    Mutation(
        "address-bounded",
        (16,),
        "protocol/wire/current_codec.py",
        "if not isinstance(name, bytes) or len(name) > MAX_VALUE:",
        "if not isinstance(name, bytes):",
        ("protocol/test_current_codec::test_an_invalid_message_is_refused_by_both_decoders",),
    ),
    Mutation(
        "credentials-bounded",
        (16,),
        "protocol/identity/payload.py",
        "            if len(listed) > MAX_CREDENTIALS:\n",
        "            if len(listed) < 0:\n",
        ("protocol/test_identity::test_a_payload_with_too_many_or_malformed_credentials_is_refused",),
    ),
    Mutation(
        "history-bounded",
        (
            16,
            17,
        ),
        "protocol/identity/identity.py",
        "    if not 0 < len(items) <= MAX_CHANGES:\n",
        "    if not items:\n",
        ("protocol/test_identity::test_a_history_with_too_many_changes_is_refused_threat_17",),
    ),
    Mutation(
        "cheap-checks-before-signatures",
        (17,),
        "protocol/identity/identity.py",
        (
            "        _check_link(number, before, change)\n"
            "    for number, (before, change) in enumerate(zip((None, *changes), changes, strict=False)):\n"
            "        if not"
        ),
        (
            "        if not change.signed.verifies(change.key):\n"
            '            raise IdentityError(f"change {number} is not signed by its own key")\n'
            "        _check_link(number, before, change)\n"
            "    for number, (before, change) in enumerate(zip((None, *changes), changes, strict=False)):\n"
            "        if not"
        ),
        ("protocol/test_identity::test_no_signature_of_an_inconsistent_history_is_checked_threat_17",),
    ),
    Mutation(
        "handshake-message-bounded",
        (16,),
        "protocol/handshake/noise.py",
        ("        if len(message) > MAX_MESSAGE:\n            raise HandshakeError(REFUSED)\n"),
        "",
        ("protocol/test_noise::test_a_message_beyond_the_largest_is_refused_though_it_fits_threat_16",),
    ),
    Mutation(
        "nonce-far-ahead-refused",
        (17,),
        "protocol/session/session.py",
        (
            "        if interval > self.interval + JUMP:\n"
            '            raise DecryptError(f"a nonce more than {JUMP} key changes ahead")\n'
        ),
        (
            "        if interval > self.interval + 64 * JUMP:\n"
            '            raise DecryptError(f"a nonce more than {JUMP} key changes ahead")\n'
        ),
        ("protocol/test_session::test_a_good_message_one_interval_too_far_ahead_is_refused",),
    ),
    Mutation(
        "checkpoints-bound-the-work",
        (17,),
        "protocol/session/session.py",
        "                self._checkpoints.append(key)\n",
        "                pass\n",
        ("protocol/test_session::test_a_forged_nonce_costs_many_key_changes_only_once",),
    ),
    Mutation(
        "pending-handshakes-of-a-source-bounded",
        (17,),
        "channel/listener.py",
        "((of_source, PENDING_PER_SOURCE), (pending, PENDING_TOTAL))",
        "((pending, PENDING_TOTAL),)",
        ("channels/test_listener::test_the_oldest_half_open_handshake_of_one_source_is_dropped_threat_17",),
    ),
    Mutation(
        "pending-handshakes-bounded",
        (17,),
        "channel/listener.py",
        "((of_source, PENDING_PER_SOURCE), (pending, PENDING_TOTAL))",
        "((of_source, PENDING_PER_SOURCE),)",
        ("channels/test_listener::test_the_oldest_of_all_half_open_handshakes_is_dropped_threat_17",),
    ),
    Mutation(
        "handshakes-have-deadlines",
        (17,),
        "channel/listener.py",
        ("                self._drop(pending)\n            gone ="),
        ("                del pending\n            gone ="),
        ("channels/test_listener::test_an_abandoned_handshake_is_forgotten_threat_17",),
    ),
    Mutation(
        "channels-of-a-listener-bounded",
        (
            17,
            18,
        ),
        "channel/listener.py",
        "        if len(self._channels) >= MAX_CHANNELS or not",
        "        if not",
        (
            "channels/test_listener::test_a_listener_bounds_its_channels_and_accepts_another_when_one_has_closed_threat_17",
        ),
    ),
    Mutation(
        "channels-without-a-route-swept",
        (
            17,
            18,
        ),
        "channel/listener.py",
        ("                channel.abort()\n            suspects"),
        ("                del channel\n            suspects"),
        ("channels/test_secure_channel::test_an_initiators_channel_ends_when_its_link_is_lost",),
    ),
    Mutation(
        "held-messages-bounded",
        (
            17,
            18,
        ),
        "channel/listener.py",
        "            if held.is_closed or held.size + len(message.payload) > held.hard_bound:\n",
        "            if held.is_closed:\n",
        ("channels/test_listener::test_messages_held_for_the_trust_decision_are_bounded_without_a_wait_threat_18",),
    ),
    Mutation(
        "handshake-flood-yields",
        (17,),
        "channel/listener.py",
        ("        self._router.answer(message, pending.address, second)\n        return self._yield_budget\n"),
        ("        self._router.answer(message, pending.address, second)\n        return None\n"),
        ("channels/test_listener::test_a_flood_of_first_messages_in_one_read_lets_other_tasks_run_threat_17",),
    ),
    Mutation(
        "tcp-preface-in-time",
        (17,),
        "trionode_tcp/link.py",
        (
            "        with trio.move_on_after(HANDSHAKE_TIMEOUT):\n"
            "            await self._stream.handshake()\n"
            "            version = None\n"
        ),
        ("        with trio.CancelScope():\n            await self._stream.handshake()\n            version = None\n"),
        ("transports/test_tcp::test_silent_connections_time_out_and_are_bounded",),
    ),
    Mutation(
        "link-reader-waits",
        (18,),
        "routing/link.py",
        (
            "                    if over_budget is not None and not drop_when_full:\n"
            "                        await over_budget.wait_or_stall()\n"
        ),
        "",
        ("node/test_backpressure::test_two_nodes_that_only_send",),
    ),
    Mutation(
        "hub-link-drops-when-full",
        (18,),
        "routing/link.py",
        "        if (origin.drop_when_full or self.origin.drop_when_full) and outbox.is_full:\n",
        "        if self.origin.resends is None:\n",
        ("node/test_backpressure::test_peer_that_never_reads_its_own_echoes_is_bounded",),
    ),
    Mutation(
        "unread-answers-close-the-link",
        (18,),
        "routing/link.py",
        ("            if outbox.is_full:\n                self._on_stall()\n            return None\n"),
        "            return None\n",
        ("node/test_backpressure::test_peer_that_never_reads_its_own_echoes_is_bounded",),
    ),
    Mutation(
        "answers-without-waiting-bounded",
        (18,),
        "routing/router.py",
        ("            if over_budget is not None and over_budget.is_full:\n                over_budget.stalled()\n"),
        "            pass\n",
        ("node/test_backpressure::test_a_client_that_never_reads_is_closed_and_others_are_served",),
    ),
    Mutation(
        "stalled-mailbox-drops",
        (18,),
        "routing/mailbox.py",
        ("            if inbox.size > inbox.bound // 2:\n                self._router.counters"),
        ("            if inbox.size < 0:\n                self._router.counters"),
        ("node/test_mailbox::test_full_mailbox_drops_after_stall_timeout_until_half_empty",),
    ),
    Mutation(
        "routes-count-in-a-mailbox",
        (18,),
        "routing/mailbox.py",
        "len(message.payload) + sum(map(len, message.onward)) + sum(map(len, message.back))",
        "len(message.payload)",
        ("node/test_mailbox::test_routes_count_in_the_size_of_a_mailbox",),
    ),
    Mutation(
        "full-mailbox-drops-for-hub-links",
        (18,),
        "routing/mailbox.py",
        "        if message.origin.drop_when_full and inbox.is_full:\n",
        "        if message.origin.drop_when_full is None:\n",
        ("node/test_mailbox::test_drop_when_full_link_fills_a_mailbox_to_its_hard_limit_then_drops",),
    ),
    Mutation(
        "items-cost-beside-their-bytes",
        (
            16,
            18,
        ),
        "routing/memory_channel.py",
        ("        cost = size + ITEM_OVERHEAD\n        self._items.append"),
        ("        cost = size\n        self._items.append"),
        ("node/test_memory_channel::test_items_without_bytes_fill_a_channel_too_threat_16",),
    ),
    Mutation(
        "stream-requests-bounded",
        (18,),
        "stream/service.py",
        "        if client.requests >= self._clients.limits.requests or not self._start_soon(run):\n",
        "        if not self._start_soon(run):\n",
        ("streams/test_stream_service::test_beyond_the_limit_pulls_are_answered_empty_and_other_requests_dropped",),
    ),
    Mutation(
        "streams-of-a-client-bounded",
        (
            18,
            21,
        ),
        "stream/owners.py",
        (
            "        if not rules.may_open_another(stream, opened, limit):\n"
            '            return f"this hub lets a client use {limit} streams"\n'
        ),
        "",
        ("streams/test_stream_service::test_the_streams_of_a_client_are_limited",),
    ),
    Mutation(
        "pull-answers-bounded",
        (18,),
        "stream/reading.py",
        "limit = max(1, min(request.limit, MAX_PULL_LIMIT))",
        "limit = max(1, request.limit)",
        ("streams/test_stream_service::test_an_answer_has_at_most_65000_bytes_and_at_least_one_record",),
    ),
    Mutation(
        "unconfirmed-pushes-bounded",
        (18,),
        "protocol/stream/producer.py",
        ("        if self.full:\n            raise LocalError"),
        ("        if self.next_id < 0:\n            raise LocalError"),
        ("protocol/test_stream::test_the_window_is_bounded_by_number",),
    ),
    Mutation(
        "reads-ahead-bounded",
        (18,),
        "protocol/stream/consumer.py",
        "if self._state is State.HOLDING and len(self._batches) < MAX_BATCHES:",
        "if self._state is State.HOLDING:",
        ("protocol/test_stream::test_the_next_pull_is_sent_at_once_up_to_two_answers_ahead",),
    ),
    Mutation(
        "known-peers-bounded",
        (18,),
        "identity/known_peers.py",
        ("        if len(self._known) > self._bound:\n            self._known.popitem(last=False)\n"),
        "",
        ("identity/test_identities::test_known_peers_are_bounded_and_the_longest_unchanged_is_forgotten",),
    ),
    Mutation(
        "waiting-saves-bounded",
        (18,),
        "stream/service.py",
        "            and len(self._saves) < MAX_SAVES\n",
        "",
        ("streams/test_stream_service::test_position_saves_beyond_the_limit_are_dropped",),
    ),
    Mutation(
        "pull-of-one-consumer-replaced",
        (18,),
        "stream/long_poll.py",
        ("        if former is not None:\n            former.cancel()\n"),
        "",
        ("streams/test_stream_service::test_a_second_pull_of_a_consumer_answers_only_its_first_one_empty",),
    ),
)
