"""Plain text: escapes for characters that a terminal, a page or a spreadsheet would act on.

Names, options, errors and logs come from suites, models and records that others have written.
Characters that a font does not draw are written as Python writes them, `\\x1b` or `\\u202e`, so
that nothing acts and nothing is hidden.
"""

import re
from unicodedata import category

# Two invisible characters only join letters or separate them, in emoji and in Persian.
_KEPT = "\n\t\u200c\u200d"
_UNUSUAL = re.compile(r"[^\n\t -~]+")
# A formula begins a cell, also one that a paste or another separator makes.
_FORMULA = r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]"
_BEGINS = re.compile(rf"[\t\n]|{_FORMULA}")
_BEGINS_WITHIN = re.compile(rf"([;\t\n])(?={_FORMULA})")


def plain(text: str) -> str:
    """Return the text with an escape for each character that is not printed.

    These are control characters other than line feed and tab, and with them every terminal
    sequence; marks and overrides of direction; zero-width, unassigned and private characters;
    the separators U+2028 and U+2029; and halves of surrogate pairs, which UTF-8 cannot write.
    """
    return _UNUSUAL.sub(_printed, text)


def spreadsheet_text(text: str) -> str:
    """Return the text as a cell of a CSV table that no spreadsheet takes for a formula.

    An apostrophe before it makes a cell text. Numbers keep their signs and stay numbers.
    """
    text = plain(text)
    try:
        float(text)
    except ValueError:
        text = _BEGINS_WITHIN.sub(r"\1'", text)
        return f"'{text}" if _BEGINS.match(text) else text
    return text


def _printed(match: re.Match[str]) -> str:
    run = match[0]
    return run if run.isprintable() else "".join(map(_character, run))


def _character(each: str) -> str:
    if each.isprintable() or each in _KEPT or category(each) == "Zs":
        return each
    code = ord(each)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )
