"""The `ablation-lens` command. Heavy imports happen inside the commands, so that `--help` answers at once."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from ablation_lens.errors import AblationLensError

app = typer.Typer(
    help="Ablate attention neurons in TransformerLens models and measure what the model loses.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True, highlight=False)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from ablation_lens import __version__

        typer.echo(f"ablation-lens {__version__}")
        raise typer.Exit


@app.command()
def demo() -> None:
    """Load the four model families from random weights, zero all their attention neurons, print what changed."""
    from ablation_lens.demo import run_demo

    run_demo(Console())


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A hub id or a folder with config.json and model.safetensors.")],
    dtype: Annotated[str | None, typer.Option(help="Such as float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda.")] = None,
) -> None:
    """Load a model and print its record: architecture, shape, dtype, processing."""
    from rich.table import Table

    from ablation_lens.models import load_model

    record = load_model(model, dtype=dtype, device=device).record
    table = Table(show_header=False, box=None)
    for field, value in record.to_dict().items():
        table.add_row(field, str(value))
    Console().print(table, markup=False)


def main() -> None:
    """Run the command; an `AblationLensError` becomes one line on stderr and exit code 2."""
    try:
        app()
    except AblationLensError as error:
        _errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
