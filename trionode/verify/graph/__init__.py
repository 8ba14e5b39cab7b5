"""Drawings of a topology with what each hop sees of its flows: text for a terminal, Mermaid and SVG."""

from trionode.verify.graph.layout import lay_out
from trionode.verify.graph.mermaid import as_mermaid
from trionode.verify.graph.svg import as_svg
from trionode.verify.graph.text import as_text

__all__ = ["as_mermaid", "as_svg", "as_text", "lay_out"]
