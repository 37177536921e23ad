"""The command about experiments: `experiment`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.terminal import INTERRUPTED, announce, complain, say, say_json, say_lines
from ablation_lens.errors import AblationLensError
from ablation_lens.names import require_known
from ablation_lens.report.experiment import EXPERIMENTS

if TYPE_CHECKING:
    from ablation_lens.neurons.statistics import ActivationStatistics


def experiment(
    name: Annotated[
        str,
        typer.Argument(
            help="; ".join(f"{name}: {each.about}" for name, each in EXPERIMENTS.items()) + ".",
            autocompletion=options.completing(tuple(EXPERIMENTS)),
        ),
    ],
    model: options.Model,
    out: Annotated[Path, typer.Option(help="The folder; an unfinished one is gone on with.")],
    corpus: options.Corpus = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many are judged. Left out: 2,000 to 5,000, by the experiment.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Likewise, for an image model. Left out: 1,000, or all.")] = None,
    collect_tokens: Annotated[
        int | None, typer.Option(help="Tokens that centers are of. Left out: 10,000 to 100,000, by the experiment.")
    ] = None,
    collect_images: Annotated[int | None, typer.Option(help="Likewise, for an image model.")] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Where centers are from: a statistics file or a run folder. Left out: collected now."),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Which neurons: z (attention), mlp, q, … (docs/guide/sites.md). Default: those of --statistics, or z.",
            autocompletion=options.completing(options.SITES),
        ),
    ] = None,
    centers: Annotated[
        list[str] | None,
        typer.Option(
            "--center",
            help="What neurons are set to; repeat. Left out: the experiment's own choice.",
            autocompletion=options.completing((*options.CENTERS, *options.LEARNED)),
        ),
    ] = None,
    fractions: Annotated[
        list[float] | None,
        typer.Option("--fraction", help="A share of the neurons; repeat for curves and centers.", min=0, max=1),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many masks are drawn.", min=1)] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What is measured, such as cross_entropy or kl.",
            autocompletion=options.completing(options.METRICS),
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of every learning, for centers.", min=1)] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--other",
            help="Another corpus, for stability and centers; repeat. Left out: stdlib-code beside stdlib, "
            "digits-inverted beside digits.",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The full grid, instead of one of minutes.")] = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    as_json: options.AsJson = False,
) -> None:
    """Ask one of the questions that the paper leaves open of a model, and write a table and a figure.

    Run the same command again to go on after Ctrl-C; with more centers, seeds or shares, what is there is kept.
    """
    announce(f"loading {model}")
    require_known(name, tuple(EXPERIMENTS), "experiment")
    asked: dict[str, Any] = {
        "centers": centers or None, "fractions": fractions or None, "seeds": seeds, "metric": metric, "steps": steps,
    }  # fmt: skip
    asked = {option: value for option, value in asked.items() if value is not None}
    from ablation_lens.report import experiment as experiments

    experiments.arguments(name, asked)  # what it does not take is refused before the model is loaded
    from ablation_lens.files import require_target_folder
    from ablation_lens.models.load import load_model
    from ablation_lens.sites import Site
    from ablation_lens.tasks.tasks import task_for

    where, known = Site.of(site or "z"), _read(name, statistics, model)
    if known is not None and site is not None and known.site is not where:
        raise AblationLensError(
            f"{statistics} is of site {known.site.value!r}; leave --site out, or give other statistics."
        )
    require_target_folder(out)
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices)
    task = task_for(loaded, corpus)
    announce(f"reading {task.corpus.name}")
    try:
        done = experiments.conduct(
            name,
            loaded,
            task,
            out,
            others=experiments.other_tasks(name, task, loaded, others or None),
            tokens=tokens,
            images=images,
            collect_tokens=collect_tokens,
            collect_images=collect_images,
            statistics=known,
            site=where,
            options=asked,
            full=full,
        )
    except KeyboardInterrupt:
        complain(f"interrupted: what is finished is in {out}. Run the same again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        values = {"folder": out, "experiment": name, "model": done.model, "site": done.site, "files": done.files}
        say_json("experiment", values | {"text": repr(done.found), "rows": done.found.frame.to_dict("records")})
    else:
        say_lines(repr(done.found))
        say(f"{', '.join(path.name for path in done.files.values())} → {out}")


def _read(name: str, file: Path | None, model: str) -> "ActivationStatistics | None":
    if file is None:
        return None
    if EXPERIMENTS[name].collects:
        raise AblationLensError(f"{name} collects with every model that it makes, so --statistics says nothing.")
    from ablation_lens.neurons.statistics import ActivationStatistics

    return ActivationStatistics.load(options.statistics_file(file, model if file.is_dir() else None))
