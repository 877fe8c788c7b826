"""What a person sees while a command works: progress with rate and time left, notes, tables."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

OnProgress = Callable[[int, int | None], None]
"""Called with the units done so far and their total (None: unknown)."""

out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

_SECONDS_BETWEEN_LINES = 10.0


class _Rate(ProgressColumn):
    def render(self, task: object) -> Text:
        """Units per second since the start."""
        speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
        return Text(f"{speed:,.1f}/s" if speed else "", style="cyan")


@contextlib.contextmanager
def progress(label: str, unit: str) -> Iterator[OnProgress]:
    """Show the progress of one piece of long work on standard error.

    On a terminal: a bar with count, rate and time left. Elsewhere (a log, CI): one line every ten seconds.
    """
    if err.is_terminal:
        with _bar(label, unit) as report:
            yield report
    else:
        yield _lines(label, unit)


@contextlib.contextmanager
def _bar(label: str, unit: str) -> Iterator[OnProgress]:
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(label: str, unit: str) -> OnProgress:
    first: int | None = None
    start = last = 0.0

    def report(done: int, total: int | None) -> None:
        nonlocal start, last, first
        now = time.monotonic()
        if first is None:
            first, start, last = done, now, now
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = (done - first) / (now - start)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
        of = f" of {total:,}" if total else ""
        sys.stderr.write(f"{label}: {done:,}{of} {unit}, {rate:,.1f}/s{left}\n")

    return report


def note(message: str) -> None:
    """Print one line about what is going on to standard error."""
    if not out.quiet:
        err.print(message, markup=False)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Hold back notes and results, but not progress, of commands that a recipe calls."""
    before, out.quiet = out.quiet, True
    try:
        yield
    finally:
        out.quiet = before


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None, numbers: bool = True
) -> Table:
    """Lay out rows of text: first column to the left, the others to the right if they are numbers."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, name in enumerate(columns):
        grid.add_column(name, justify="right" if number and numbers else "left", overflow="fold", no_wrap=number == 0)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid
