"""Relays: the client, the service, and return paths."""
