"""The commands about what neurons are set to: `collect` and `learn` make files, `merge`, `neurons`, … use them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.models import planned, task_as_typed
from ablation_lens.cli.terminal import INTERRUPTED, announce, cell, complain, has_width, say, say_json, show, width
from ablation_lens.errors import AblationLensError
from ablation_lens.names import choose


def collect(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Where the statistics go, such as stats.safetensors.")],
    corpus: options.Corpus = None,
    tokens: options.Tokens = None,
    images: options.Images = None,
    split: Annotated[str, typer.Option(help="Which split of the corpus.")] = "collect",
    site: options.Site = "z",
    bins: Annotated[int, typer.Option(help="Most bins per neuron.")] = 256,
    passes: Annotated[int, typer.Option(help="2 adds a histogram without the outermost 0.1 % at either end.")] = 1,
    include_bos: Annotated[
        bool, typer.Option("--bos/--no-bos", help="Whether BOS, CLS and EOS positions count.")
    ] = True,
    column: options.Column = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    only: options.Only = None,
    except_: options.Except = None,
    context: options.Context = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    random_init: options.RandomInit = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure how every neuron of a model is distributed, and save it.

    Ctrl-C saves what was collected so far beside --out, to be merged later. Under torchrun, several processes share the
    batches (docs/guide/scale.md).
    """
    announce(f"loading {model}")
    from ablation_lens.files import require_target, write_result
    from ablation_lens.measure import collection
    from ablation_lens.models.load import load_model
    from ablation_lens.ranks import RankError, RankLost, Ranks
    from ablation_lens.sites import Site

    # Wrong names and paths are refused before the model is loaded, which takes long.
    where = Site.of(site)
    # A hub id is not a path here, so it is passed over.
    require_target(out, *(Path(given).expanduser() for given in (model, corpus, labels) if given is not None))
    ranks = Ranks.join(gpus=n_devices)
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices, random_init=random_init)
    task = task_as_typed(
        loaded,
        corpus,
        context=context,
        column=column,
        labels=labels,
        label_column=label_column,
        only=only,
        except_=except_,
    )
    announce(f"reading {task.corpus.full_name}")
    plan = task.batches(split=split, tokens=tokens, images=images, batch_size=batch_size, model=loaded)
    if batch_size == "auto":  # all ranks need one plan: the first one's memory decides
        plan = plan.cut(int(ranks.first_text(str(max(map(len, plan.batches))))))
    try:
        statistics = collection.collect(
            loaded,
            plan,
            site=where,
            bins=bins,
            passes=passes,
            include_bos=include_bos,
            progress=ranks.is_first,
            ranks=ranks,
        )
    except collection.CollectionInterrupted as interruption:
        if interruption.statistics is None:
            complain("interrupted within a batch; nothing is saved.")
        elif place := _saved_beside(out, interruption.statistics, ranks):
            complain(f"interrupted; {interruption.statistics!r} is in {place}")
        raise typer.Exit(INTERRUPTED) from None
    except RankError as error:
        lost = isinstance(error, RankLost)
        place = None if error.statistics is None else _saved_beside(out, error.statistics, ranks, lost)
        kept = "" if place is None else f" What rank {ranks.rank} had collected by then is in {place}."
        raise RankError(f"{error}{kept}") from error
    if ranks.is_first:
        write_result(out, statistics.save)
        _tell_of(statistics, out, as_json)


def _saved_beside(out: Path, statistics: Any, ranks: Any, lost: bool = False) -> Path | None:
    """Where a part is kept; not `out` itself, as an earlier run may have saved a whole file there."""
    from ablation_lens.files import write_beside

    # Of all ranks together the first one's is enough; the second's is for where the first one is lost.
    if statistics.provenance.ranks and ranks.rank > (1 if lost else 0):
        return None
    return write_beside(out, "partial", statistics.save)


