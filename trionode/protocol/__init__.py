"""The wire, sans-IO: bytes and values in, bytes and values out; no sockets, clocks, threads or randomness."""
