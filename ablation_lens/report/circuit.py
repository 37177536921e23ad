"""An analysis of circuits as one page: what was asked, what every unit is worth, what was found, and how good it is."""

import math
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ablation_lens import plots
from ablation_lens.circuits.analysis import AnalysisRecord, CircuitFolder, FoundRecord, JudgedRecord
from ablation_lens.circuits.circuit import Circuit, listed
from ablation_lens.circuits.curves import Curves
from ablation_lens.circuits.effects import Effects
from ablation_lens.errors import FileFormatError
from ablation_lens.escaping import as_unicode, on_one_line
from ablation_lens.files import read_text
from ablation_lens.measure.intervals import mean_intervals
from ablation_lens.measure.score import Sums
from ablation_lens.plots.metrics import shown_metric
from ablation_lens.records import Versions
from ablation_lens.report.again import command_for_circuit
from ablation_lens.report.page import Code, Figure, File, Files, Heading, Notes, Page, Paragraph, Table

if TYPE_CHECKING:
    import pandas

_Read = TypeVar("_Read")

TOP = 10
"""Units that the page lists for each center; all of them are in its file."""

_MOST_FILE = 2**26
"""Bytes of a file that the page hands out."""


def write_circuit_report(folder: CircuitFolder, out: str | Path | None = None) -> tuple[Path, Path, list[str]]:
    """Write report.html and report.md about the latest analysis; returns where, and what could not be read."""
    target = folder.path if out is None else Path(out)
    page, flaws = make_circuit_report(folder)
    return *page.write(target / "report.html", target / "report.md"), flaws


def make_circuit_report(folder: CircuitFolder) -> tuple[Page, list[str]]:
    """The page about the latest analysis of a folder, and what of it could not be read."""
    record = folder.latest()
    if record is None:
        raise FileFormatError(f"{folder.path} holds no analysis yet; run `ablation-lens circuit` with this folder.")
    return _Report(folder, record).made()


