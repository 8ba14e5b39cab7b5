"""Encryption after the handshake."""
