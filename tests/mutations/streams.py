"""Mutations of streams and their stores: attacks 7 to 9, 23 and 24."""

from tests.mutations.mutation import Mutation

STREAMS = (
    Mutation(
        "pushes-stored-in-order",
        (7,),
        "stream/push_queue.py",
        ("        if request_id > next_id:\n            now"),
        ("        if request_id < 0:\n            now"),
        ("streams/test_stream_service::test_late_pushes_of_a_lost_link_do_not_overtake_resends",),
    ),
    Mutation(
        "a-refused-push-stays-the-next",
        (7,),
        "stream/push_queue.py",
        "        self._set_next_id(waiting, max(next_id, self._stored_ids.get(waiting.producer, 0)))\n",
        "        del next_id\n",
        ("streams/test_stream_service::test_later_pushes_do_not_overtake_a_refused_push_of_a_producer_that_resends",),
    ),
    Mutation(
        "producer-rests-after-a-refusal",
        (7,),
        "protocol/stream/producer.py",
        "(State.PUSHING, Event.REFUSED): (self._rest, State.RESTING),",
        "(State.PUSHING, Event.REFUSED): (self._rest, State.PUSHING),",
        (
            "protocol/test_stream::test_after_the_hub_could_not_store_a_push_nothing_is_sent_until_all_is_resent_in_order",
        ),
    ),
    Mutation(
        "unconfirmed-pushes-sent-again",
        (8,),
        "protocol/stream/producer.py",
        "            (State.PUSHING, Event.OVERDUE): (self._resend, State.PUSHING),\n",
        "",
        (
            "protocol/test_stream::test_without_answers_a_producer_resends_the_oldest_push_ever_more_rarely_and_then_creates_again",
        ),
    ),
    Mutation(
        "lost-answer-to-a-pull-asked-again",
        (
            8,
            24,
        ),
        "protocol/stream/consumer.py",
        "            (State.PULLING, Event.OVERDUE): (self._pull_again, State.PULLING),\n",
        "",
        ("protocol/test_stream::test_an_unanswered_pull_is_sent_again_ever_more_rarely_with_a_new_id",),
    ),
    Mutation(
        "lost-answer-to-create-asked-again",
        (
            8,
            24,
        ),
        "protocol/stream/consumer.py",
        "            (State.CREATING, Event.OVERDUE): (self._create_again, State.CREATING),\n",
        "",
        ("protocol/test_stream::test_unanswered_create_and_get_are_sent_again_with_growing_timeouts",),
    ),
    Mutation(
        "lost-position-asked-again",
        (
            8,
            24,
        ),
        "protocol/stream/consumer.py",
        "            (State.GETTING, Event.OVERDUE): (self._create_again, State.CREATING),\n",
        "",
        ("protocol/test_stream::test_unanswered_create_and_get_are_sent_again_with_growing_timeouts",),
    ),
    Mutation(
        "a-stream-that-is-not-there-is-not-empty",
        (9,),
        "stream/store/memory.py",
        ('        if found is None:\n            raise UnknownStreamError("the stream does not exist")\n'),
        ("        if found is None:\n            return ()\n"),
        ("streams/test_stores::test_the_memory_store_keeps_the_contract",),
    ),
    Mutation(
        "records-in-order-only",
        (
            7,
            23,
        ),
        "protocol/stream/consumer.py",
        "            if self._next <= record.index < bare.MAX_UINT:\n",
        "            if record.index < bare.MAX_UINT:\n",
        ("protocol/test_stream::test_records_out_of_order_or_repeated_are_skipped",),
    ),
    Mutation(
        "last-index-refused",
        (23,),
        "protocol/stream/consumer.py",
        "            if self._next <= record.index < bare.MAX_UINT:\n",
        "            if self._next <= record.index:\n",
        ("protocol/test_stream::test_records_beyond_the_limit_or_at_the_last_index_are_skipped",),
    ),
    Mutation(
        "records-of-an-answer-bounded",
        (
            18,
            23,
        ),
        "protocol/stream/consumer.py",
        "for record in answer.records[: self.limit]:",
        "for record in answer.records:",
        ("protocol/test_stream::test_records_beyond_the_limit_or_at_the_last_index_are_skipped",),
    ),
    Mutation(
        "position-only-of-this-client",
        (
            23,
            24,
        ),
        "protocol/stream/consumer.py",
        "        if (answer.client_id, answer.stream) != (self.client_id, self.stream) or self._state is not State.GETTING:\n",
        "        if self._state is not State.GETTING:\n",
        ("protocol/test_stream::test_repeated_or_foreign_answers_start_no_second_loop",),
    ),
    Mutation(
        "position-only-when-asked",
        (
            23,
            24,
        ),
        "protocol/stream/consumer.py",
        "(answer.client_id, answer.stream) != (self.client_id, self.stream) or self._state is not State.GETTING:",
        "(answer.client_id, answer.stream) != (self.client_id, self.stream):",
        ("protocol/test_stream::test_repeated_or_foreign_answers_start_no_second_loop",),
    ),
    Mutation(
        "own-position-before-the-hubs",
        (23,),
        "protocol/stream/consumer.py",
        ("        if self._next is not None:\n            return self._fire(Event.POSITIONED, now)\n"),
        "",
        ("protocol/test_stream::test_a_consumer_with_a_start_does_not_ask_for_its_position",),
    ),
    Mutation(
        "handled-position-never-goes-back",
        (23,),
        "protocol/stream/consumer.py",
        "self._taken = max(index + 1, self._taken or 0)",
        "self._taken = index + 1",
        ("protocol/test_stream::test_saves_are_throttled_and_the_last_one_is_sent_at_the_end",),
    ),
    Mutation(
        "answer-to-the-latest-pull-only",
        (24,),
        "protocol/stream/consumer.py",
        "if self._state is not State.PULLING or answer.request_id != self._asked:",
        "if self._state is not State.PULLING:",
        ("protocol/test_stream::test_only_the_first_answer_to_the_current_pull_counts",),
    ),
    Mutation(
        "created-only-when-asked",
        (24,),
        "protocol/stream/machine.py",
        "        if answer.name != self.stream or self._state is not State.CREATING:\n",
        "        if answer.name != self.stream:\n",
        ("protocol/test_stream::test_an_unexpected_answer_to_create_changes_nothing",),
    ),
    Mutation(
        "created-only-this-stream",
        (24,),
        "protocol/stream/machine.py",
        "        if answer.name != self.stream or self._state is not State.CREATING:\n",
        "        if self._state is not State.CREATING:\n",
        ("protocol/test_stream::test_an_unexpected_answer_to_create_changes_nothing",),
    ),
    Mutation(
        "confirmation-of-a-push-under-way",
        (24,),
        "protocol/stream/producer.py",
        (
            "        push = self._pushes.get(request_id)\n"
            "        if push is None:\n"
            "            return ()\n"
            "        if not answer.ok:"
        ),
        (
            "        if request_id not in self._pushes:\n"
            "            request_id = self.oldest\n"
            "        push = self._pushes.get(request_id)\n"
            "        if push is None:\n"
            "            return ()\n"
            "        if not answer.ok:"
        ),
        ("protocol/test_stream::test_confirmations_may_be_repeated_unknown_and_out_of_order",),
    ),
    Mutation(
        "a-push-stored-once",
        (24,),
        "stream/store/memory.py",
        ("        if index is not None:\n            return Stored(index)\n        cost"),
        "        cost",
        ("streams/test_stores::test_a_full_memory_store_refuses_pushes_and_stays_usable",),
    ),
    Mutation(
        "a-push-stored-once-in-sqlite",
        (24,),
        "stream/store/sqlite.py",
        ("_u64(push.request_id))\n        index"),
        ("_u64(push.request_id + stream.end + 1))\n        index"),
        ("streams/test_stores::test_a_cancelled_append_stores_all_or_nothing",),
    ),
    Mutation(
        "one-answer-for-a-question",
        (24,),
        "node/node.py",
        ("            if not answers:\n                answers.append(message)\n"),
        ("            answers[:] = [message]\n            if answers:\n"),
        ("node/test_node::test_only_the_first_answer_counts_and_a_late_one_is_dropped",),
    ),
    Mutation(
        "no-answer-to-an-undecodable-request",
        (
            24,
            25,
        ),
        "stream/service.py",
        ("            self._router.counters[DropReason.STREAM_REQUEST_UNDECODABLE] += 1\n            return None\n"),
        (
            "            self._router.counters[DropReason.STREAM_REQUEST_UNDECODABLE] += 1\n"
            '            self._answer(message, self._service, ErrorResponse("undecodable"))\n'
            "            return None\n"
        ),
        ("streams/test_stream_service::test_undecodable_requests_are_not_answered",),
    ),
    Mutation(
        "last-answers-before-a-hub-ends",
        (24,),
        "stream/service.py",
        ("            await self.finish()\n            self._is_closing = True\n"),
        "            self._is_closing = True\n",
        ("streams/test_stream_service::test_closing_answers_all_requests_and_accepts_no_more",),
    ),
    Mutation(
        "truncation-reported",
        (
            8,
            9,
        ),
        "protocol/stream/consumer.py",
        "        self._verdicts.append(Truncated(self.stream, self._next, first - 1))\n",
        "",
        ("protocol/test_stream_lost_records::test_removed_records_are_reported_and_the_rest_is_read",),
    ),
    Mutation(
        "rollback-reported",
        (
            6,
            9,
        ),
        "protocol/stream/consumer.py",
        "            self._verdicts.append(Rollback(self.stream, self._next, extent.end))\n",
        "            pass\n",
        (
            "protocol/test_stream_lost_records::test_a_stream_that_was_created_again_is_reported_and_read_from_its_start",
        ),
    ),
    Mutation(
        "another-life-noticed",
        (
            6,
            9,
        ),
        "protocol/stream/consumer.py",
        "        if extent.life != life:\n",
        "        if extent.life is None:\n",
        ("protocol/test_stream_lost_records::test_a_hub_that_goes_back_to_an_earlier_life_repeats_nothing",),
    ),
    Mutation(
        "no-repeat-within-a-life",
        (
            5,
            6,
        ),
        "protocol/stream/consumer.py",
        "            self._life, self._read = extent.life, self._lives.get(extent.life, 0)\n",
        "            self._life, self._read = extent.life, 0\n",
        ("protocol/test_stream_lost_records::test_a_hub_that_goes_back_to_an_earlier_life_repeats_nothing",),
    ),
    Mutation(
        "records-handled-before-going-back",
        (
            6,
            7,
        ),
        "protocol/stream/consumer.py",
        ("        if not self._batches:\n            self._go_back"),
        ("        if self._life:\n            self._go_back"),
        ("protocol/test_stream_lost_records::test_nobody_goes_back_while_records_of_before_are_unhandled",),
    ),
)
