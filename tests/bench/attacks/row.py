"""Row: one line of the table of reliability."""

from collections import Counter
from dataclasses import dataclass, field

# So many faults are described; the others are counted.
MOST_DESCRIBED = 10


@dataclass(kw_only=True)
class Row:
    """A kind of attack: attempts, further counts, and faults by kind, which should all be 0.

    `faults` begins with 0 for each kind that the attack looks for.
    """

    title: str
    tried: int = 0
    notes: dict[str, int | str] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    descriptions: list[str] = field(default_factory=list)

    def looks_for(self, *kinds: str) -> "Row":
        """Add kinds of fault, which the row shows even with a count of 0."""
        self.faults.update(dict.fromkeys(kinds, 0))
        return self

    def fault(self, kind: str, detail: str) -> None:
        """Count a fault, and keep the first few descriptions."""
        self.faults[kind] += 1
        if len(self.descriptions) < MOST_DESCRIBED:
            self.descriptions.append(f"{kind}: {' '.join(detail.split())[:300]!r}")

    def markdown(self) -> str:
        """Return the row of the table."""
        notes = "; ".join(f"{name} {value}" for name, value in self.notes.items())
        faults = "; ".join(f"{kind} {count}" for kind, count in self.faults.items())
        return f"| {self.title} | {self.tried:,} | {notes} | {faults} |"
