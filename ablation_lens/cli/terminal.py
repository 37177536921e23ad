"""What the command prints. No other module of `cli/` prints: here a line stays one line, whatever is named in it.

Nothing that takes long is imported with this module: what is said at Ctrl-C would have to wait for it.
"""

import json
import math
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation_lens.escaping import as_unicode, on_one_line, shorten

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

LONGEST = 5_000
"""Characters of an error: no path is longer, and a file can make an error quote anything."""

INTERRUPTED, UNREAD = 130, 141
"""Exit codes at Ctrl-C, and where nobody reads on: 128 + SIGINT and 128 + SIGPIPE, as in shells."""


def prepare() -> None:
    """Make the streams fit for any text, and warnings one line each."""
    warnings.formatwarning = lambda message, *_: _line(
        shorten(f"warning: {message}", LONGEST)
    )  # no source lines for people
    with suppress(AttributeError):  # no stream at all, or one of a test
        # An old locale may know no σ. Typer prints its help by itself, so the stream is told, not the functions below.
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]


_hushed = False


def hush() -> None:
    """Say nothing from now on but what went wrong: another process speaks for all."""
    global _hushed
    _hushed = True
    warnings.simplefilter("ignore")


def say(text: str) -> None:
    """One line of what was asked for."""
    _write(_line(text))


def say_lines(text: str) -> None:
    """A text of several lines."""
    _write("".join(map(_line, text.rstrip("\n").split("\n"))))


def show(*parts: "RenderableType", columns: int | None = None) -> None:
    """Tables, as wide as the terminal, or as so many columns; what a cell holds is made by `cell`."""
    from rich.console import Console

    console = Console(emoji=False, width=columns)  # a name may hold :boom:
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    _write(captured.get())


def cell(value: object) -> "Text":
    """A value in a table, in which rich reads no markup."""
    from rich.text import Text

    return Text(on_one_line(str(value)))


def width() -> int:
    """Columns of the terminal."""
    from rich.console import Console

    return Console().width


def has_width() -> bool:
    """Whether lines must fit in so many columns; in a pipe and in a file they may be as long as they are."""
    return "COLUMNS" in os.environ or (sys.stdout is not None and sys.stdout.isatty())


def shows_bold() -> bool:
    """Whether bold is seen where the output goes; in a pipe and in a file it is not."""
    from rich.console import Console

    console = Console()
    return console.is_terminal and not console.is_dumb_terminal


def say_json(name: str, values: Mapping[str, Any], version: int = 1) -> None:
    """What was asked for as JSON, by a schema of docs/reference/cli.md; NaN and infinity are null."""
    # As ASCII: then nothing in it can move a terminal.
    _write(
        json.dumps({"schema": f"ablation-lens.{name}/{version}", **_plain(values)}, indent=1, allow_nan=False) + "\n"
    )


def _plain(value: Any) -> Any:
    """A value of Python's, NumPy's or pandas' as JSON has it."""
    if isinstance(value, Mapping):
        return {as_unicode(str(name)): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str | Path):
        return as_unicode(str(value))
    return None  # pandas' NA and NaT


def announce(text: str) -> None:
    """One line on stderr about what is begun and takes a while; a log or a pipe, at which nobody waits, gets none."""
    if sys.stderr is not None and sys.stderr.isatty() and not _hushed:
        complain(f"{text} …")


def complain(text: str, *, alarming: bool = False) -> None:
    """One line about what went wrong, or should be known, on stderr; red where it is alarming."""
    line = _line(shorten(text, LONGEST))
    if alarming and sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True)
        with console.capture() as captured:
            console.print(Text(line, style="red"), soft_wrap=True, end="")
        line = captured.get()
    with suppress(OSError, AttributeError):  # stderr is full or closed: there is nobody left to tell
        sys.stderr.write(line)
        sys.stderr.flush()


def _line(text: str) -> str:
    return on_one_line(text) + "\n"


def _write(text: str) -> None:
    if sys.stdout is None or _hushed:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(give_up())
    except OSError as error:
        give_up()
        complain(f"error: cannot write to standard output ({error.strerror or error}).", alarming=True)
        sys.exit(2)


def give_up() -> int:
    """Say no more, as whoever reads, such as `head`, has seen enough; returns the exit code of that."""
    # Python writes what is left in the buffer when it ends, and would complain in words of its own.
    with suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD
