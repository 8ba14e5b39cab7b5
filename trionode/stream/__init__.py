"""Streams: the client, the service of a hub, and the stores."""
