"""The marks of the drawings: lines, arrows, texts and the frame of an SVG file, in one style. Layer 1.

Text is measured by the widths of DejaVu Sans, rounded up, which no common sans-serif font exceeds, so that a text keeps within
its box whichever font the reader has.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["COLOURS", "LINE", "arrow", "document", "line", "shortened", "text", "text_width"]

LINE = "#333333"
COLOURS = {"weights": "#dbe9f6", "norm": "#e6f2dc", "activation": "#fbe3cf", "other": "#eeeeee"}
# The widest character of each group, in units of the font's size.
_WIDTHS = (("il'jI ", 0.33), (".,:;!()[]|ft/-r´\\", 0.42), ("mwMW%@—…½", 1.01), ("ABCDEGHKNOPQRSTUVXYZ#×+=<>^~±−&∂ΣΔ", 0.85))


def text_width(content: str, size: float) -> float:
    """An upper bound of a text's width in pixels at a font size in pixels; East Asian characters and emoji count as square."""
    return size * sum(_width(character) for character in content)


def _width(character: str) -> float:
    for characters, width in _WIDTHS:
        if character in characters:
            return width
    return 0.65 if ord(character) < 0x250 else 1.05


def shortened(content: str, most: int) -> str:
    """The text in at most `most` characters: its middle gives way to an ellipsis, because both ends of a module path tell."""
    if len(content) <= most:
        return content
    front = (most - 1) // 2
    return f"{content[:front]}…{content[len(content) - (most - 1 - front) :]}"


def line(x1: float, y1: float, x2: float, y2: float, colour: str = LINE) -> str:
    """A straight line."""
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="{colour}" stroke-width="1.4" fill="none"/>'


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = LINE) -> str:
    """A straight line that ends in a head; vertical, downwards or upwards."""
    back = -7 if y2 >= y1 else 7
    head = (
        f'<path d="M{x2 - 4:g} {y2 + back:g} L{x2:g} {y2:g} L{x2 + 4:g} {y2 + back:g}" stroke="{colour}" '
        f'stroke-width="1.4" fill="none"/>'
    )
    return line(x1, y1, x2, y2, colour) + head


def text(
    x: float, y: float, content: str, *, size: float = 12, anchor: str = "middle", bold: bool = False, fill: str = ""
) -> str:
    """A text whose baseline begins, is centred or ends at (x, y); `anchor` is "start", "middle" or "end"."""
    style = (' font-weight="bold"' if bold else "") + (f' fill="{fill}"' if fill else "")
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{style}>{escape(content)}</text>'


def document(width: float, height: float, title: str, marks: Iterable[str], size: float = 13) -> str:
    """The text of an SVG file on white, `width` x `height` pixels at its natural size."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="{size:g}" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, f'<rect width="{width:g}" height="{height:g}" fill="white"/>', *marks, "</svg>\n"])
