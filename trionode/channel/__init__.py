"""Secure channels: the initiator, the listener, and how each protocol version shakes hands."""