def learn(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Where the values go, such as optimal.safetensors.")],
    method: Annotated[
        str,
        typer.Option(
            help="Such as optimal or 'optimal rate=0.05'; `ablation-lens centers` lists them.",
            autocompletion=options.completing(options.LEARNED),
        ),
    ] = "optimal",
    share: Annotated[
        float | None, typer.Option(help="The share of the neurons that is ablated while learning; 0.5 when left out.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How long. Left out: as long as is usual.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws documents and masks.")] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="A statistics file or run folder to begin from. Left out: collected now."),
    ] = None,
    corpus: options.Corpus = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many tokens to learn from. Left out: 100,000, or all there is.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Likewise, for an image model. Left out: 1,000, or all there is.")
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Which neurons: z (attention), mlp, … (docs/guide/sites.md). Left out: those of --statistics, or z.",
            autocompletion=options.completing(options.SITES),
        ),
    ] = None,
    column: options.Column = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    only: options.Only = None,
    except_: options.Except = None,
    context: options.Context = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    as_json: options.AsJson = False,
) -> None:
    """Learn what to set ablated neurons to, from the collect split, and save it for --values.

    Ctrl-C keeps the state beside --out; the same command goes on from there.
    """
    announce(f"loading {model}")
    from ablation_lens.files import require_target, write_result
    from ablation_lens.measure import learners
    from ablation_lens.models.load import load_model
    from ablation_lens.neurons.statistics import ActivationStatistics
    from ablation_lens.runs.folder import key_of
    from ablation_lens.sites import Site
    from ablation_lens.study.methods import split_label

    name, parameters = split_label(method)
    typed = {"share": share, "steps": steps, "seed": seed}
    given: dict[str, Any] = {option: value for option, value in typed.items() if value is not None}
    if twice := set(parameters) & set(given):
        raise AblationLensError(f"--method and --{min(twice)} both say {min(twice)}; give it once.")
    parameters |= given
    learner = learners.require_parameters(name, parameters)
    learner.check(**parameters)
    where = None if site is None else Site.of(site)
    read = (model, corpus, labels, statistics)
    require_target(out, *(Path(each).expanduser() for each in read if each is not None))
    known = None
    if statistics is not None:
        known = ActivationStatistics.load(options.statistics_file(statistics, model if statistics.is_dir() else None))
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices)
    task = task_as_typed(
        loaded,
        corpus,
        context=context,
        column=column,
        labels=labels,
        label_column=label_column,
        only=only,
        except_=except_,
    )
    plan = planned(task, "collect", tokens, images, batch_size, loaded)
    facts = {
        "model": loaded.record.identity,
        "method": name,
        "parameters": parameters,
        "plan": plan.digest,
        "site": None if where is None else where.value,
        "statistics": None if known is None else known.provenance.to_dict(),
    }
    # Of its settings: with others, the same --out begins anew, and what was learned before is not replaced.
    unfinished = out.with_name(f"{out.name}.{key_of(facts)[:8]}.unfinished")
    parameters |= {"keep": unfinished} if learner.keeps else {}
    try:
        learned = learners.learn(loaded, plan, name, known, site=where, **parameters)
    except KeyboardInterrupt as interruption:
        kept = f"What is kept is in {unfinished}." if unfinished.exists() else "Nothing is kept."
        complain(f"{(str(interruption) or 'interrupted').removesuffix('.')}. {kept}")
        raise typer.Exit(INTERRUPTED) from None
    write_result(out, learned.save)
    unfinished.unlink(missing_ok=True)
    if as_json:
        layers, heads, dims = learned.values.shape
        say_json(
            "learned",
            {
                "file": out,
                "model": loaded.record.name,
                "method": learned.method,
                "site": learned.site.value,
                "shape": {"layers": layers, "heads": heads, "dims": dims},
                "settings": learned.settings,
                "corpus": plan.corpus.to_dict(),
                "passes": learned.cost.passes,
                "told": learned.told,
            },
        )
    else:
        say(f"{learned!r} → {out}")


def merge(
    statistics: Annotated[list[Path], typer.Argument(help="Files that `ablation-lens collect` wrote.")],
    out: Annotated[Path, typer.Option(help="Where the merged statistics go.")],
    as_json: options.AsJson = False,
) -> None:
    """Merge statistics of one model over several corpora, or several parts of one, into a file as of one pass.

    Run folders need no merging: copy one into the other (`cp -r one/. other`).
    """
    announce(f"reading {len(statistics)} files")
    from ablation_lens.files import require_target, write_result
    from ablation_lens.neurons.statistics import ActivationStatistics

    for place in statistics:
        if place.is_dir():
            raise AblationLensError(
                f"{place} is a folder; give statistics files. Run folders are merged by copying one into the other "
                f"(cp -r one/. other)."
            )
    if len(statistics) < 2:
        raise AblationLensError(f"{statistics[0]} is one file; give two or more to merge.")
    twice = next((place for number, place in enumerate(statistics) if _is_among(place, statistics[:number])), None)
    if twice is not None:
        raise AblationLensError(f"{twice} is given twice, and all in it would count twice; give every file once.")
    require_target(out, *statistics)
    whole = ActivationStatistics.load(statistics[0])
    for place in statistics[1:]:
        whole = whole.merge(ActivationStatistics.load(place))
    write_result(out, whole.save)
    _tell_of(whole, out, as_json)


