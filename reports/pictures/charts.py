"""Charts: pictures as the page's template shows them, with bars as they are and graphs."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..tables.table import Table
from ..units import Words
from .graphs import Graph, areas_graph, icicle_graph, plot_graph
from .picture import Areas, Bars, Icicle, Key, Picture, Plot


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture as the page's template shows it.

    `labels` are the optimizers that its graphs can show and hide, each with an origin. `files` are
    the names of its drawings.
    """

    name: str
    kind: str
    title: str
    sentence: str
    table: Table
    notes: tuple[Words, ...]
    keys: tuple[Key, ...]
    groups: tuple[Bars, ...]
    graphs: tuple[Graph, ...]
    labels: Mapping[str, str]
    files: tuple[str, ...]

    @classmethod
    def of(cls, picture: Picture) -> "Chart":
        """The chart of a picture."""
        origins = {
            line.label: line.points[-1].origin
            for panel in picture.panels
            if isinstance(panel, Plot)
            for line in panel.lines
            if line.points
        }
        names = ("name", "kind", "title", "sentence", "table", "notes", "keys")
        return cls(
            **{name: getattr(picture, name) for name in names},
            groups=tuple(panel for panel in picture.panels if isinstance(panel, Bars)),
            graphs=tuple(
                _graph(panel, picture) for panel in picture.panels if not isinstance(panel, Bars)
            ),
            labels={label: origins[label] for label in picture.marks if label in origins},
            files=tuple(picture.files),
        )


def _graph(panel: Plot | Areas | Icicle, picture: Picture) -> Graph:
    if isinstance(panel, Plot):
        return plot_graph(panel, picture.marks)
    return areas_graph(panel) if isinstance(panel, Areas) else icicle_graph(panel)
