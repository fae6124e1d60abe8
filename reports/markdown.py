"""Markdown: a document in GitHub's dialect, for a pull request; text from records stays text."""

import re

from optprof.profiler.safety.plain import plain

from .document import Document, Note, Section
from .tables.table import Table
from .units import Words

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~!&@$])")
# Each of these would make the rest a link, a person, an issue, a commit or a picture: a scheme,
# www, @somebody and a@b.c, #1, !1 and GH-1, half a full hash, and :smile:.
_LINKED = re.compile(
    r"(?<=\w):(?=//)|(?:mailto|xmpp):|\bwww(?=\.)|@|[#!](?=\d)|\bGH-(?=\d)"
    r"|\b[0-9a-f]{20}(?=[0-9a-f]{20}\b)|:(?=(?:[a-z_+-][\w+-]*|100|1234|8ball):)",
    re.IGNORECASE,
)
# At the beginning of a paragraph: the number of a list, or the place before a list, an underline or
# a rule.
_BLOCK = re.compile(r"^(?:\d{1,9}(?=[.)](?:\s|$))|(?=[-+](?:\s|$)|=+$|-{2,}$))")


def render(document: Document) -> str:
    """Return the sections as paragraphs and tables."""
    parts = [part for section in document.shown for part in _section(section)]
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = []
    if section.title:
        # A title with a colon of its own, as in "When to step: gpt2", needs no other.
        parts.append(escaped(section.title if ":" in section.title else f"{section.title}:"))
    for block in section.shown:
        if isinstance(block, Table):
            parts.append(_table(block))
        elif isinstance(block, Note):
            text = _escaped_words(block.text)
            parts.append(f"**{text}**" if block.style == "verdict" else text)
    return parts


def _table(table: Table) -> str:
    """The table, numbers to the right."""
    numbers = [bool(table.rows) and table.rows[0][place].number for place in range(len(table.head))]
    lines = [
        [escaped(name) for name in table.head],
        ["---:" if number else "---" for number in numbers],
    ]
    lines += [[escaped(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped_words(words: Words) -> str:
    return escaped(words if isinstance(words, str) else words.binary)


def escaped(text: str) -> str:
    """Return the text on one line, without anything that Markdown, HTML or GitHub would act on.

    GitHub looks for addresses, names and references in the text that Markdown leaves, where a
    backslash is gone; a space without width breaks them.
    """
    line = _SPECIAL.sub(r"\\\1", " ".join(plain(text).split()))
    return _BLOCK.sub(r"\g<0>\\", _LINKED.sub(r"\g<0>&#8203;", line))