def _is_among(place: Path, others: list[Path]) -> bool:
    return place.exists() and any(other.exists() and other.samefile(place) for other in others)


def _tell_of(statistics: Any, place: Path, as_json: bool) -> None:
    """Say which statistics were written, and where."""
    if not as_json:
        say(f"{statistics!r} → {place}")
        return
    source = statistics.provenance
    say_json(
        "statistics",
        {
            "file": place,
            "model": source.model.name,
            "site": source.site,
            "shape": dict(zip(("layers", "heads", "dims"), statistics.shape, strict=True)),
            "positions": source.tokens,
            "bins": statistics.histogram.bins,
            "passes": 1 if statistics.trimmed is None else 2,
            "corpora": [corpus.to_dict() for corpus in source.corpora],
        },
    )


HEADINGS = {
    "mean": "mean μ",
    "std": "σ",
    "peak": "peak",
    "peak_over_sigma": "|peak|/σ",
    "mean_to_peak_over_sigma": "|μ−peak|/σ",
}
"""Columns that are always shown, and what stands above them."""

_NEURON = ["layer", "head", "dim"]
_SORTABLE = {
    **{heading: column for column, heading in HEADINGS.items()},
    "neuron": "neuron",
    "peak/σ": "peak_over_sigma",
    "mean-peak/σ": "mean_to_peak_over_sigma",
    "|mean-peak|/σ": "mean_to_peak_over_sigma",
    "|mean−peak|/σ": "mean_to_peak_over_sigma",
    "|μ-peak|/σ": "mean_to_peak_over_sigma",
    "μ": "mean",
    "ε/σ": "epsilon_over_sigma",
    "kurtosis": "excess_kurtosis",
}
"""Ways of writing a column, beside its own name: headings, those of figures, and what is easy to type."""


