"""What could not be read, counted by reason; or the end of the run, if the policy says so."""

import collections
import dataclasses

from moejax.errors import DataError

KEEP = 20  # complaints kept word for word; the rest is only counted
MAX_DETAIL = 200  # characters; a detail may quote the record


@dataclasses.dataclass(frozen=True)
class ErrorLog:
    """Records left out of a corpus."""

    counts: dict[str, int]  # by reason
    first: tuple[str, ...]  # "file:line reason" of the first KEEP of them

    @property
    def total(self) -> int:
        """Records left out."""
        return sum(self.counts.values())

    def summary(self) -> str:
        """One line, such as `records left out: 3 (2 broken JSON, 1 duplicate)`."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))
        return f"records left out: {self.total}" + (f" ({reasons})" if reasons else "")


class ErrorCollector:
    """Counts bad records (`on_error="skip"`) or raises at the first one (`"stop"`)."""

    def __init__(self, on_error: str):
        self._stop = on_error == "stop"
        self._counts: collections.Counter[str] = collections.Counter()
        self._first: list[str] = []

    def add(self, where: str, reason: str, detail: str = "") -> None:
        """Report the bad record at `where` ("file:line").

        Raises:
          DataError: the policy is to stop.
        """
        complaint = f"{where} {reason}" + (f": {detail[:MAX_DETAIL]}" if detail else "")
        if self._stop:
            raise DataError(
                f"{complaint}. Mend or remove it, or leave such records out with --config.data.on_error=skip"
            )
        self._note(reason, complaint)

    def add_duplicate(self, where: str, earlier: str) -> None:
        """Report a repeated document; nothing is lost by dropping it, so it never stops a run."""
        self._note("duplicate", f"{where} duplicate of {earlier}")

    def _note(self, reason: str, complaint: str) -> None:
        self._counts[reason] += 1
        if len(self._first) < KEEP:
            self._first.append(complaint)

    def log(self) -> ErrorLog:
        """What was counted so far."""
        return ErrorLog(dict(self._counts), tuple(self._first))
