"""Checks of a spec before anything runs."""
