"""Result: the contents of a campaign's folder; an interrupted campaign has less."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from journal import Journal
from optprof.profiler.records.record import Record
from record import catalogue_name
from recording import Recording


@dataclass(frozen=True)
class Result:
    """The results of a campaign."""

    folder: Path

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The journal's lines; raises FileNotFoundError if the folder is not a campaign's."""
        if not (self.folder / "journal.jsonl").is_file():
            raise FileNotFoundError(f"no journal.jsonl in {self.folder}; name a campaign's folder")
        return list(Journal(self.folder).lines("journal.jsonl"))

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the journal's lines of one kind."""
        return [line for line in self.lines if line.get("kind") == kind]

    @cached_property
    def constants(self) -> dict[str, dict[str, Any]]:
        """Return the constants by group and name."""
        return self._by_job("constant")

    @cached_property
    def kernels(self) -> dict[str, dict[str, Any]]:
        """Return the results of the stage "kernels" by job and name."""
        return self._by_job("kernel")

    def _by_job(self, kind: str) -> dict[str, dict[str, Any]]:
        by_job: dict[str, dict[str, Any]] = {}
        for line in self.of_kind(kind):
            by_job.setdefault(line["job"], {})[line["name"]] = line["value"]
        return by_job

    def recordings(self) -> Iterator[tuple[str, Recording]]:
        """Yield the recordings with their names, in order."""
        for line in Journal(self.folder).lines("recordings-*.jsonl"):
            packed = base64.b64decode(line["xz"])
            yield line["name"], Recording.unpack(packed, line["name"])

    @cached_property
    def records(self) -> list[Record]:
        """Return the harness's records."""
        return [Record.from_dict(line) for line in Journal(self.folder).lines("records.jsonl")]

    @property
    def gpu(self) -> str | None:
        """Return the GPU's name in the catalogue; None if it is unknown."""
        of_device = self.constants.get("device", {})
        properties, capability = of_device.get("properties"), of_device.get("capability")
        if properties and capability:
            return catalogue_name(tuple(capability), int(properties["total_memory"]))
        return next((recording.scenario["gpu"] for _, recording in self.recordings()), None)

    @property
    def was_rehearsed(self) -> bool:
        """Return whether a stand-in replaced the GPU."""
        return any(line.get("rehearsed") for line in self.of_kind("campaign"))

    def failures(self) -> list[str]:
        """Return a line for each failure, and for the jobs without time."""
        lines = [
            f"{line['name']}: {line['traceback'].strip().splitlines()[-1]}"
            for line in self.of_kind("failed")
        ]
        failed = {line["name"] for line in self.of_kind("failed")}
        ended = [line for line in self.of_kind("ended") if line["how"] != "ok"]
        lines += [f"{line['name']}: {line['how']}" for line in ended if line["name"] not in failed]
        lines += [f"no time for {line['count']} more" for line in self.of_kind("left out")]
        return lines
