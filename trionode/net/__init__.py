"""Transports: their interface and loader, and what they share: sockets, byte streams, TLS, reconnecting."""
