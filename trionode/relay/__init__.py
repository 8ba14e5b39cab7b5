"""Relays: the client, the service on the hub, and the return paths of both."""
