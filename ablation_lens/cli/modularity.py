"""The command about modularity: `modularity`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.models import task_as_typed
from ablation_lens.cli.terminal import INTERRUPTED, announce, complain, say, say_json, say_lines
from ablation_lens.errors import AblationLensError

if TYPE_CHECKING:
    from ablation_lens.tasks.plans import BatchPlan
    from ablation_lens.tasks.tasks import Task

JUDGED, COLLECTED = 10_000, 20_000
"""Tokens of every task where nobody says how many; of images all there are."""

SITES = ("mlp", "z")

MOST_CLASSES = 20
"""An image model of so many classes has each as a task where nobody names tasks."""


def modularity(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="The folder; an unfinished one is gone on with.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "--tasks",
            help="A task: [NAME=]CORPUS, or [NAME=]CORPUS:LABEL for the documents of a label; repeat. Left out: stdlib "
            "and stdlib-code, or every class of an image model.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="A corpus that every task is set against. Left out: the other tasks together."),
    ] = None,
    size: Annotated[int, typer.Option(help="Neurons in a cluster; divides those of an MLP.", min=1)] = 32,
    method: Annotated[
        str | None,
        typer.Option(
            help="How MLP neurons are clustered: weights (left out), or co-activation.",
            autocompletion=options.completing(("weights", "co-activation")),
        ),
    ] = None,
    fraction: Annotated[
        float, typer.Option(help="Of the neurons: selected for overlap and concentration.", min=0, max=1)
    ] = 0.01,
    target: Annotated[
        float, typer.Option(help="The share of its top-1 that a task keeps when it is pruned.", min=0, max=1)
    ] = 0.8,
    site: Annotated[
        str,
        typer.Option(help="Which neurons: mlp, or z (attention).", autocompletion=options.completing(SITES)),
    ] = "mlp",
    kind: Annotated[
        str,
        typer.Option(
            help="By what neurons are selected: abs, sqrt, freq, std, rms, mean or histogram-distance.",
            autocompletion=options.completing(("abs", "sqrt", "freq", "std", "rms", "mean", "histogram-distance")),
        ),
    ] = "abs",
    value: Annotated[
        str,
        typer.Option(
            help="What neurons are set to: zero, or another center.",
            autocompletion=options.completing(options.CENTERS),
        ),
    ] = "zero",
    twin: Annotated[
        bool, typer.Option("--twin/--no-twin", help="Whether the model before training is measured, too.")
    ] = True,
    twin_seed: Annotated[int, typer.Option(help="Which random weights that has.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many random masks stand beside every pruned one.", min=1)] = 5,
    tokens: Annotated[int | None, typer.Option(help="Of every task that are judged. Left out: 10,000.")] = None,
    images: Annotated[int | None, typer.Option(help="Likewise, for an image model. Left out: all there are.")] = None,
    collect_tokens: Annotated[
        int | None, typer.Option(help="Of every task that neurons are chosen on. Left out: 20,000.")
    ] = None,
    collect_images: Annotated[int | None, typer.Option(help="Likewise, for an image model.")] = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    context: options.Context = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    as_json: options.AsJson = False,
) -> None:
    """Ask whether a model does several tasks with different neurons, beside the same model before training.

    Run the same command again to go on after Ctrl-C.
    """
    announce(f"loading {model}")
    from ablation_lens.experiments.clustering import METHODS
    from ablation_lens.experiments.modularity import study_modularity
    from ablation_lens.experiments.scores import ExperimentFolder
    from ablation_lens.experiments.selection import KINDS
    from ablation_lens.files import require_target_folder
    from ablation_lens.models.load import load_model
    from ablation_lens.names import require_known
    from ablation_lens.neurons import centers
    from ablation_lens.report.modularity import write_modularity

    # Wrong names and places are refused before the model is loaded, which takes long.
    for what, asked, known in (
        ("site", site, SITES),
        ("kind of importance", kind, KINDS),
        ("method", method or METHODS[0], METHODS),
        ("center", value, centers.names()),
    ):
        require_known(asked, known, what)
    require_target_folder(out)
    ExperimentFolder.create(out)
    wanted = [named_task(each) for each in tasks or ()]
    if doubled := [name for place, (name, *_) in enumerate(wanted) if name in [each[0] for each in wanted[:place]]]:
        raise AblationLensError(f"two tasks are called {doubled[0]!r}; name them, as --task NAME=CORPUS.")
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices)
    untrained = (
        load_model(model, dtype=dtype, device=device, n_devices=n_devices, random_init=twin_seed) if twin else None
    )

    def made(corpus: str | None, label: str | None) -> "Task":
        only = None if label is None else label.split(",")
        return task_as_typed(loaded, corpus, context=context, labels=labels, label_column=label_column, only=only)

    given = {name: made(corpus, label) for name, corpus, label in wanted or _usual(loaded)}
    plans = {}
    for name, task in given.items():
        announce(f"reading {name}")
        plans[name] = (
            _planned(task, "collect", collect_tokens, collect_images, COLLECTED),
            _planned(task, "evaluate", tokens, images, JUDGED),
        )
    general = None
    if baseline is not None:
        _, corpus, label = named_task(baseline)
        general = _planned(made(corpus, label), "collect", collect_tokens, collect_images, COLLECTED)
    try:
        found = study_modularity(
            loaded,
            plans,
            twin=untrained,
            size=size,
            method=method,
            fraction=fraction,
            target=target,
            site=site,
            kind=kind,
            value=value,
            baseline=general,
            seeds=range(seeds),
            folder=out,
        )
        files = write_modularity(found, out)
    except KeyboardInterrupt:
        complain(f"interrupted: what is finished is in {out}. Run the same again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        values: dict[str, Any] = {"folder": out, "model": found.source.name, "site": found.site, "tasks": found.tasks}
        values |= {"files": files, "text": repr(found), "rows": found.frame.to_dict("records")}
        say_json("modularity", values)
    else:
        say_lines(repr(found))
        say(f"{', '.join(path.name for path in files.values())} → {out}")


def named_task(typed: str) -> tuple[str, str, str | None]:
    """Name, corpus and label of what was typed, `[NAME=]CORPUS[:LABEL]`.

    >>> named_task("stdlib"), named_task("digits:3"), named_task("prose=my/texts.jsonl:plain")
    (('stdlib', 'stdlib', None), ('digits:3', 'digits', '3'), ('prose', 'my/texts.jsonl', 'plain'))
    """
    name, equals, rest = typed.partition("=")
    # A path may hold both signs.
    if not equals or not name or Path(typed).exists() or "/" in name:
        name, rest = typed, typed
    corpus, colon, label = rest.rpartition(":")
    if not colon or not corpus or not label or "/" in label or "\\" in label or Path(rest).exists():
        return name, rest, None
    return name, corpus, label


def _usual(model: Any) -> list[tuple[str, str | None, str | None]]:
    """The tasks of a model where nobody names any."""
    from ablation_lens.tasks.tasks import ImageClassification, task_for

    task = task_for(model)
    if not isinstance(task, ImageClassification):
        return [("stdlib", "stdlib", None), ("stdlib-code", "stdlib-code", None)]
    if task.n_labels > MOST_CLASSES:
        raise AblationLensError(f"this model has {task.n_labels:,} classes; name tasks, as --task CORPUS:LABEL.")
    return [(task.id2label.get(number, str(number)), None, str(number)) for number in range(task.n_labels)]


def _planned(task: "Task", split: str, tokens: int | None, images: int | None, usual: int) -> "BatchPlan":
    from ablation_lens.tasks.tasks import planned

    return planned(task, split, {"tokens": usual}, tokens=tokens, images=images)
