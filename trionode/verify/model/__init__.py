"""A network of a topology without bytes, sockets and time: nodes deliver symbolic messages by the same rules as running nodes."""
