"""Row: one line of the table of reliability."""

from collections import Counter
from dataclasses import dataclass, field

# So many faults are told in words; the others are counted.
MOST_TOLD = 10


@dataclass(kw_only=True)
class Row:
    """A kind of attack: what was tried and how often, counts that say more, and faults by kind, of
    which there must be none.

    `faults` begins with each kind that is looked for, at 0.
    """

    title: str
    tried: int = 0
    notes: dict[str, int | str] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def looks_for(self, *kinds: str) -> "Row":
        """Add kinds of fault that are counted even where there are none."""
        self.faults.update(dict.fromkeys(kinds, 0))
        return self

    def fault(self, kind: str, detail: str) -> None:
        """Count a fault, and keep the first few in words."""
        self.faults[kind] += 1
        if len(self.told) < MOST_TOLD:
            self.told.append(f"{kind}: {' '.join(detail.split())[:300]!r}")

    def markdown(self) -> str:
        """Return the row of the table."""
        notes = "; ".join(f"{name} {value}" for name, value in self.notes.items())
        faults = "; ".join(f"{kind} {count}" for kind, count in self.faults.items())
        return f"| {self.title} | {self.tried:,} | {notes} | {faults} |"
