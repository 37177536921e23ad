"""The `ablation-lens` command. Heavy imports happen inside the commands, so that `--help` answers at once."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main

from ablation_lens.cli import circuits, experiments, forget, models, modularity, statistics, studies, transfer
from ablation_lens.cli.options import name_options
from ablation_lens.cli.terminal import INTERRUPTED, announce, complain, give_up, hush, prepare, say
from ablation_lens.errors import AblationLensError
from ablation_lens.ranks import Ranks

NAME = "ablation-lens"
COMPLETING = "_ABLATION_LENS_COMPLETE"
"""Set by the scripts that `--install-completion` gives to a shell."""

SHARED = ("collect", "study", "circuit", "recommend")
"""What several processes do together under torchrun."""

app = typer.Typer(
    help="Ablate attention neurons in TransformerLens models and measure what the model loses.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from ablation_lens import __version__

        say(f"ablation-lens {__version__}")
        raise typer.Exit
    ranks, asked = Ranks.told(), context.invoked_subcommand
    if ranks.size > 1 and asked is not None and asked not in SHARED:
        raise AblationLensError(
            f"{asked} is done by one process, and torchrun started {ranks.size}; start it without torchrun, or one of "
            f"{', '.join(SHARED)} with it."
        )
    if not ranks.is_first:
        hush()


@app.command()
def demo(out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo")) -> None:
    """Ablate four models of the zoo by every method of the paper; a few minutes on two cores."""
    announce("loading the zoo")
    from ablation_lens.cli.demonstration import run_demo
    from ablation_lens.study.run import StudyInterrupted

    try:
        results = run_demo(out)
    except StudyInterrupted as interruption:
        complain(str(interruption))
        raise typer.Exit(INTERRUPTED) from None
    if results.failed:
        raise typer.Exit(1)


for commands in (
    (models.info, models.evaluate, models.ablate),
    (
        statistics.collect,
        statistics.learn,
        statistics.merge,
        statistics.neurons,
        statistics.explore,
        statistics.centers,
    ),
    (circuits.circuit, experiments.experiment),
    (forget.forget, modularity.modularity, transfer.transfer),
    (studies.recommend, studies.study, studies.status, studies.table, studies.export, studies.report),
):
    for command in commands:
        app.command()(command)


def run() -> int:
    """Run the command; an error of ours, of the disk or in what was typed is one line on stderr and exit code 2."""
    prepare()
    command: Any = typer.main.get_command(app)
    if COMPLETING in os.environ:  # a shell asks what may follow
        command.main(prog_name=NAME)
    try:
        # Not `app()`, which says errors in a box of several lines, and nothing at all at Ctrl-C.
        with command.make_context(NAME, sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:  # in printing help, which typer does
        return give_up()
    except OSError as error:
        named = "" if error.filename is None else f"{error.filename} cannot be used: "
        return _refuse(f"{named}{error.strerror or error}.")
    except AblationLensError as error:
        return _refuse(_with_options(str(error), command))
    except Exception as error:
        # What was typed is wrong. By its methods, as the class is click's, or that of the copy that typer brings along.
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        message = " ".join(error.format_message().split()).rstrip(".")
        # Nothing was typed: the help has been printed already, and there is no message.
        if message:
            asked = getattr(error, "ctx", None)
            message += "" if message.endswith("?") else "."
            if _names_no_command(command):
                message += f" There are {', '.join(command.commands)}."
            _refuse(message if asked is None else f"{message} See {asked.command_path} --help.")
        return int(error.exit_code)
    return 0


def _with_options(message: str, command: Any) -> str:
    """What Python calls an argument, as the option that was typed, or is to be."""
    typed = sys.argv[1:]
    for place, word in enumerate(typed):
        if word in command.commands:
            asked = command.commands[word].make_context(word, typed[place + 1 :], resilient_parsing=True)
            return name_options(message, command.commands, asked)
    return message


def _names_no_command(command: Any) -> bool:
    first = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    return first is not None and first not in command.commands


def _refuse(message: str) -> int:
    complain(f"error: {message}", alarming=True)
    return 2
