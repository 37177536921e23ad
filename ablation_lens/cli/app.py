"""The `ablation-lens` command. Heavy imports happen inside the commands, so that `--help` answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main

from ablation_lens.cli import studies
from ablation_lens.cli.terminal import INTERRUPTED, cell, complain, give_up, prepare, say, show
from ablation_lens.errors import AblationLensError
from ablation_lens.names import choose

app = typer.Typer(
    help="Ablate attention neurons in TransformerLens models and measure what the model loses.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from ablation_lens import __version__

        say(f"ablation-lens {__version__}")
        raise typer.Exit


@app.command()
def demo(out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo")) -> None:
    """Ablate the four models of the zoo by every method of the paper; a few minutes on two cores."""
    from ablation_lens.cli.demonstration import run_demo
    from ablation_lens.study.run import StudyInterrupted

    try:
        results = run_demo(out)
    except StudyInterrupted as interruption:
        complain(str(interruption))
        raise typer.Exit(INTERRUPTED) from None
    if results.failed:
        raise typer.Exit(1)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A hub id or a folder with config.json and model.safetensors.")],
    dtype: Annotated[str | None, typer.Option(help="Such as float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda.")] = None,
) -> None:
    """Load a model and print its record: architecture, shape, dtype, processing."""
    from rich.table import Table

    from ablation_lens.models.load import load_model

    record = load_model(model, dtype=dtype, device=device).record
    table = Table(show_header=False, box=None)
    for field, value in record.to_dict().items():
        table.add_row(field, cell(value))
    show(table)


@app.command()
def collect(
    model: Annotated[str, typer.Argument(help="A zoo name, a hub id, or a model folder.")],
    out: Annotated[Path, typer.Option(help="Where the statistics go, such as stats.safetensors.")],
    corpus: Annotated[str | None, typer.Option(help="A named corpus, a path, or a hub data set.")] = None,
    tokens: Annotated[int | None, typer.Option(help="How many tokens; all of the split when left out.")] = None,
    images: Annotated[int | None, typer.Option(help="How many images, for an image model.")] = None,
    split: Annotated[str, typer.Option(help="Which split of the corpus.")] = "collect",
    site: Annotated[str, typer.Option(help="z (attention) or mlp.")] = "z",
    bins: Annotated[int, typer.Option(help="Most bins per neuron.")] = 256,
    passes: Annotated[int, typer.Option(help="2 adds a histogram without the outermost 0.1 % at either end.")] = 1,
    bos: Annotated[bool, typer.Option(help="Whether BOS, CLS and EOS positions count.")] = True,
    labels: Annotated[str | None, typer.Option(help="A CSV file,label for a folder of images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Documents per batch.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda.")] = None,
) -> None:
    """Measure how every neuron of a model is distributed, and save it.

    Ctrl-C saves what was collected so far beside --out, to be merged later.
    """
    from ablation_lens.files import require_target, write_beside, write_result
    from ablation_lens.measure import collection
    from ablation_lens.models.load import load_model
    from ablation_lens.sites import Site
    from ablation_lens.tasks.tasks import task_for

    # Wrong names and paths are refused before the model is loaded, which takes long.
    where = choose(site, {member.value: member for member in Site}, "site")
    # A hub id is not a path here, so it is passed over.
    require_target(out, *(Path(given).expanduser() for given in (model, corpus, labels) if given is not None))
    loaded = load_model(model, dtype=dtype, device=device)
    options: dict[str, Any] = {} if labels is None else {"labels": labels}
    task = task_for(loaded, corpus, **options)
    plan = task.batches(split=split, tokens=tokens, images=images, batch_size=batch_size)
    try:
        statistics = collection.collect(loaded, plan, site=where, bins=bins, passes=passes, include_bos=bos)
    except collection.CollectionInterrupted as interruption:
        if interruption.statistics is None:
            complain("interrupted within a batch; nothing is saved.")
        else:
            # Not `out` itself: an earlier run may have saved a whole file there.
            place = write_beside(out, "partial", interruption.statistics.save)
            complain(f"interrupted; {interruption.statistics!r} is in {place}")
        raise typer.Exit(INTERRUPTED) from None
    write_result(out, statistics.save)
    say(f"{statistics!r} → {out}")


@app.command()
def neurons(
    statistics: Annotated[Path, typer.Argument(help="A file that `ablation-lens collect` wrote.")],
    sort: Annotated[str, typer.Option(help="A column, such as peak/σ, mean-peak/σ, skew, std.")] = "peak/σ",
    top: Annotated[int, typer.Option(help="How many rows.", min=1)] = 20,
    shape: Annotated[str | None, typer.Option(help="Only neurons of this shape, such as off-zero.")] = None,
    ascending: Annotated[bool, typer.Option(help="Smallest first.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write every column of all chosen neurons to this file.")] = None,
) -> None:
    """List neurons: mean, σ, peak and shape, sorted by any column."""
    from rich.table import Table

    from ablation_lens.files import require_target, write_atomically, writing
    from ablation_lens.neurons.statistics import ActivationStatistics

    if csv is not None:
        require_target(csv, statistics)
    frame = ActivationStatistics.load(statistics).table()
    aliases = {
        "peak/σ": "peak_over_sigma",
        "mean-peak/σ": "mean_to_peak_over_sigma",
        "σ": "std",
        "ε/σ": "epsilon_over_sigma",
    }
    column = choose(sort, {name: name for name in frame.columns} | aliases, "column")
    if shape is not None:
        from ablation_lens.neurons.shapes import SHAPE_WORDS

        frame = frame[frame["shape"] == choose(shape, {word: word for word in SHAPE_WORDS}, "shape")]
    frame = frame.sort_values(column, ascending=ascending, kind="stable")
    if csv is not None:
        with writing(csv.parent):
            write_atomically(csv, frame.to_csv)
        say(f"{len(frame)} neurons → {csv}")
        return
    table = Table(title=cell(f"{min(top, len(frame))} of {len(frame)} neurons by {sort}"))
    table.add_column("neuron")
    shown = {
        "mean": "mean μ",
        "std": "σ",
        "peak": "peak",
        "peak_over_sigma": "|peak|/σ",
        "mean_to_peak_over_sigma": "|μ−peak|/σ",
    }
    extra = {} if column in (*shown, "shape") else {column: column}
    for title in (shown | extra).values():
        table.add_column(title, justify="right")
    table.add_column("shape")
    for name, row in frame.head(top).iterrows():
        numbers = [f"{row[key]:.4g}" for key in shown | extra]
        table.add_row(*map(cell, (name, *numbers, row["shape"])))
    show(table)


@app.command()
def explore(
    statistics: Annotated[Path, typer.Argument(help="A file that `ablation-lens collect` wrote.")],
    html: Annotated[Path, typer.Option(help="The page to write, such as page.html.")],
    compare: Annotated[Path | None, typer.Option(help="Statistics of the same neurons, drawn over the first.")] = None,
    results: Annotated[Path | None, typer.Option(help="A run folder: what each method costs this model.")] = None,
    examples: Annotated[
        int, typer.Option(help="Load the model and gather contexts for so many of the most striking neurons.", min=0)
    ] = 0,
    model: Annotated[
        str | None,
        typer.Option(help="The model that --examples runs. Left out: the one of the zoo that the file names."),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="The documents of --examples. Left out: stdlib or digits, as the file says.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="A CSV file,label for a folder of images.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the model for --examples runs, such as cuda.")] = None,
) -> None:
    """Write one self-contained HTML page to look through all neurons in a browser."""
    from ablation_lens.explorer.files import explore_files

    neurons = explore_files(
        statistics,
        html,
        compare=compare,
        results=results,
        examples=examples,
        model=model,
        corpus=corpus,
        labels=labels,
        device=device,
    )
    say(f"{neurons} neurons → {html} ({html.stat().st_size / 1e6:.1f} MB)")


for command in (studies.study, studies.table, studies.export, studies.report):
    app.command()(command)


def run() -> int:
    """Run the command; an error of ours, of the disk or in what was typed is one line on stderr and exit code 2."""
    prepare()
    command = typer.main.get_command(app)
    try:
        # Not `app()`, which says errors in a box of several lines, and nothing at all at Ctrl-C.
        with command.make_context("ablation-lens", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:  # in printing help, which typer does
        return give_up()
    except OSError as error:
        named = "" if error.filename is None else f"{error.filename} cannot be used: "
        return _refuse(f"{named}{error.strerror or error}.")
    except AblationLensError as error:
        return _refuse(str(error))
    except Exception as error:
        # What was typed is wrong. By its methods, as the class is click's, or that of the copy that typer brings along.
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        message = " ".join(error.format_message().split()).rstrip(".")
        # Nothing was typed: the help has been printed already, and there is no message.
        if message:
            asked = getattr(error, "ctx", None)
            _refuse(f"{message}." if asked is None else f"{message}. See {asked.command_path} --help.")
        return int(error.exit_code)
    return 0


def _refuse(message: str) -> int:
    complain(f"error: {message}", alarming=True)
    return 2
