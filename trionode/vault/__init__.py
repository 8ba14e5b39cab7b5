"""Vaults, which hold the secret keys of a node."""

from trionode.vault.memory import MemoryVault

__all__ = ["MemoryVault"]
