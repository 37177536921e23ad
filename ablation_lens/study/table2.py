"""The paper's Table 2 from a run folder: top-1 and cross-entropy with half, and nine tenths, of the neurons gone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from ablation_lens.escaping import for_latex, for_markdown, for_terminal, on_one_line
from ablation_lens.study.methods import BASELINE
from ablation_lens.study.paper import TABLE_FRACTIONS, published
from ablation_lens.study.results import METRICS, Results, csv_of

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    "top1": "Top-1 accuracy (%)",
    "top10": "Top-10 accuracy (%)",
    "cross_entropy": "Cross-entropy (nats)",
    "kl": "KL divergence (nats)",
    "logit_difference": "Logit difference",
    "probability_difference": "Probability difference",
    "probability": "Probability",
    "rank": "Rank",
}
RESAMPLED = {
    "resample-characters": "RS1",
    "resample-pixels": "RS1",
    "resample-tokens": "RS2",
    "resample-generated": "RS3",
}
_GAP, _EDGES = 3, 2
"""Spaces between columns in a terminal, and at the table's two ends together."""
BASELINES_APART = 0.1
"""Baselines that differ by a larger share were not measured alike, and neither was what is compared to them."""


@dataclass(frozen=True)
class Entry:
    """One figure: mean ± sd over seeds, whether it is as good as the best, and the paper's change beside ours."""

    method: str
    mean: float
    sd: float
    as_best: bool
    change: float
    paper_change: float | None
    comparable: bool

    def text(self, bold: Callable[[str], str], plus_minus: str = "±", digits: int = 2) -> str:
        """For people; `bold` is how the format at hand makes text bold."""
        if math.isnan(self.mean):  # a baseline that failed
            return "–"
        number = f"{self.mean:.{digits}f}" + ("" if math.isnan(self.sd) else f" {plus_minus} {self.sd:.{digits}f}")
        shown = bold(number) if self.as_best else number
        if self.paper_change is None or math.isnan(self.change):
            return shown
        return f"{shown} ({self.change:+.2f}; paper {self.paper_change:+.2f}{'' if self.comparable else '†'})"


@dataclass(frozen=True)
class Table2:
    """The table as data; made by `make_table2`.

    `rows` are (metric, fraction, row name, entry per group); a fraction of 0 is the baseline.
    """

    groups: dict[str, str]
    rows: tuple[tuple[str, float, str, dict[str, Entry]], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """A Markdown table, and its notes."""
        heads = ["", "", *map(for_markdown, self.groups.values())]
        lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * 2 + " ---: |" * len(self.groups)]
        for section, name, texts in self.texts():
            lines.append(f"| {for_markdown(section)} | {for_markdown(name)} | {' | '.join(texts)} |")
        # Two spaces end a line in Markdown; without them the notes become one paragraph.
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)])

    def latex(self) -> str:
        """A LaTeX tabular (booktabs), and its notes as comments."""
        heads = " & ".join(["", "", *map(for_latex, self.groups.values())])
        lines = [r"\begin{tabular}{ll" + "r" * len(self.groups) + "}", r"\toprule", heads + r" \\", r"\midrule"]
        for section, name, texts in self.texts(lambda text: rf"\textbf{{{text}}}", r"$\pm$"):
            # The first section follows the head, which has its own rule: these four lines.
            if section and len(lines) > 4:
                lines.append(r"\midrule")
            # A bare % in "50 % ablated" would make the rest of the line a comment. Figures are LaTeX already.
            cells = [for_latex(section), for_latex(name), *(text.replace("†", r"$^\dagger$") for text in texts)]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        return "\n".join([*lines, *(f"% {note}" for note in self.notes)])

    def csv(self) -> str:
        """A tidy table: a line per model, metric, fraction and method."""
        rows = [
            {"model": self.groups[group], "metric": metric, "fraction": fraction, **vars(entry)}
            for metric, fraction, _, entries in self.rows
            for group, entry in entries.items()
        ]
        return csv_of(pd.DataFrame(rows), index=False)

    def rich(self, width: int = 80, mark: str = "") -> list["Table"]:
        """For a terminal: the four models of the paper, or of the zoo, fit in 80 columns; more go below.

        The best are bold; where that is not seen, `mark` stands after them.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        def aligned(text: str) -> str:
            return text + " " * len(mark) if mark and mark not in text else text

        short = {TITLES["top1"]: "Top-1 (%)", TITLES["cross_entropy"]: "CE (nats)"}
        rows = [
            (for_terminal(short.get(section, section).removesuffix(" ablated")),
             for_terminal(name), [aligned(text.replace(" ± ", "±")) for text in texts])
            for section, name, texts in self.texts(lambda text: f"{text}{mark}" if mark else f"[bold]{text}[/bold]")
        ]  # fmt: skip
        labels = [on_one_line(label) for label in self.groups.values()]
        first, second, *figures = map(_widest, zip(*[(*names, *texts) for *names, texts in rows], strict=True))
        # Figures are never broken, and labels not into more than a few lines.
        least = [max(figure, math.ceil(len(label) / 4)) for figure, label in zip(figures, labels, strict=True)]
        tables: list[Table] = []
        for columns in _side_by_side(least, width - first - second - _GAP - _EDGES):
            table = Table(title=None if tables else "Table 2", box=SIMPLE_HEAD, pad_edge=False)
            for _ in range(2):
                table.add_column("", no_wrap=True)
            for label, needed in zip(labels[columns], least[columns], strict=True):
                table.add_column(for_terminal(label), justify="right", overflow="fold", min_width=needed)
            for section, name, texts in rows:
                if section and table.row_count:
                    table.add_section()
                table.add_row(section, name, *texts[columns])
            tables.append(table)
        return tables

    def notes_with(self, mark: str) -> tuple[str, ...]:
        """The notes, where `mark` stands for bold."""
        return tuple(note.replace("Bold: ", f"{mark}: ") if mark else note for note in self.notes)

    def texts(
        self, bold: Callable[[str], str] = lambda text: f"**{text}**", plus_minus: str = "±"
    ) -> list[tuple[str, str, list[str]]]:
        """(section title where a section begins, row name, a text per group)."""
        texts, before = [], None
        for metric, fraction, name, entries in self.rows:
            title = TITLES.get(metric, metric) if fraction == 0 else f"{100 * fraction:g} % ablated"
            digits = 2 if metric in METRICS else 4  # of the paper's two, two are enough
            row = [entries[group].text(bold, plus_minus, digits) if group in entries else "–" for group in self.groups]
            texts.append((title if (metric, fraction) != before else "", name, row))
            before = (metric, fraction)
        return texts


def fractions_shown(results: Results) -> list[float]:
    """The paper's two fractions, as far as they were measured; else all that were."""
    measured = sorted(set(results.frame["fraction"]) - {0.0})
    return [fraction for fraction in TABLE_FRACTIONS if fraction in measured] or measured