def neurons(
    statistics: options.StatisticsOrRun,
    sort: Annotated[
        str,
        typer.Option(
            help="A column by its heading or name, such as σ, peak/σ or skew.",
            autocompletion=options.completing((*HEADINGS.values(), "skew", "shape", "neuron")),
        ),
    ] = "peak/σ",
    top: Annotated[int, typer.Option(help="How many rows.", min=1)] = 20,
    shape: Annotated[str | None, typer.Option(help="Only neurons of this shape, such as off-zero.")] = None,
    ascending: Annotated[
        bool | None,
        typer.Option(
            "--ascending/--descending",
            help="Which end comes first. Left out: the largest number, or A.",
            show_default=False,
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every column of all chosen neurons to this file.")] = None,
    model: options.RunModel = None,
    as_json: options.AsJson = False,
) -> None:
    """List neurons: mean, σ, peak and shape, sorted by any column."""
    announce(f"reading {statistics}")
    from ablation_lens.files import require_target, write_atomically, writing
    from ablation_lens.neurons.shapes import SHAPE_WORDS
    from ablation_lens.neurons.statistics import ActivationStatistics

    place = options.statistics_file(statistics, model)
    if csv is not None:
        require_target(csv, statistics)
    loaded = ActivationStatistics.load(place)
    frame = loaded.table()
    column = choose(sort, {name: name for name in frame.columns} | _SORTABLE, "column")
    if shape is not None:
        frame = frame[frame["shape"] == choose(shape, {word: word for word in SHAPE_WORDS}, "shape")]
    of_words = column in ("neuron", "shape")
    frame = frame.sort_values(
        _NEURON if column == "neuron" else column,
        ascending=of_words if ascending is None else ascending,
        kind="stable",
    )
    if csv is not None:
        with writing(csv.parent):
            write_atomically(csv, frame.to_csv)
    if as_json:
        rows = [] if csv is not None else frame.head(top).reset_index().to_dict("records")
        say_json(
            "neurons",
            {
                "file": place,
                "model": loaded.provenance.model.name,
                "site": loaded.provenance.site,
                "sort": column,
                "found": len(frame),
                "csv": csv,
                "neurons": rows,
            },
        )
    elif csv is not None:
        say(f"{len(frame)} neurons → {csv}")
    else:
        _show_neurons(frame, top, sort, column)


_DISPENSABLE = ("mean_to_peak_over_sigma", "mean", "std", "peak_over_sigma", "peak")
"""Columns that are left out where a terminal is too narrow for all, in this order."""


def _show_neurons(frame: Any, top: int, sort: str, column: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    extra = {} if column in (*HEADINGS, "neuron", "shape") else {column: column}
    numbers = HEADINGS | extra
    texts = {key: [heading, *(f"{row:.4g}" for row in frame[key].head(top))] for key, heading in numbers.items()}
    names = ["neuron", *map(str, frame.index[:top])]
    words = ["shape", *frame["shape"].head(top)]

    def needed() -> int:
        return sum(max(map(len, column_of)) + 3 for column_of in (names, *texts.values(), words))

    # A name or number that is cut is another one, so it is a column that goes.
    for spare in (key for key in _DISPENSABLE if key != column):
        if has_width() and needed() - 1 > width():
            del texts[spare]
    table = Table(
        title=cell(f"{min(top, len(frame))} of {len(frame)} neurons by {sort}"), box=SIMPLE_HEAD, pad_edge=False
    )
    for column_of in (names, *texts.values(), words):
        table.add_column(cell(column_of[0]), justify="left" if column_of in (names, words) else "right", no_wrap=True)
    for row in list(zip(names, *texts.values(), words, strict=True))[1:]:
        table.add_row(*map(cell, row))
    show(table, columns=None if has_width() else needed())


def explore(
    statistics: options.StatisticsOrRun,
    html: Annotated[Path, typer.Option(help="The page to write, such as page.html.")],
    compare: Annotated[Path | None, typer.Option(help="Statistics of the same neurons, drawn over the first.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="A run folder: what each method costs this model. Left out: that of the statistics."),
    ] = None,
    effects: Annotated[
        Path | None,
        typer.Option(help="A file that `Effects.save` or `ablation-lens circuit` wrote: what neurons are worth."),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(help="A file that `LossCurves.save` wrote: loss against the constant, under the histograms."),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            help="Load the model and gather contexts for so many of the most striking neurons. Left out: 20, where "
            "the model and the documents are at hand.",
            min=0,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Whose statistics of a run folder; and the model that --examples runs. Left out: the one of the zoo "
            "that the file names.",
            autocompletion=options.models,
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="The documents of --examples. Left out: stdlib or digits, as the file says.")
    ] = None,
    labels: options.Labels = None,
    device: Annotated[str | None, typer.Option(help="Where the model for --examples runs, such as cuda.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write one self-contained HTML page to look through all neurons in a browser."""
    announce(f"reading {statistics}")
    from ablation_lens.explorer.files import explore_files

    made = explore_files(
        statistics,
        html,
        compare=compare,
        results=results,
        effects=effects,
        curves=curves,
        examples=examples,
        model=model,
        corpus=corpus,
        labels=labels,
        device=device,
    )
    size = html.stat().st_size
    if as_json:
        say_json("page", {"file": html, "bytes": size, "neurons": made})
    else:
        say(f"{made} neurons → {html} ({size / 1e6:.1f} MB)")


def centers(as_json: options.AsJson = False) -> None:
    """List what neurons can be set to: what each center estimates, how finely, and what it takes to get it."""
    announce("loading the centers")
    from rich.table import Table

    from ablation_lens.measure import learners
    from ablation_lens.neurons import centers as registry

    known = [registry.about(name) for name in registry.names()]
    learned = [learners.about(name) for name in learners.names()]
    if as_json:
        told = ("name", "estimates", "cost", "by_share", "parameters", "version")
        values = [{name: getattr(about, name) for name in told} for about in learned]
        say_json("centers", {"centers": [vars(about) for about in known], "learned": values})
        return
    table = Table(box=None, pad_edge=False)
    for title in ("center", "what it estimates", "resolution", "passes"):
        table.add_column(title, overflow="fold", justify="right" if title == "passes" else "left")
    for about in known:
        table.add_row(*map(cell, (about.name, about.estimates, about.resolution, about.passes)))
    further = Table(box=None, pad_edge=False)
    for title in ("learned", "what it is", "cost"):
        further.add_column(title, overflow="fold")
    for each in learned:
        further.add_row(*map(cell, (each.name, each.estimates, each.cost)))
    show(
        table,
        cell(""),
        cell("ε: the width of a neuron's bins; half of the bins (256 at most), or more, cover its range."),
        cell(""),
        further,
        cell(""),
        cell("Learned ones are methods of studies, and `ablation-lens learn` writes files of them."),
    )
