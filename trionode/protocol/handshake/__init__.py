"""Noise XX and the handshakes of both protocol versions."""
