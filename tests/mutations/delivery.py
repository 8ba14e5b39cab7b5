"""Mutations of the delivery layer."""

from tests.mutations.mutation import Mutation

_MACHINE = "delivery/test_delivery"
_NODES = "delivery/test_delivering_channels"

DELIVERY = (
    Mutation(
        "delivery-drops-doubles",
        (5, 24),
        "protocol/delivery/inbox.py",
        "            if number <= self.count or number in self._ahead:\n",
        "            if number in self._ahead:\n",
        (f"{_MACHINE}::test_doubled_frames_are_delivered_once",),
    ),
    Mutation(
        "delivery-waits-for-the-missing-message",
        (7,),
        "protocol/delivery/inbox.py",
        "            if frame.first == self.count + 1 and not self._ahead:\n",
        "            if not self._ahead:\n",
        (f"{_MACHINE}::test_a_message_that_arrives_late_is_a_gap_and_then_repaired",),
    ),
    Mutation(
        "delivery-reports-gaps",
        (8,),
        "protocol/delivery/inbox.py",
        "        if first <= horizon:\n            for number",
        "        if False:\n            for number",
        (f"{_MACHINE}::test_a_message_that_arrives_late_is_a_gap_and_then_repaired",),
    ),
    Mutation(
        "delivery-beacons-reveal-a-cut-tail",
        (8,),
        "protocol/delivery/inbox.py",
        "            self._peer_end = max(self._peer_end, frame.end.count)\n",
        "            pass\n",
        (f"{_MACHINE}::test_every_subset_that_is_dropped_for_good_is_reported[1]",),
    ),
    Mutation(
        "delivery-beacons-not-put-off",
        (8,),
        "protocol/delivery/delivery.py",
        "        if not entries or entries[-1].sends == 1:\n",
        "        if True:\n",
        (f"{_MACHINE}::test_every_subset_that_is_dropped_for_good_is_reported[1]",),
    ),
    Mutation(
        "delivery-reports-silence",
        (8,),
        "protocol/delivery/inbox.py",
        "            verdicts.append(TailSilence(self.heard_at))\n",
        "            pass\n",
        (f"{_MACHINE}::test_a_tail_that_is_cut_with_everything_after_it_is_reported_as_silence[3]",),
    ),
    Mutation(
        "delivery-resends",
        (8,),
        "protocol/delivery/outbox.py",
        "        self._lose(first)\n",
        "",
        (f"{_MACHINE}::test_a_message_that_arrives_late_is_a_gap_and_then_repaired",),
    ),
    Mutation(
        "delivery-resends-what-was-overtaken",
        (8,),
        "protocol/delivery/outbox.py",
        "        self._lose(lost)\n",
        "",
        (f"{_MACHINE}::test_one_dropped_frame_is_sent_again_within_a_few_round_trips",),
    ),
    Mutation(
        "delivery-window-holds-the-sender",
        (18,),
        "protocol/delivery/outbox.py",
        "            if entry.arrived or (not is_again and entry.start >= self.limit):\n",
        "            if entry.arrived:\n",
        (f"{_MACHINE}::test_a_receiver_that_takes_nothing_holds_its_sender",),
    ),
    Mutation(
        "delivery-agreed-and-not-by-silence",
        (11,),
        "channel/initiator.py",
        "                if hops.delivery.is_accepted:\n",
        "                if True:\n",
        (f"{_NODES}::test_a_refused_identity_hears_it_at_once[loopback]",),
    ),
    Mutation(
        "delivery-required-by-the-initiator",
        (11,),
        "channel/initiator.py",
        '                if delivery == "required" and exchange.delivery is None:\n',
        "                if False:\n",
        (f"{_NODES}::test_an_initiator_that_requires_delivery_refuses_a_peer_without_it",),
    ),
    Mutation(
        "delivery-required-by-the-listener",
        (11,),
        "channel/listener.py",
        '        if trusted and terms is None and self._delivery == "required":\n',
        "        if False:\n",
        (f"{_NODES}::test_a_listener_that_requires_delivery_refuses_a_peer_without_it",),
    ),
)
