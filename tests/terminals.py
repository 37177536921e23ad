"""Names that would change a terminal, what is shown of them, and a terminal to see it in."""

import os
import pty
import signal
import sys
import time

HOSTILE = "\x1b[31mred\x1b]0;title\x07\n\r:boom:[bold]\u202e"
SHOWN = r"\x1b[31mred\x1b]0;title\x07\n\r:boom:[bold]\u202e"


def require_harmless(text, lines):
    """So many lines of printable characters."""
    assert text.endswith("\n")
    found = text[:-1].split("\n")
    assert all(line.isprintable() for line in found), text
    assert len(found) == lines, text


def in_a_terminal(*arguments, cwd, presses=lambda said: 0, **environment):
    """The exit code of a command, and what it said; `presses(said)` is how often Ctrl-C was to be pressed by then."""
    child, screen = pty.fork()
    if child == 0:
        # A shell's background jobs, and all they start, ignore SIGINT unless told otherwise.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(cwd)
        os.environ.update({"COLUMNS": "200", **environment})
        os.execv(sys.executable, [sys.executable, "-m", "ablation_lens", *map(str, arguments)])
    said, pressed, end = b"", 0, time.monotonic() + 300
    while time.monotonic() < end:
        try:
            part = os.read(screen, 65536)
        except OSError:  # as Linux says that nobody writes any more
            break
        said += part
        while pressed < presses(said):
            os.write(screen, b"\x03")
            pressed += 1
    os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode()
