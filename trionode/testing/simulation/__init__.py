"""Simulation: a topology under seeded faults in virtual time, with a count of every message."""
