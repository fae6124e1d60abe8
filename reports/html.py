"""HTML: a document as one self-contained page, or as a fragment for a notebook."""

import base64
import gzip
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from optprof.profiler.safety.plain import plain

from .document import Document
from .icons import icon_path
from .pictures.charts import Chart
from .pictures.picture import Drawing
from .style import COSTS, INK, LINE, MUTED, ON_BLOCK, PAPER, SAVES, TRACK, Mark, css_fill


def render(document: Document, drawings: Iterable[Drawing] = ()) -> str:
    """Return a page that opens offline and loads nothing; all text is escaped.

    Readers can save the `drawings` from the page. ModuleNotFoundError for graphs without the
    package plotly.
    """
    graphs = _graphs(document)
    return _filled(
        "page.html.j2",
        document.marks,
        document=document,
        graphs=graphs,
        plotly=packed_plotly() if graphs else "",
        figures={drawing.name: _packed(drawing.svg.encode()) for drawing in drawings},
    )


def fragment(document: Document, drawn: Mapping[str, str] | None = None) -> str:
    """Return the document's sections alone, without style sheet and scripts.

    Below them stand the pictures `drawn`, SVG by title. Each is an image of its own, because the
    names inside two SVGs would clash in one document.
    """
    images = {
        title: base64.b64encode(svg.encode()).decode() for title, svg in (drawn or {}).items()
    }
    return _filled("fragment.html.j2", document.marks, document=document, images=images, figures={})


def _graphs(document: Document) -> dict[str, Mapping[str, Any]]:
    """The data of each graph by the id of its element."""
    blocks = (block for section in document.shown for block in section.shown)
    return {
        f"graph-{chart.name}-{number}": graph.data
        for chart in blocks
        if isinstance(chart, Chart)
        for number, graph in enumerate(chart.graphs, 1)
    }


def prepare() -> None:
    """Compile the page's template and pack plotly's script; later pages find both done."""
    _environment().get_template("page.html.j2")
    packed_plotly()


@cache
def packed_plotly() -> str:
    """Return plotly's script from its package, by gzip and in base64: a page is 3 MB smaller, and
    browsers unpack it.
    """
    package = find_spec("plotly")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "the page's graphs need the package plotly; pip install plotly", name="plotly"
        )
    script = Path(package.origin).parent / "package_data" / "plotly.min.js"
    return _packed(script.read_bytes())


def _packed(content: bytes) -> str:
    """Return content by gzip and in base64, which browsers unpack."""
    # A higher level takes twice as long to save a thousandth.
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _filled(template: str, marks: Mapping[str, Mark], **values: Any) -> str:
    """Fill in a template of this package, with the marks and colours of its style."""
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            marks=marks,
            colour_names={label: f"mark-{number}" for number, label in enumerate(marks)},
            on_block=ON_BLOCK,
            colours={
                "paper": PAPER,
                "ink": INK,
                "muted": MUTED,
                "line": LINE,
                "track": TRACK,
                "saves": SAVES,
                "costs": COSTS,
            },
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("optprof.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    environment.filters |= {
        "icon_path": icon_path,
        "place": "{:.2f}%".format,
        "fill": css_fill,
        "kind": lambda block: type(block).__name__,
        "code": _code,
    }
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    return environment


def _code(text: str) -> Markup:
    """Return text of our own, with words between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(plain(text)))))


def _plain(value: Any) -> Any:
    """Return text plainly; markup was made of plain text."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
