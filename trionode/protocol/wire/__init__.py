"""Addresses, routes, messages, and their encodings."""
