"""Counters of dropped messages, links and handshakes, by reason."""

import enum
from collections import Counter


class DropReason(enum.StrEnum):
    """Why a node dropped a message, a frame, a link or a handshake: the keys of `Node.counters`."""

    # Routing
    #: No address of this node has the message's first onward hop.
    UNKNOWN_ADDRESS = "unknown_address"
    #: The access rule of the address refused the message.
    ACCESS_DENIED = "access_denied"
    #: The message went round within the node, more than 32 local deliveries.
    DELIVERY_LOOP = "delivery_loop"
    #: The message's routes have more hops together than one message may have.
    ROUTE_TOO_LONG = "route_too_long"
    #: The first hop of a reply's route has ended.
    REPLY_PATH_GONE = "reply_path_gone"
    #: A reply is larger than its path carries.
    REPLY_TOO_LARGE = "reply_too_large"
    #: A forwarded message is larger than its path carries.
    FORWARD_TOO_LARGE = "forward_too_large"
    #: The message waited in a mailbox whose reader has ended.
    MAILBOX_CLOSED = "mailbox_closed"
    #: The mailbox drops after its stall timeout, until half of it is empty.
    MAILBOX_STALLED = "mailbox_stalled"
    #: The mailbox is at its hard limit, and the message came by a link that drops when full.
    MAILBOX_FULL = "mailbox_full"

    # Workers
    #: The worker asked for the text of a message that has none. The worker was called again.
    WORKER_TEXT_UNDECODABLE = "worker_text_undecodable"
    #: The worker raised an exception while it handled the message. It was called again.
    WORKER_RAISED = "worker_raised"
    #: The worker raised an exception while it handled the message, which is among the dead letters.
    WORKER_SET_ASIDE = "worker_set_aside"
    #: As before, but the dead letters were at their bound, and the message was dropped.
    DEAD_LETTERS_FULL = "dead_letters_full"

    # Links
    #: The listener holds as many links as it may.
    TOO_MANY_LINKS = "too_many_links"
    #: A frame could not be decoded.
    FRAME_UNDECODABLE = "frame_undecodable"
    #: A frame is larger than the next link carries.
    FRAME_TOO_LARGE = "frame_too_large"
    #: The outbox is at its hard limit, on a link that drops when full or for a message that came by one.
    OUTBOX_FULL = "outbox_full"
    #: The peer of an on-demand link took nothing, so the link was hung up with this in its outbox.
    LINK_STALLED = "link_stalled"
    #: The peer of an on-demand link could not be reached, now or a moment ago.
    DIAL_FAILED = "dial_failed"
    #: An on-demand link lost its connection while it sent.
    LINK_LOST = "link_lost"

    # Secure channels
    #: A handshake message did not verify.
    HANDSHAKE_REFUSED = "handshake_refused"
    #: The listener holds as many unfinished handshakes as it may.
    TOO_MANY_HANDSHAKES = "too_many_handshakes"
    #: The listener holds as many channels as it may.
    TOO_MANY_CHANNELS = "too_many_channels"
    #: Data arrived before the trust decision, more than is held meanwhile.
    BEFORE_TRUST_DECISION = "before_trust_decision"
    #: An encrypted message did not decrypt, or its plaintext could not be read.
    DECRYPT_FAILED = "decrypt_failed"
    #: The message has no hop behind the channel.
    ENDS_AT_CHANNEL = "ends_at_channel"

    # Streams
    #: A request for the stream service could not be decoded.
    STREAM_REQUEST_UNDECODABLE = "stream_request_undecodable"
    #: A stream's address got a request that it does not answer.
    STREAM_REQUEST_MISPLACED = "stream_request_misplaced"
    #: The client has as many requests under way as it may.
    TOO_MANY_STREAM_REQUESTS = "too_many_stream_requests"
    #: An answer for a stream did not come along the route to its hub.
    STREAM_ANSWER_NOT_FROM_HUB = "stream_answer_not_from_hub"
    #: An answer for a stream could not be decoded.
    STREAM_ANSWER_UNDECODABLE = "stream_answer_undecodable"
    #: A message ended at the stream itself, and the program does not read it.
    STREAM_NOT_READ = "stream_not_read"

    # Relays
    #: A relay service refused a registration.
    REGISTRATION_REFUSED = "registration_refused"
    #: A relay got an answer that it did not ask for.
    REGISTRATION_ANSWER_UNEXPECTED = "registration_answer_unexpected"
    #: A relay got an answer that names no relay of its own.
    REGISTRATION_ANSWER_INVALID = "registration_answer_invalid"
    #: A message was to go back into a channel, to an address that had sent nothing by the relay.
    RELAY_RECEIVER_UNKNOWN = "relay_receiver_unknown"
    #: The path behind the relay is at its hard limit.
    RELAY_PATH_FULL = "relay_path_full"
    #: The path behind the relay has ended, or does not carry a message of that size.
    RELAY_PATH_FAILED = "relay_path_failed"
    #: The node behind the relay is not connected.
    RELAY_TARGET_AWAY = "relay_target_away"

    # Portals
    #: A message for a portal could not be decoded.
    PORTAL_UNDECODABLE = "portal_undecodable"
    #: An outlet got something else than a Ping.
    PORTAL_NOT_A_PING = "portal_not_a_ping"
    #: An outlet got a Ping again that it has answered.
    PORTAL_PING_REPEATED = "portal_ping_repeated"


#: How often each reason occurred.
Counters = Counter[DropReason]
