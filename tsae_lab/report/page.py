"""report.html: a template, a drawing library and the data in one file that needs nothing else.

Data go into the page as JSON in which no `<` is left, so that no text of theirs ends its script
element; the script writes them as text, never as HTML. A policy in the page forbids every request.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tsae_lab import files
from tsae_lab.report.explorer import Explorer, explorer_of
from tsae_lab.report.story import TOLD_SECTIONS, untold
from tsae_lab.sections.context import Context

SCRIPTS = ("d3.min.js", "base.js", "charts.js", "explorer.js", "graph.js", "page.js")
MOST_BYTES = 15_000_000  # of a page


def json_script(value: object) -> str:
    """`value` as JSON of ASCII letters without `<`, `>` and `&`: safe inside a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def packed(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays one after the other, each from a multiple of 8 bytes on, deflated, in base64.

    `layout`: type, first byte and shape by name; types as numpy names them, little-endian.
    """
    layout, blocks, place = {}, [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
        layout[name] = [array.dtype.name, place, list(array.shape)]
        data += bytes(-len(data) % 8)
        blocks.append(data)
        place += len(data)
    deflated = zlib.compress(b"".join(blocks), 9)
    return {"layout": layout, "data": base64.b64encode(deflated).decode()}


def page_html(about: Mapping[str, Any], explorers: Sequence[Explorer]) -> str:
    """The page. `about`: what `story.told` gives, or its parts that there are."""
    environment = Environment(loader=PackageLoader("tsae_lab.report", "assets"), autoescape=True)

    def asset(name: str) -> Markup:
        loader = environment.loader
        assert loader is not None
        return Markup(loader.get_source(environment, name)[0])

    contents = [
        (one.about["text"], Markup(json_script(one.about | packed(one.arrays))))
        for one in explorers
    ]
    texts = [text["name"] for text in about["texts"]] or [name for name, _ in contents]
    return environment.get_template("page.html").render(
        **about,
        names=texts,
        sections=TOLD_SECTIONS,
        style=asset("page.css"),
        scripts=[asset(name) for name in SCRIPTS],
        data=Markup(json_script(about)),
        explorers=contents,
    )


def write_page(path: Path, about: Mapping[str, Any], explorers: Sequence[Explorer]) -> int:
    """Write the page; its size in bytes. ValueError if it would be larger than 15 MB."""
    text = page_html(about, explorers)
    size = len(text.encode())
    if size > MOST_BYTES:
        most = f"{MOST_BYTES / 1e6:.0f} MB"
        raise ValueError(f"{path} not written: a page needs at most {most}; got {size / 1e6:.1f}")
    files.write_atomic(path, lambda draft: draft.write_text(text, encoding="utf-8"))
    return size


def write_explorer(path: Path, context: Context, tokens: int) -> int:
    """Write a page with nothing but the explorer of one document; its size in bytes."""
    features = max(subject.codes.d_sae for subject in context.subjects)
    explorer = explorer_of(context, documents=1, features=features, tokens=tokens)
    return write_page(path, untold(f"Features over the words of {context.dataset}"), [explorer])
