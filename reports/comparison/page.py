"""The page of a comparison: one self-contained HTML file, in the style of a run's report."""

from collections.abc import Sequence

from ..arithmetic.provenance import shell
from ..html import styled_page
from .compare import Compared
from .gate import Offence
from .tables import (
    Names,
    by_scenario,
    comparison_table,
    offence_table,
    one_side_table,
    remarks,
    sides,
    summary,
    unfinished_table,
)


def render_comparison_page(
    compared: Compared,
    stopped: Sequence[Offence],
    command: Sequence[str],
    *,
    only_regressed: bool = False,
) -> str:
    """The page as HTML text, every word of a record escaped; `command` are the words of the command
    line.
    """
    names = Names.of(compared.records)
    before = [pair.before for pair in compared.pairs] + list(compared.only_before)
    after = [pair.after for pair in compared.pairs] + list(compared.only_after)
    return styled_page(
        "compare.html.j2",
        {},
        title="What changed",
        context=names.common,
        before=sides(before),
        after=sides(after),
        summary=summary(compared),
        stopped=offence_table(stopped, names),
        tables=by_scenario(comparison_table(compared, names, only_regressed=only_regressed)),
        only_regressed=only_regressed,
        one_side=one_side_table(compared, names),
        unfinished=unfinished_table(compared, names),
        remarks=remarks(compared),
        command=shell(command),
    )
