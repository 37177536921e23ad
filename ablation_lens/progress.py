"""The one way progress is shown: a rich bar on stderr with a rate, silent where nobody looks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_over(title: str, total: int | None, shown: bool, unit: str = "tokens") -> Iterator[Callable[[int], None]]:
    """A progress bar; the value is a function that advances it.

    >>> with progress_over("counting", 3, shown=False) as advance:
    ...     advance(3)
    """
    if not shown:
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} " + unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, rate="")

        def advance(amount: int) -> None:
            bar.advance(task, amount)
            speed = bar.tasks[task].speed
            if speed:
                bar.update(task, rate=f"{speed:,.0f} {unit}/s")

        yield advance
