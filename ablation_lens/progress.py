"""The one way progress is shown: a rich bar on stderr with a rate, silent where nobody looks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ablation_lens.escaping import on_one_line


class Advance:
    """A bar that is called with how much more is done; `describe` says what is being done."""

    def __init__(self, bar: Any = None, task: Any = None, unit: str = "") -> None:
        self._bar, self._task, self._unit = bar, task, unit

    def __call__(self, amount: int) -> None:
        """So much more is done."""
        if self._bar is not None:
            self._bar.advance(self._task, amount)
            if speed := self._bar.tasks[self._task].speed:
                self._bar.update(self._task, rate=f"{speed:,.0f} {self._unit}/s")

    def describe(self, what: str) -> None:
        """Say what is being done."""
        if self._bar is not None:
            self._bar.update(self._task, description=on_one_line(what))


@contextmanager
def progress_over(title: str, total: int | None, shown: bool, unit: str = "tokens") -> Iterator[Advance]:
    """A progress bar; the value is called to advance it.

    >>> with progress_over("counting", 3, shown=False) as advance:
    ...     advance(3)
    """
    if not shown:
        yield Advance()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} " + unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Advance(bar, bar.add_task(on_one_line(title), total=total, rate=""), unit)


class CellProgress:
    """How far a study is: cells done, time left, and the cell at hand."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar, self._task = bar, task
        self.done = 0
        self.visible = bar is not None

    def expect(self, total: int) -> None:
        """Say how many cells there will be."""
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def describe(self, what: str) -> None:
        """Say what is being done."""
        if self._bar is not None:
            self._bar.update(self._task, description=on_one_line(what))

    def advance(self) -> None:
        """One more cell is there."""
        self.done += 1
        if self._bar is not None:
            self._bar.advance(self._task)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make room for another bar."""
        # Two live bars on one terminal overwrite each other.
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.start()


class _Lines(CellProgress):
    """Progress for a log file: a line now and then."""

    EVERY = 30.0

    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console, self._total, self._what = console, 0, ""
        self._last = time.monotonic() - self.EVERY  # so that the first line comes at once

    def expect(self, total: int) -> None:
        self._total = total

    def describe(self, what: str) -> None:
        self._what = on_one_line(what)
        if time.monotonic() - self._last >= self.EVERY:
            self._last = time.monotonic()
            # Until there is a total, nobody has looked what is there already.
            counted = f"{self.done:,} of {self._total:,} cells; " if self._total else ""
            # Names from outside may hold [brackets] and :names: of emojis, and a log has no width to break lines at.
            self._console.print(counted + self._what, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_over_cells(shown: bool) -> Iterator[CellProgress]:
    """Progress of a study: a bar in a terminal, lines in a log, nothing where nobody asked.

    >>> with progress_over_cells(shown=False) as progress:
    ...     progress.advance()
    >>> progress.done
    1
    """
    if not shown:
        yield CellProgress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    # rich looks back 30 s by default. A cell may take longer, and then there would be no estimate.
    with Progress(*columns, console=console, transient=True, speed_estimate_period=120) as bar:
        yield CellProgress(bar, bar.add_task("starting", total=None))
