"""The delivery layer: numbered, acknowledged messages inside a secure channel. docs/delivery.md describes it."""
