"""The `ablation-lens` command.

- `app`: the commands about models and neurons, and what turns an error into one sentence.
- `studies`: the commands about run folders; `demonstration`: what `ablation-lens demo` shows.
"""

import sys


def main() -> None:
    """Run the command. Its modules are imported here, so that Ctrl-C while they load ends with a sentence, too."""
    try:
        from ablation_lens.cli.app import run

        run()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on.", file=sys.stderr)  # noqa: T201
        sys.exit(130)
