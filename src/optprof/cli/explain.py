"""optprof explain: describe the metrics."""

from typing import Annotated

import typer


def explain(
    metric: Annotated[
        str | None, typer.Argument(metavar="METRIC", help="state, peak, step, ...; all by default.")
    ] = None,
) -> None:
    """Explain a figure: its meaning, its origin, and what it leaves out."""
    from optprof.reports import explain as explanations

    names = [metric] if metric else explanations.FIGURES
    print("\n\n".join(map(explanations.explain, names)))
