"""A symbolic network without bytes, sockets and time. Its nodes deliver by the same rules as running nodes."""
