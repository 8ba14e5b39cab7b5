"""The interface of transports, and what they share: sockets, TLS."""