class _Report:
    """One page in the making; whatever cannot be read is left out, and listed at its end."""

    def __init__(self, folder: CircuitFolder, record: AnalysisRecord) -> None:
        self.folder, self.record, self.settings = folder, record, record.settings
        self.metric = shown_metric(record.settings.metric)
        self.page = Page(f"Which units of {record.model.name} do {record.settings.task or 'these prompts'}")
        self.flaws: list[str] = []

    def made(self) -> tuple[Page, list[str]]:
        """The whole page."""
        add = self.page.add
        add(Paragraph(self._asked()))
        add(Paragraph(self._dates()))
        files = Files(())
        place = len(self.page.blocks)
        knockouts = self._all(self.record.knockouts, self.folder.effects, "effects")
        attributions = self._all(self.record.attributions, self.folder.effects, "effects")
        curves = self._all({"": self.record.curves}, self.folder.curves, "curves").get("")
        if knockouts:
            self._add_everything(knockouts)
            self._add_effects(knockouts, attributions)
        found = self._all(self.record.circuits, self.folder.circuit, "circuits")
        self._add_circuits(found, knockouts)
        if curves is not None:
            self._add_curves(curves)
        self._add_neurons(attributions)
        self._add_again()
        if self.flaws:
            add(Heading("What is missing"))
            add(Notes(tuple(self.flaws)))
        files = Files(tuple(self._files(knockouts, attributions, curves)))
        if files.files:
            self.page.blocks.insert(place, files)
        return self.page, self.flaws

    # ------------------------------------------------------------------ reading

    @contextmanager
    def _leaving_out(self) -> Iterator[None]:
        try:
            yield
        except FileFormatError as error:
            if str(error) not in self.flaws:
                self.flaws.append(str(error))

    def _all(self, keys: dict[str, str], read: Callable[[str], _Read], part: str) -> dict[str, _Read]:
        """What there is of a part, by center; what was refused is said under its heading."""
        found: dict[str, _Read] = {}
        for name, key in keys.items():
            with self._leaving_out():
                if self.folder.refusal(key) is not None:
                    continue
                if not self.folder.is_there(part, key):
                    about = f" with {name}" if name else ""
                    raise FileFormatError(f"The {part}{about} are not finished; run the same command again to go on.")
                found[name] = read(key)
        return found

    def _refused(self, keys: dict[str, str]) -> Iterator[tuple[str, str]]:
        for name, key in keys.items():
            with self._leaving_out():
                if (told := self.folder.refusal(key)) is not None:
                    yield name, told

    # ------------------------------------------------------------------ what was asked

    def _asked(self) -> str:
        settings, model = self.settings, self.record.model
        centers = ", ".join(self.record.names)
        shape = f"{model.architecture}, {model.n_layers} layers × {model.n_heads} heads"
        return (
            f"Prompts of {self.record.about_prompts}, asked of {model.name} ({shape}). What counts is "
            f"{self.metric.name}. Units at {' and '.join(settings.sites)} are set to: {centers}. Circuits of "
            f"{settings.level}s are found by {settings.method} on one half of the prompts, so that they keep "
            f"{settings.target:g} of the metric, and judged on the other half."
        )

    def _dates(self) -> str:
        today = datetime.now(UTC).date().isoformat()
        return (
            f"Written on {today} by ablation-lens {Versions.current().ablation_lens}, from "
            f"{as_unicode(str(self.folder.path))}. Effects are m(without the unit) − m(M); M is the model, ∅ the model "
            "with every unit ablated, C a circuit with everything else ablated."
        )

    def _add_everything(self, knockouts: dict[str, Effects]) -> None:
        """m(M) and m(∅) of every center: without them no share says anything."""
        self.page.add(Heading("With everything ablated"))
        rows = []
        for name, effects in knockouts.items():
            change = Sums(effects.empty.values - effects.clean.values, effects.clean.weights)
            rows.append(
                (name, *(self._with_interval(sums) for sums in (effects.clean, effects.empty, change)), _from(effects))
            )
        heads = ("set to", "m(M)", "m(∅)", "m(∅) − m(M)", "computed from")
        self.page.add(Table(heads, rows))
        self.page.add(
            Notes(("On the half of the prompts that circuits are found on; 95 % intervals are over these prompts.",))
        )

    def _with_interval(self, sums: Sums) -> str:
        values, weights = sums.values[None].numpy(), sums.weights.numpy()
        low, high = (float(end[0]) for end in mean_intervals(values, weights))
        return self._number(float(values.sum() / weights.sum()), low, high)

    def _number(self, value: float, low: float | None, high: float | None) -> str:
        """A number in the metric's unit, with the interval where there is one."""
        scaled = [None if each is None or math.isnan(each) else self.metric.scale * each for each in (low, high)]
        ends = "" if None in scaled else f" [{scaled[0]:.3g}, {scaled[1]:.3g}]"
        return f"{self.metric.scale * value:.4g}{ends}{self.metric.suffix}"

    # ------------------------------------------------------------------ effects

    def _add_effects(self, knockouts: dict[str, Effects], attributions: dict[str, Effects]) -> None:
        self.page.add(Heading("What every unit is worth"))
        for name, told in self._refused(self.record.attributions):
            self.page.add(Paragraph(f"No attributions with {name}: {told}"))
        for number, (name, effects) in enumerate(knockouts.items()):
            caption = (
                f"Every {effects.level} taken away by itself: set to {name}. Red is the way that ablating everything "
                "changes the metric."
            )
            self.page.add(Figure(f"effects-{number}", plots.effect_map(effects), caption))
            whole = None
            if name in attributions:
                whole = attributions[name].by(effects.level)
                self.page.add(Paragraph(_agreement(effects, whole)))
            self.page.add(self._top(effects, whole))

    def _top(self, effects: Effects, attribution: Effects | None) -> Table:
        """The units that the metric needs most."""
        table = effects.table().head(TOP)
        shares = None if attribution is None else attribution.table()["share"]
        rows = [
            (
                str(unit),
                self._number(row["effect"], row["low"], row["high"]),
                _percent(row["share"]),
                *([_percent(float(shares[unit]))] if shares is not None else []),
            )
            for unit, row in zip(table.index, table.to_dict("records"), strict=True)
        ]
        heads = ("unit", "effect", "share", *(["share by attribution"] if shares is not None else []))
        return Table(heads, rows, numbers=len(heads) - 1)

    # ------------------------------------------------------------------ circuits

    def _add_circuits(self, found: dict[str, tuple[FoundRecord, Circuit]], knockouts: dict[str, Effects]) -> None:
        page, settings = self.page, self.settings
        refused = list(self._refused(self.record.circuits))
        if not found and not refused:
            return
        page.add(Heading("The circuits"))
        for name, told in refused:
            page.add(Paragraph(f"With {name}: {told}"))
        if not found:
            return
        rows = []
        for name, (about, _) in found.items():
            rows.append(
                (
                    name,
                    f"{about.units:,} of {about.of:,}",
                    _f(about.found),
                    f"**{_f(about.judged)}**" if about.judged.f is not None else "refused",
                    _random(about.judged),
                    *(
                        self._number(each, None, None)
                        for each in (about.judged.m_circuit, about.judged.m_model, about.judged.m_empty)
                    ),
                )
            )
        heads = ("rest set to", "kept", "f where found", "f on the others", "random circuits", "m(C)", "m(M)", "m(∅)")
        page.add(Table(heads, rows, numbers=len(heads) - 1))
        page.add(
            Notes(
                (
                    "f = (m(C) − m(∅)) / (m(M) − m(∅)), with its 95 % interval over prompts. Report the f of the "
                    "others: the circuit was chosen for the f where it was found.",
                    "Random circuits keep as many units at each site: their mean f, and their range. The m's are of "
                    "the prompts that circuits are judged on.",
                    "An f divides by its own m(∅): a center that wrecks the model flatters every circuit. Compare f's "
                    "of two centers in the curves below, under one judge.",
                )
            )
        )
        for number, (name, (about, circuit)) in enumerate(found.items()):
            if about.judged.refused is not None:
                page.add(Paragraph(f"With {name}, on the others: {about.judged.refused}"))
            if not about.reached:
                page.add(Paragraph(f"With {name}, no circuit of fewer {settings.level}s keeps {settings.target:g}."))
            effects = knockouts.get(name)
            drawn = effects if effects is not None and effects.level != "layer" and effects.total else None
            figure = plots.circuit_diagram(circuit, drawn)
            caption = f"The circuit found with {name}: {about.searched}."
            page.add(Figure(f"circuit-{number}", figure, caption))
            page.add(Paragraph(f"Kept with {name}: {listed(circuit, settings.level)}."))

    def _add_curves(self, curves: Curves) -> None:
        page = self.page
        page.add(Heading("Every size, every pair of centers"))
        for judge in curves.judges:
            if judge.refused is not None:
                page.add(Paragraph(f"Judged with {judge.name}: {judge.refused}"))
        doubts = curves.pairs[["found_with", "doubt"]].drop_duplicates()
        for name, doubt in doubts.dropna().itertuples(index=False):
            page.add(Paragraph(f"Found with {name}: {doubt}"))
        page.add(
            Paragraph(
                f"Circuits of {curves.level}s, ranked by {curves.method} attribution with one center on "
                f"{curves.rows_found:,} prompts, and judged with another on {curves.rows_judged:,} others."
            )
        )
        page.add(
            Figure(
                "curves",
                plots.faithfulness_curves(curves),
                "What circuits keep, by the share of units they have. 1 is the model, 0 everything ablated.",
            )
        )
        measures = (
            ("cpr", "Area under f (CPR): how much circuits keep, over all sizes. Colours are places within a column."),
            ("cmd", "Area between f and 1 (CMD), of units ranked by size: how far circuits are from the model."),
        )
        for measure, caption in measures:
            if curves.pairs[measure].notna().any():
                page.add(Figure(measure, plots.pair_map(curves, measure), caption))  # type: ignore[arg-type]
        stability = curves.stability
        stability = stability[stability["order"] == "signed"] if len(stability) else stability
        if len(stability):
            wide = stability.pivot_table(index="found_with", columns="units", values="jaccard", sort=False)
            wide = wide[sorted(wide.columns)]
            heads = ("found with", *(f"{units} unit{'' if str(units) == '1' else 's'}" for units in wide.columns))
            rows = [
                (str(name), *(f"{each:.2f}" for each in row))
                for name, row in zip(wide.index, wide.to_numpy(), strict=True)
            ]
            page.add(
                Paragraph("How much of a circuit is found again when the prompts are resampled (Jaccard; 1: all):")
            )
            page.add(Table(heads, rows, numbers=len(heads) - 1))

    # ------------------------------------------------------------------ further

    def _add_neurons(self, attributions: dict[str, Effects]) -> None:
        """How to see every neuron with its attribution."""
        commands = []
        for name in attributions:
            file = re.sub(r"[^\w-]+", "-", name)  # a file of learned values may call them anything
            effects = self.folder.file("effects", self.record.attributions[name])
            for site, key in self.record.statistics.items():
                page = self.folder.path / f"explorer-{site}-{file}.html"
                parts = (self.folder.file("statistics", key), "--effects", effects, "--html", page)
                commands.append(" ".join(["ablation-lens explore", *(shlex.quote(str(part)) for part in parts)]))
        if commands:
            self.page.add(Heading("Every neuron"))
            self.page.add(Paragraph("To make a page of all neurons of a site, sorted by what they are worth:"))
            self.page.add(Code("\n".join(on_one_line(as_unicode(command)) for command in commands)))

    def _add_again(self) -> None:
        self.page.add(Heading("To do it again"))
        self.page.add(Code(command_for_circuit(self.settings)))
        versions = self.record.versions.to_dict()
        told = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in versions.items())
        weights = (self.record.model.checksum or self.record.model.weights or "unknown")[:12]
        self.page.add(
            Paragraph(
                f"Prompts {self.record.prompts}, weights {weights}, {self.record.model.dtype}; {told}. With equal "
                "versions, device and number of threads the numbers are the same."
            )
        )

    def _files(
        self, knockouts: dict[str, Effects], attributions: dict[str, Effects], curves: Curves | None
    ) -> Iterator[File]:
        """All that the page is about, as tables."""
        tables = [
            effects.table().reset_index(names="unit").assign(values=name, method=effects.method)
            for name, effects in knockouts.items()
        ]
        tables += [
            each.by("head").table().reset_index(names="unit").assign(values=name, method=each.method)
            for name, each in attributions.items()
        ]
        if tables:
            import pandas

            yield File("effects.csv", "text/csv", _csv(pandas.concat(tables)))
        if curves is not None:
            yield File("curves.csv", "text/csv", _csv(curves.frame))
            yield File("pairs.csv", "text/csv", _csv(curves.pairs))
        with self._leaving_out():
            self.folder.prompts(self.record.prompts)  # what is handed out is a file of prompts
            text = read_text(self.folder.json("prompts", self.record.prompts), _MOST_FILE)
            yield File("prompts.json", "application/json", text)


