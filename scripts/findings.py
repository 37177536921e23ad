"""Do the experiments of docs/findings.md on the zoo again: a page of tables each, and its figures as pictures.

    python scripts/findings.py curves layers       # or all: make findings
    python scripts/findings.py mlp                 # MLP neurons: curves, layers and centers
    python scripts/findings.py --full              # the full grids; hours: or make findings FULL=1

What is measured is kept in build/findings, so that Ctrl-C loses nothing. Needs the `images` extra, and a Chrome or
Chromium for the figures.
"""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import plotly.io
from PIL import Image

import ablation_lens as al
from ablation_lens.experiments.constants import FEWEST
from ablation_lens.report.experiment import EXPERIMENTS, Done, conduct, other_tasks

MODELS = ("tiny-opt", "tiny-mistral", "tiny-roberta", "tiny-vit")
ROOT = Path(__file__).parents[1]
LARGEST = 60_000
"""Bytes of a picture."""


@dataclass(frozen=True)
class Part:
    """One experiment on some models.

    Attributes:
        label: what its files are called.
        experiment: its name.
        shown: the model whose figure is shown.
        models: all that it is done with.
        site: where the neurons are.
        options: what is asked otherwise than by default.
        tokens: how many are judged of a model, where not as by default.
    """

    label: str
    experiment: str
    shown: str
    models: Sequence[str] = MODELS
    site: str = "z"
    options: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)

    def command(self, model: str) -> str:
        """What a reader types."""
        words = ["ablation-lens experiment", self.experiment, model, *(["--site mlp"] if self.site == "mlp" else [])]
        for option, value in self.options.items():
            several = value if isinstance(value, list) else [value]
            name = {"centers": "center", "fractions": "fraction"}.get(option, option)
            words += [f"--{name} {each}" for each in several]
        words += [f"--tokens {self.tokens[model]}"] if model in self.tokens else []
        return " ".join([*words, f"--out runs/{self.label}"])


FEW: Mapping[str, Any] = MappingProxyType(
    {"centers": ["zero", "mean", "median", "peak", "optimal"], "fractions": [0.5], "seeds": 3, "steps": 60}
)
"""Learning constants for thousands of MLP neurons takes long; this says roughly what it gives."""

PAGES: Mapping[str, Sequence[Part]] = MappingProxyType(
    {
        "curves": (Part("curves", "curves", "tiny-opt"),),
        "stability": (Part("stability", "stability", "tiny-opt"),),
        "layers": (Part("layers", "layers", "tiny-opt", tokens={"tiny-opt": 10_000}),),
        "atypical": (Part("atypical", "atypical", "tiny-mistral"),),
        "processing": (Part("processing", "processing", "tiny-opt", ("tiny-opt", "tiny-mistral")),),
        "centers": (Part("centers", "centers", "tiny-opt"),),
        "mlp": (
            Part("mlp-curves", "curves", "tiny-opt", site="mlp"),
            Part("mlp-layers", "layers", "tiny-opt", site="mlp", tokens={"tiny-opt": 10_000}),
            Part("mlp-centers", "centers", "tiny-opt", ("tiny-opt", "tiny-vit"), "mlp", FEW),
        ),
    }
)


def draw(figure: Any, path: Path, *, largest: int = LARGEST, width: int = 960) -> None:
    """A figure as a small PNG, as wide as it says itself, or as `width`."""
    figure.layout.updatemenus = ()  # buttons do nothing in a picture
    height = figure.layout.height or 450
    for scale, colors in ((1.5, 256), (1.25, 128), (1.0, 128), (1.0, 64), (0.8, 64)):
        raw = plotly.io.to_image(figure, "png", width=figure.layout.width or width, height=height, scale=scale)
        small = io.BytesIO()
        image = Image.open(io.BytesIO(raw)).convert("RGB")
        # By coverage and then by means: neither the few pixels of a center nor a faint band may become grey.
        image.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=1).save(small, "png", optimize=True)
        if len(small.getvalue()) <= largest:
            break
    path.write_bytes(small.getvalue())


def pictures(part: Part, done: Mapping[str, Done]) -> dict[str, Any]:
    """The figures of a part, by the names of their files."""
    shown = done[part.shown] if part.shown in done else next(iter(done.values()))
    figures = {f"{part.label}-{name}" if name else part.label: each for name, each in shown.figures.items()}
    found = [each.found for each in done.values()]
    if part.experiment == "curves":
        told = [each for each in found if int(each.neurons["resolved"].sum()) >= FEWEST]
        figures.pop(f"{part.label}-minima", None)
        if told:
            figures[f"{part.label}-minima"] = al.plots.loss_minima(told)
    return figures


def measure(part: Part, model: str, arguments: argparse.Namespace) -> Done:
    """One experiment on one model, or what is there of it already."""
    loaded = al.load_model(model)
    task = al.task_for(loaded)
    sizes = {"tokens": part.tokens[model]} if model in part.tokens and not arguments.full else {}
    if arguments.tokens is not None:
        sizes = {task.unit: arguments.tokens, f"collect_{task.unit}": arguments.tokens}
    return conduct(
        part.experiment,
        loaded,
        task,
        arguments.cache / part.label / model,
        others=other_tasks(part.experiment, task, loaded, None),
        site=part.site,
        options=part.options,
        full=arguments.full,
        **sizes,
    )


def write(page: str, arguments: argparse.Namespace) -> None:
    """A page of tables, and its pictures."""
    lines = [f"# What `python scripts/findings.py {page}` prints", ""]
    lines += [f"Made by `make findings` ({'full' if arguments.full else 'reduced'} grid); told in "
              "[the findings](../findings.md).", ""]  # fmt: skip
    for part in PAGES[page]:
        done = {name: measure(part, name, arguments) for name in part.models if name in arguments.models}
        if not done:
            continue
        lines += [f"## {part.experiment}: {EXPERIMENTS[part.experiment].about} ({part.site})", ""]
        for label, figure in pictures(part, done).items():
            draw(figure, arguments.out / f"{label}.png")
            lines += [f"![{label}]({label}.png)", ""]
        for name, each in done.items():
            sys.stdout.write(f"{each.found!r}\n\n")
            lines += [f"`{part.command(name)}`", "", "```text", *repr(each.found).split("\n"), "```", ""]
    (arguments.out / f"{page}.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Write the pages named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help=f"of {', '.join(PAGES)}; all when left out")
    parser.add_argument("--full", action="store_true", help="the full grids")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=al.zoo.NAMES, help="of the zoo")
    parser.add_argument("--tokens", type=int, help="how many are judged and collected (images likewise)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "findings", help="the folder to write to")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "findings", help="what is measured")
    arguments = parser.parse_args()
    if unknown := set(arguments.pages) - set(PAGES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PAGES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for page in arguments.pages or PAGES:
        write(page, arguments)


if __name__ == "__main__":
    main()
