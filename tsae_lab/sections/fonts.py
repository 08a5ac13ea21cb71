"""Fonts for the characters of a figure: those that matplotlib's own lacks are looked for."""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from matplotlib import font_manager
from matplotlib.text import Text

OWN = "DejaVu Sans"  # of matplotlib
LEFT_TO_RIGHT = "\u200e"  # a mark without width


def fit_fonts(labels: Sequence[Text]) -> str:
    """Gives the texts the fonts of this machine that have their characters; the characters that no
    font has, in order.
    """
    needed = {c for text in labels for c in text.get_text() if c.isprintable()}
    missing, families = needed - _characters(font_manager.findfont(OWN)), [OWN]
    for entry in _fonts_here() if missing else ():
        if has := missing & _characters(entry.fname):
            families.append(entry.name)
            missing -= has
    for text in labels if len(families) > 1 else ():
        text.set_fontfamily(families)
    return "".join(sorted(missing))


def numbered(label: str) -> str:
    """A label that begins with its number, and does so too where the words after it read from right
    to left: "3 שלום", not "שלום 3". matplotlib orders such text from version 3.11 on.
    """
    order = [unicodedata.bidirectional(c) in ("R", "AL") for c in label]
    return f"{LEFT_TO_RIGHT}{label}" if any(order) and not order[0] else label


@functools.cache
def _characters(file: str | Path) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(file).get_charmap()))


def _fonts_here() -> list[font_manager.FontEntry]:
    """The machine's fonts, without that of boxes, which has every character."""
    every = font_manager.fontManager.ttflist
    return [entry for entry in every if not entry.name.startswith("Last Resort")]