def _csv(frame: "pandas.DataFrame") -> str:
    from ablation_lens.study.results import csv_of

    return csv_of(frame, index=False)


def _from(effects: Effects) -> str:
    return effects.collected_on or "–"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.3g} %"


def _f(judged: JudgedRecord) -> str:
    if judged.f is None:
        return "refused"
    ends = "" if judged.low is None else f" [{judged.low:.3f}, {judged.high:.3f}]"
    return f"{judged.f:.3f}{ends}"


def _random(judged: JudgedRecord) -> str:
    known = [each for each in judged.random if each is not None]
    return f"{sum(known) / len(known):.3f}, {min(known):.3f} to {max(known):.3f}" if known else "–"


def _agreement(exact: Effects, attributed: Effects) -> str:
    """How the attribution ranks units, against the exact effects; and whether its parts add up."""
    one, other = exact.table()["effect"], attributed.table()["effect"]
    # Spearman's, as the plain correlation of ranks.
    correlation = float(one.rank().corr(other.reindex(one.index).rank()))
    residual = attributed.residual
    rest = (
        ""
        if residual is None
        else (f" Its parts add up to m(∅) − m(M) = {attributed.total:+.4g} but for {residual:+.2g}.")
    )
    said = (
        "cannot be ranked" if math.isnan(correlation) else f"agrees with these in rank by {correlation:.2f} (Spearman)"
    )
    return f"The integrated attribution of {attributed.level}s {said}.{rest}"
