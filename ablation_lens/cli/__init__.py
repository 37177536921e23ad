"""The `ablation-lens` command.

- `app`: the commands about models and neurons, and what turns an error into one sentence.
- `studies`: the commands about run folders; `demonstration`: what `ablation-lens demo` shows.
- `terminal`: what is printed, and how.
"""

import sys

from ablation_lens.cli.terminal import INTERRUPTED, complain


def main() -> None:
    """Run the command. Its modules are imported here, so that Ctrl-C while they load ends with a sentence, too."""
    try:
        from ablation_lens.cli.app import run

        sys.exit(run())
    except KeyboardInterrupt:
        complain("interrupted; run the same command again.")
        sys.exit(INTERRUPTED)
