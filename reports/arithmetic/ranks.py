"""Ranks: what each process of a training holds, and what they exchange in a step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optprof.profiler.records.record import Exchange, RankBytes, Ranks, Record
from optprof.scenarios.parallel import read_parallel

from .entries import Entry, question

# What ranks of one watched training may have in unequal amounts.
_OF_ONE_RANK = ("rank", "parameters", "trained", "frozen", "dtypes")
# The tensors that a rank sends in a ring of n ranks, as multiples of (n-1)/n of the whole. A
# rank hands the tensor of a broadcast on as a whole, except the last one.
_SENT = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}


def side_by_side(records: Iterable[Record]) -> list[Record]:
    """Join the records of a watched training's ranks, a record each, into one of all of them.

    Its bytes are those of the rank with the highest peak or, without peaks, the most bytes; its
    times are those of the slowest rank.
    """
    groups: dict[object, dict[int, Record]] = {}
    for number, record in enumerate(records):
        rank = _watched_rank(record)
        if rank is None:
            groups[number] = {0: record}
            continue
        key = _training(record)
        while rank in groups.setdefault(key, {}):
            # Another training of the same model.
            key = (key, "again")
        groups[key][rank] = record
    return [_joined(group) for group in groups.values()]


def _watched_rank(record: Record) -> int | None:
    """Return the rank whose process watched a training of several; None for other records."""
    each = record.ranks.each if record.ranks else ()
    return each[0].rank if len(each) == 1 and record.scenario.parallel is None else None


def _training(record: Record) -> object:
    """Return a key that the ranks of one training share, though their parts may differ."""
    scenario = record.scenario
    config = {name: value for name, value in scenario.config.items() if name not in _OF_ONE_RANK}
    return replace(scenario, config=config).key


def _joined(group: dict[int, Record]) -> Record:
    records = [record for _, record in sorted(group.items())]
    if len(records) == 1:
        return records[0]
    each = [one for record in records if record.ranks for one in record.ranks.each]
    slowest = max(group, key=lambda rank: _step(group[rank]))
    timed = group[slowest]
    ranks = Ranks(each=tuple(each), slowest=slowest if _step(timed) else None)
    assert ranks.fullest is not None
    fullest = ranks.fullest.rank
    scenario = group[fullest].scenario
    config = {name: value for name, value in scenario.config.items() if name != "rank"}
    return replace(
        group[fullest],
        scenario=replace(scenario, config=config),
        ranks=ranks,
        times=timed.times,
        warmup=timed.warmup,
    )


def _step(record: Record) -> float:
    samples = sorted((record.times or {}).get("step") or (0.0,))
    return samples[len(samples) // 2]


def sent_bytes(exchange: Exchange) -> int | None:
    """Return the bytes that a rank sends, if the ranks exchange them in a ring; None if unknown."""
    if exchange.operation == "broadcast":
        return exchange.bytes
    if exchange.operation not in _SENT:
        return None
    whole = _SENT[exchange.operation] * exchange.bytes * (exchange.group - 1)
    return -(-whole // exchange.group)


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """A record of several ranks, with the label of its optimizer.

    `total` is the state of all ranks together; it is an upper bound if it `is_bound`, and None if
    it is unknown. `sent` is what a rank sends in a step, None if that is unknown.
    """

    entry: Entry
    record: Record
    total: int | None
    is_bound: bool
    sent: int | None

    @property
    def each(self) -> Sequence[RankBytes]:
        """The bytes of each rank of a measured training."""
        return self.record.ranks.each if self.record.ranks else ()

    @property
    def count(self) -> int:
        """The number of ranks."""
        return max(self.record.scenario.ranks, len(self.each), _watched_ranks(self.record))

    @property
    def rank(self) -> int:
        """The rank whose bytes the record has."""
        fullest = self.record.ranks and self.record.ranks.fullest
        return fullest.rank if fullest else self.record.scenario.rank

    @property
    def differ(self) -> bool:
        """Return whether ranks keep different amounts of state."""
        return self.record.ranks is not None and self.record.ranks.differ


def _watched_ranks(record: Record) -> int:
    count: Any = record.scenario.config.get("ranks")
    return count if record.scenario.parallel is None and isinstance(count, int) else 1


def rank_rows(entries: Iterable[Entry], records: Sequence[Record]) -> list[RankRow]:
    """Return a row for each record of several ranks that an entry has its bytes or times from.

    A simulation of the same question has a row too: it knows what ranks exchange.
    """
    simulated = {
        (question(each), each.scenario.workload): each
        for each in records
        if each.origin == "simulated"
    }
    rows = []
    for entry in entries:
        same = simulated.get((question(entry.record), entry.scenario.workload))
        own = entry.bytes_from, entry.times_from, same
        for place, record in enumerate(own):
            if record is None or record.ranks is None or record in own[:place]:
                continue
            total, is_bound = _total(record)
            exchanges = record.ranks.exchanges
            sent = [sent_bytes(each) for each in exchanges]
            known = [each for each in sent if each is not None]
            rows.append(
                RankRow(
                    entry=entry,
                    record=record,
                    total=total,
                    is_bound=is_bound,
                    sent=sum(known) if exchanges and len(known) == len(sent) else None,
                )
            )
    return rows


def _total(record: Record) -> tuple[int | None, bool]:
    """Return the state of all ranks, and whether that is an upper bound."""
    ranks, memory, scenario = record.ranks, record.memory, record.scenario
    if ranks is None or memory is None:
        return None, False
    if ranks.each:
        is_whole = len(ranks.each) >= max(scenario.ranks, _watched_ranks(record))
        return (
            (sum(one.optimizer_state for one in ranks.each), False) if is_whole else (None, False)
        )
    if not ranks.differ:
        return scenario.ranks * memory.optimizer_state, False
    is_most = ranks.elements[scenario.rank] == max(ranks.elements)
    way = read_parallel(scenario.parallel) if scenario.parallel else None
    # ZeRO-1 gives whole parameters to ranks: more elements need not be more state.
    if not is_most or way is None or way.data == "zero1":
        return None, False
    return scenario.ranks * memory.optimizer_state, True
