"""The command about unlearning: `forget`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.models import task_as_typed
from ablation_lens.cli.terminal import INTERRUPTED, announce, complain, say, say_json, say_lines
from ablation_lens.errors import AblationLensError

KINDS = ("abs", "sqrt", "freq", "std", "rms", "mean", "histogram-distance")


def forget(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="The folder; an unfinished one is gone on with.")],
    forget: Annotated[
        str | None,
        typer.Option(
            "--forget",
            help="The corpus to forget.",
            autocompletion=options.completing(("stdlib", "stdlib-code", "digits")),
        ),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            "--retain",
            help="The corpus to retain. Left out, with --label: the other labels of that to forget.",
            autocompletion=options.completing(("stdlib", "stdlib-code", "digits")),
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Forget the documents of this label (a class by name or id) alone; repeat."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Where neurons are pruned: z (left out), mlp, …; repeat to prune side by side.",
            autocompletion=options.completing(options.SITES),
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(help="The share of neurons that a step adds. Left out: 0.02 of mlp, 0.005 of others."),
    ] = None,
    steps: Annotated[int, typer.Option(help="How many steps.", min=1)] = 25,
    value: Annotated[
        list[str] | None,
        typer.Option(
            help="What neurons are set to: zero (left out), or a center of the corpus to retain; repeat.",
            autocompletion=options.completing(options.CENTERS),
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(help=f"By what neurons are chosen: {', '.join(KINDS)}.", autocompletion=options.completing(KINDS)),
    ] = "abs",
    epsilon: Annotated[
        float | None,
        typer.Option(help="What is added to importance on the corpus to retain. Left out: 0.001 of mlp, else 0.0001."),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="Prune whole heads, by the mean or the median of their neurons' scores.",
            autocompletion=options.completing(("mean", "median")),
        ),
    ] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Prune the same share of every layer.")] = False,
    recollect: Annotated[
        bool, typer.Option("--recollect/--no-recollect", help="Whether statistics are collected anew after every step.")
    ] = True,
    seeds: Annotated[int, typer.Option(help="How many random baselines.", min=0)] = 10,
    tokens: Annotated[int | None, typer.Option(help="Of each corpus that are judged. Left out: 10,000.")] = None,
    images: Annotated[int | None, typer.Option(help="Likewise, for an image model. Left out: 1,000.")] = None,
    collect_tokens: Annotated[
        int | None, typer.Option(help="Of each corpus that neurons are chosen on. Left out: 20,000.")
    ] = None,
    collect_images: Annotated[int | None, typer.Option(help="Likewise, for an image model. Left out: 1,000.")] = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    context: options.Context = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    as_json: options.AsJson = False,
) -> None:
    """Prune the neurons that one corpus needs and another does not, and measure what is forgotten and what is lost.

    Run the same command again to go on after Ctrl-C; with more steps, values or seeds, what is there is kept.
    """
    announce(f"loading {model}")
    if not label and (forget is None or retain is None):
        raise AblationLensError("name what to forget and what to retain: --forget and --retain, or --label within one.")
    from ablation_lens.experiments.pruning import unlearn
    from ablation_lens.experiments.scores import ExperimentFolder
    from ablation_lens.files import require_target_folder
    from ablation_lens.models.load import load_model
    from ablation_lens.report.forget import write_unlearning

    require_target_folder(out)
    ExperimentFolder.create(out)
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices)
    typed: dict[str, Any] = {"context": context, "labels": labels, "label_column": label_column}
    one = task_as_typed(loaded, forget, only=label, **typed)
    # Of another corpus all is retained: a label says what to forget.
    within = retain is None or _is_same(retain, forget or one.corpus.name)
    if not within and one.unit == "tokens" and label:
        # The column is of the corpus whose label was named; texts that are all read need none.
        typed["label_column"] = None
    other = task_as_typed(loaded, forget if within else retain, except_=label if within else None, **typed)
    announce(f"forgetting {one.corpus.full_name}, retaining {other.corpus.full_name}")
    try:
        found = unlearn(
            loaded,
            one,
            other,
            site=site or "z",
            step=step,
            steps=steps,
            kind=kind,
            epsilon=epsilon,
            heads=heads,
            per_layer=per_layer,
            recollect=recollect,
            value=value or "zero",
            seeds=seeds,
            tokens=tokens,
            images=images,
            collect_tokens=collect_tokens,
            collect_images=collect_images,
            folder=out,
        )
    except KeyboardInterrupt:
        complain(f"interrupted: what is finished is in {out}. Run the same again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    files = write_unlearning(found, out)
    if as_json:
        about = found.about
        values: dict[str, Any] = {"folder": out, "model": about.source.name, "sites": about.sites}
        values |= {"forget": about.forget, "retain": about.retain, "files": files, "text": repr(found)}
        summary = found.summary().reset_index().to_dict("records")
        say_json("unlearning", values | {"summary": summary, "rows": found.frame.to_dict("records")})
    else:
        say_lines(repr(found))
        say(f"{', '.join(path.name for path in files.values())} → {out}")


def _is_same(one: str, other: str) -> bool:
    """Whether two corpora as typed are one: by name, or files by where they are."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