def make_table2(results: Results, fractions: Sequence[float] = TABLE_FRACTIONS) -> Table2:
    """The table of what was measured at these fractions.

    Bold is what cannot be told from the best of its column. For the models of the paper, ours and the paper's change
    from each one's own baseline stand beside the figure.
    """
    summary = results.summary(fractions)
    rows: list[tuple[str, float, str, dict[str, Entry]]] = []
    for metric in results.metrics:
        rows.append((metric, 0.0, "baseline", _baselines(summary, metric)))
        for fraction in sorted(set(summary["fraction"])):
            here = summary[summary["fraction"] == fraction]
            # RS1 is two methods, random characters and random pixels. They share a row, as no model takes both.
            for name in sorted(dict.fromkeys(map(row_name, here["method"])), key=_row_order):
                chosen = here[here["method"].map(row_name) == name]
                rows.append(
                    (metric, fraction, name, {str(r["group"]): _entry(r, metric) for _, r in chosen.iterrows()})
                )
    groups = {group: label for group, label in results.groups.items() if group in set(summary["group"])}
    return Table2(groups, tuple(rows), _notes(summary, rows))


def row_name(method: str) -> str:
    """What the paper calls a method: the three ways of resampling are RS1 to RS3."""
    return RESAMPLED.get(method, method)


def _row_order(name: str) -> tuple[int, str]:
    """As in the paper, with the other methods between its three constants and resampling."""
    first = {"peak": 0, "mean": 1, "zero": 2}
    # Sorting is stable, so the methods between, whose text here is empty, keep the study's order.
    return first.get(name, 4 if name in RESAMPLED.values() else 3), name if name in RESAMPLED.values() else ""


def _baselines(summary: pd.DataFrame, metric: str) -> dict[str, Entry]:
    first = summary.drop_duplicates("group")
    return {
        str(row["group"]): Entry(BASELINE, _shown(metric, row[f"baseline_{metric}"]), math.nan, False, 0.0, None, True)
        for _, row in first.iterrows()
    }


def _entry(row: Any, metric: str) -> Entry:
    ours, baseline = _shown(metric, row[metric]), _shown(metric, row[f"baseline_{metric}"])
    known = metric in METRICS  # the paper measured no others
    printed = published(str(row["model"]), metric, str(row["method"]), float(row["fraction"])) if known else None
    return Entry(
        method=str(row["method"]),
        mean=ours,
        sd=_shown(metric, row[f"{metric}_sd"]),
        as_best=bool(row[f"{metric}_as_best"]),
        change=ours - baseline,
        paper_change=None if printed is None else printed[1] - printed[0],
        # `not … >` and not `<=`: a NaN, from a baseline that failed, must not get the dagger.
        comparable=printed is None or not abs(baseline / printed[0] - 1) > BASELINES_APART,
    )


def _shown(metric: str, value: float) -> float:
    return 100 * float(value) if metric in ("top1", "top10") else float(value)


def _notes(summary: pd.DataFrame, rows: Sequence[tuple[str, float, str, dict[str, Entry]]]) -> tuple[str, ...]:
    seeds = sorted(set(summary["seeds"]))
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    conditional = summary["conditional"].any()
    notes = [
        ("One seed. " if over == "1" else f"Mean ± sd (ddof=1) over {over} seeds. ")
        + "Bold: cannot be told from the best of its column (95 % interval of the paired difference, "
        "bootstrapped over "
        + (
            "documents, given the masks that were drawn: too few seeds to speak of others)."
            if conditional
            else "masks and documents)."
        )
    ]
    if set(summary["method"]) & set(RESAMPLED):
        notes.append("RS1: random characters (images: random pixels), RS2: random token ids, RS3: generated text.")
    entries = [entry for *_, found in rows for entry in found.values() if entry.paper_change is not None]
    if entries:
        notes.append("In brackets: change from the baseline, ours and the paper's.")
    if any(not entry.comparable for entry in entries):
        notes.append("†: the two baselines are more than 10 % apart, so the changes are not comparable.")
    return tuple(notes)


def _widest(texts: Sequence[str]) -> int:
    from rich.text import Text

    # Cells of the terminal, not characters: markup takes none, an East Asian character two.
    return max(Text.from_markup(text).cell_len for text in texts)


def _side_by_side(widths: Sequence[int], room: int) -> list[slice]:
    """Columns by the lot: as many as there is room for, at least one."""
    lots, start = [], 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or sum(width + _GAP for width in widths[start : end + 1]) > room:
            lots.append(slice(start, end))
            start = end
    return lots
