"""optprof explain: describe the metrics."""

from typing import Annotated

import typer

from optprof.reports.streams import wrapped

from .names import metric_names


def explain(
    metric: Annotated[
        str | None,
        typer.Argument(
            metavar="METRIC",
            help="state, peak, step, ...; all by default.",
            autocompletion=metric_names,
        ),
    ] = None,
) -> None:
    """Explain a figure: its meaning, its origin, and what it leaves out."""
    from optprof.reports import explain as explanations

    names = [metric] if metric else explanations.FIGURES
    texts = map(explanations.explain, names)
    print("\n\n".join("\n".join(wrapped(line, 2) for line in text.splitlines()) for text in texts))
