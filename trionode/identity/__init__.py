"""This program's identities, known peers, and trust policies."""
