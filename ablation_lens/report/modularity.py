"""What `study_modularity` found, as figures, files and the blocks of a page."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ablation_lens import plots
from ablation_lens.experiments.crossing import OTHERS
from ablation_lens.experiments.modularity import AGAINST_EACH_OTHER, Modularity, told_by_task, told_of_concentration
from ablation_lens.files import write_text, writing
from ablation_lens.report.page import Block, Figure, Heading, Notes, Paragraph, Table

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME = "modularity"


def figures(found: Modularity) -> "dict[str, go.Figure]":
    """The figures by what they show; the cross-pruning matrix is the first."""
    one, twin = found.trained, found.twin
    return {
        "": plots.cross_pruning_matrix(one.pruned, twin=None if twin is None else twin.pruned),
        "overlap": plots.overlap_map(one.overlap, twin=None if twin is None else twin.overlap),
        "concentration": plots.concentration_by_layer(
            one.concentration, twin=None if twin is None else twin.concentration
        ),
        "clusters": plots.cluster_map(one.damage, twin=None if twin is None else twin.damage),
    }


def write_modularity(found: Modularity, out: Path) -> dict[str, Path]:
    """The table, the figures and the file that `Modularity.load` reads; returns where they are."""
    from ablation_lens.report.experiment import page_of
    from ablation_lens.study.results import csv_of

    files = {"csv": out / f"{NAME}.csv", "safetensors": out / f"{NAME}.safetensors"}
    with writing(out):
        write_text(files["csv"], csv_of(found.frame, index=False))
        found.save(files["safetensors"])
        for part, figure in figures(found).items():
            files[f"html {part}".strip()] = place = out / (f"{NAME}-{part}.html" if part else f"{NAME}.html")
            write_text(place, page_of(figure))
    return files


def blocks(found: Modularity) -> Iterator[Block]:
    """What a reader sees: the answers, each with its figure beside chance and the untrained model; what it is of."""
    shown = figures(found)
    yield Paragraph(
        f"Does {found.source.name} do {len(found.tasks)} tasks with different neurons ({found.site})? For every task "
        f"neurons are selected by {found.kind} against {found.retained}, and set to {_the(found.value)}."
    )
    yield Table(
        ("task", "model", "pruned", "keeps", "others keep", "gap of random", "overlap above chance", "z in clusters"),
        [(row[0], model, *row[1:]) for model, each in found.models.items() for row in told_by_task(each)],
        numbers=6,
    )
    yield Notes(
        (
            f"Pruned until the task keeps {found.trained.pruned.target:.0%} of its top-1; overlap and z are of the "
            f"{found.fraction:.1%} of the neurons that are most selective.",
            "– : the model does not do the task better than one answer for everything would, so a share of its top-1 "
            "would be a ratio of noise.",
        )
    )
    yield Heading("Cross-pruning")
    for model, each in found.models.items():
        yield Paragraph(" ".join(_named(model, sentence) for sentence in each.pruned.sentences()))
    yield Figure("cross-pruning", shown[""], "What every task keeps without the neurons of each, beside chance.")
    yield Heading("Neurons that tasks share")
    for model, each in found.models.items():
        yield Paragraph(_named(model, each.overlap.told))
    if found.retained == OTHERS:
        yield Paragraph(AGAINST_EACH_OTHER)
    yield Figure("overlap", shown["overlap"], "Which share of their neurons every two tasks have in common.")
    yield Heading("Neurons in clusters")
    for model, each in found.models.items():
        yield Paragraph(_named(model, told_of_concentration(each)))
    yield Figure(
        "concentration", shown["concentration"], "Whether the neurons of a task lie in few clusters, by layer."
    )
    yield Heading("Whole clusters")
    for model, each in found.models.items():
        yield Paragraph(_named(model, each.damage.told))
    yield Figure("clusters", shown["clusters"], "What every task loses without one whole cluster.")
    yield Heading("What it was measured on")
    yield Table(
        ("task", "neurons are chosen on", "judged on"),
        list(zip(found.tasks, found.chosen_on, found.judged_on, strict=True)),
    )
    yield Notes(tuple(_measured(found)))


def _measured(found: Modularity) -> Iterator[str]:
    clustered = "by heads" if found.method == "heads" else f"by {found.method}, {found.size} neurons in each"
    seeds = len(found.trained.pruned.seeds)
    yield f"Clusters {clustered}. Random masks ({seeds}) have as many neurons of every layer as the pruned ones."
    yield "Intervals are 95 %, over documents in pairs; those of several tasks are drawn independently."
    if found.twin is not None:
        yield f"Before training: {found.twin.pruned.source.name}, pruned by as many neurons."


def _named(model: str, sentence: str) -> str:
    return sentence if model == "trained" else f"Before training: {sentence}"


def _the(center: str) -> str:
    return center if center == "zero" else f"the {center}"
