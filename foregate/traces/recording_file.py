"""A recording while it grows: whole batches wait in memory, go to disk as parts, and become one file. Runs no model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from foregate.errors import StorageError, TraceError
from foregate.traces.capture import CHECK_EVERY, SelfCheck
from foregate.traces.prompts import PromptText
from foregate.traces.schema import Provenance, Trace, concat
from foregate.traces.storage import TraceWriter, parts, read_trace

SELF_CHECK = "self_check"  # the one setting that grows while recording, so no reason to refuse a resume


@dataclass(eq=False)
class RecordingFile:
    """One output file, and the folder of parts beside it until it is whole."""

    path: Path
    provenance: Provenance
    overwrite: bool
    check: SelfCheck = field(default_factory=SelfCheck)
    _waiting: list[Trace] = field(default_factory=list)
    _waiting_check: SelfCheck = field(default_factory=SelfCheck)

    def __post_init__(self) -> None:
        self.writer = TraceWriter(self.path)
        if self.path.exists() and not self.overwrite:
            raise StorageError(f"{self.path} is there already; pass --overwrite to replace it")

    def add(self, trace: Trace, check: SelfCheck) -> None:
        """Keep a batch for the next part."""
        self._waiting.append(trace)
        self._waiting_check = self._waiting_check.add(check)

    def flush(self) -> None:
        """Write the waiting batches as a part."""
        if not self._waiting:
            return
        whole = concat(self._waiting)
        self._learn_notes(whole.provenance)
        self.writer.append(replace(whole, provenance=self._stated(self._waiting_check)))
        self.check = self.check.add(self._waiting_check)
        self._waiting, self._waiting_check = [], SelfCheck()

    def finish(self) -> None:
        """Join the parts."""
        self.writer.finish(self._stated(self.check))

    def _learn_notes(self, part: Provenance) -> None:
        """What running showed holds for the whole."""
        self.provenance = self.provenance.note(*(n for n in part.notes if n not in self.provenance.notes))

    def _stated(self, check: SelfCheck) -> Provenance:
        settings = {**self.provenance.settings, SELF_CHECK: {"every": CHECK_EVERY, **asdict(check)}}
        return replace(self.provenance, self_check=check.share, settings=settings)

    def take_up(self, count: int) -> None:
        """Go on after the first `count` parts; a later one has no partner in the other stack's folder."""
        for part in parts(self.writer.folder)[count:]:
            part.unlink()
        for part in parts(self.writer.folder):
            stored = read_trace(part, hidden=False).provenance
            self._refuse_other(stored)
            self._learn_notes(stored)
            numbers = {k: v for k, v in stored.settings[SELF_CHECK].items() if k != "every"}
            self.check = self.check.add(SelfCheck(**numbers))

    def _refuse_other(self, stored: Provenance) -> None:
        mine = {"model": list(self.provenance.source), **self.provenance.settings}
        theirs = {"model": list(stored.source), **stored.settings}
        for key in sorted({*mine, *theirs} - {SELF_CHECK}):
            if mine.get(key) != theirs.get(key):
                raise StorageError(
                    f"{self.writer.folder} was recorded with {key} {theirs.get(key)!r}, now it is {mine.get(key)!r}; "
                    "give the same settings to resume, or --overwrite to begin again"
                )


def open_files(files: list[RecordingFile], prompts: Sequence[PromptText], resume: bool) -> int:
    """Make ready to write; how many prompts are recorded already."""
    folders = [file.writer.folder for file in files]
    if any(folder.is_dir() for folder in folders) and not resume:
        if not files[0].overwrite:
            there = next(f for f in folders if f.is_dir())
            raise StorageError(
                f"{there} holds a stopped recording; pass --resume to go on, or --overwrite to begin again"
            )
        for file in files:
            file.writer.discard()
    count = min(len(parts(folder)) for folder in folders)
    for file in files:
        file.take_up(count)
    if count == 0:
        return 0
    done = [read_trace(part, hidden=False).prompts for part in parts(folders[0])]
    names = [p.name for part in done for p in part]
    if names != [p.name for p in prompts[: len(names)]]:
        raise TraceError(f"{folders[0]} holds other prompts than these; give the same prompts, or --overwrite")
    return len(names)
