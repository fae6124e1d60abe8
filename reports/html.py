"""HTML: a page's template filled in, in the one style that all pages share."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from optprof.profiler.safety.plain import plain

from .icons import icon_path
from .style import COSTS, INK, LINE, MUTED, ON_BLOCK, PAPER, SAVES, TRACK, Mark, css_colour


def styled_page(template: str, marks: Mapping[str, Mark], **values: Any) -> str:
    """A template of this package filled in, every text escaped, with what the style of all pages
    asks for.
    """
    environment = Environment(
        loader=PackageLoader("optprof.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    environment.filters |= {"icon_path": icon_path, "place": "{:.2f}%".format, "css": css_colour}
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    return environment.get_template(template).render(
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


def _plain(value: Any) -> Any:
    """Return text plainly; what is markup by now was text before."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
