"""The `ablation-lens` command.

- `app`: the command itself, and what turns an error into one sentence; `options`: what several commands take, and how
  errors name it.
- `models`, `statistics`, `circuits`, `experiments`, `studies`: the commands, by what they are about; `forget`,
  `modularity`, `transfer`: one command each; `demonstration`: what `demo` shows.
- `terminal`: what is printed, and how.
"""

import gc
import signal
import sys
from typing import Any

from ablation_lens.cli.terminal import INTERRUPTED, complain


def main() -> None:
    """Run the command and end with its exit code; after Ctrl-C that is 130, after SIGTERM 143.

    The command's modules are imported here, so that Ctrl-C while they load ends with a sentence, too.
    """
    ended_by = signal.SIGINT

    def terminate(number: int, frame: Any) -> None:
        # Whoever saves what is finished at Ctrl-C saves it now; also where Ctrl-C itself is ignored.
        nonlocal ended_by
        ended_by = signal.SIGTERM
        obey = signal.getsignal(signal.SIGINT)
        (obey if callable(obey) else signal.default_int_handler)(number, frame)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            from ablation_lens.cli.app import run

            code = run()
        finally:
            # All is done or said in a moment, and Python takes a while to end: a traceback now would be about nothing.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # What is alive ends with the process: to look for garbage among the million objects that torch and
            # TransformerLens are made of would take a second more.
            gc.freeze()
    except KeyboardInterrupt:
        complain("interrupted; run the same command again.")
        code = INTERRUPTED
        # Where it passed through exec, as of a dataclass that is made in an import, Python would end by SIGINT all the
        # same: another exec makes it forget that.
        exec("")
    sys.exit(128 + ended_by if code == INTERRUPTED else code)
