"""The verifier: who can read, drop or inject what in a topology."""

from trionode.verify.report import Report, verify

__all__ = ["Report", "verify"]
