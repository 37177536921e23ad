"""What `transfer_study` found, as figures, files and the blocks of a page."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ablation_lens import plots
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line, shorten
from ablation_lens.experiments.paragraphs import told_left_out
from ablation_lens.experiments.transfer import BASE, Sample, Transfer, told_share
from ablation_lens.files import write_text, writing
from ablation_lens.report.page import Block, Figure, Heading, Notes, Paragraph, Table

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME = "transfer"
PARTS = ("", "shares")
"""What is put after the name of a figure's file."""
SAMPLES, LETTERS = 6, 320
"""How many samples a page shows, and how much of a text."""
AFTER = (1, 2, 3, 5, 10, 20, 50)
"""True tokens of which the page tells."""


def figures(found: Transfer) -> "dict[str, go.Figure]":
    """The figures by what they show; cross-entropy by token is the first."""
    shown = {"": plots.transfer_curves(found)}
    with suppress(MismatchError):  # nothing was transferred alone
        shown["shares"] = plots.transfer_shares(found)
    return shown


def write_transfer(found: Transfer, out: Path) -> dict[str, Path]:
    """The table, the figures and the file that `Transfer.load` reads; returns where they are."""
    from ablation_lens.report.experiment import page_of
    from ablation_lens.study.results import csv_of

    files = {"csv": out / f"{NAME}.csv", "safetensors": out / f"{NAME}.safetensors"}
    with writing(out):
        for part in PARTS:  # none of before stays beside a new table
            _page(out, part).unlink(missing_ok=True)
        write_text(files["csv"], csv_of(found.frame, index=False))
        found.save(files["safetensors"])
        for part, figure in figures(found).items():
            files[f"html {part}".strip()] = place = _page(out, part)
            write_text(place, page_of(figure))
    return files


def _page(out: Path, part: str) -> Path:
    return out / (f"{NAME}-{part}.html" if part else f"{NAME}.html")


def blocks(found: Transfer) -> Iterator[Block]:
    """What a reader sees: the answer, cross-entropy by token, layers and sites, what was written; what it is of."""
    shown = figures(found)
    yield Paragraph(
        f"How much of its next paragraph does {on_one_line(found.source.name)} hold at the blank line before it? What "
        "attention and MLPs hold there is put at a blank line alone, and the true next paragraph is read after it."
    )
    yield Paragraph(" ".join(found.sentences()))
    rows = found.shares[found.shares["kind"] == "base"].to_dict("records")
    yield Table(
        ("read after", "nats per token", "95 %", "share", "95 %", "against a wrong donor", "95 %"),
        [
            (
                row["condition"],
                f"{row['cross_entropy']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                *(
                    text
                    for name in ("share", "share_wrong")
                    for text in (
                        told_share(row[name]),
                        f"{told_share(row[f'{name}_low'])} to {told_share(row[f'{name}_high'])}",
                    )
                ),
            )
            for row in rows
        ],
        numbers=6,
    )
    yield Notes(
        (
            "Tokens 2 and later: the first is predicted at the very token that was changed. A share is of what the "
            "full context gains over the blank line alone (or over a wrong donor); – where that cannot be told from "
            "nothing.",
            "A wrong donor is another document whose first part is about as long.",
        )
    )
    yield Figure("curves", shown[""], "Cross-entropy of the true paragraph, token by token, and its gain in pairs.")
    if "shares" in shown:
        yield Heading("Layers and sites")
        yield Figure("shares", shown["shares"], "What single layers and sites transfer, alone and all but one.")
    yield Heading("In true tokens")
    yield from _gaps(found)
    if found.samples:
        yield Heading("What was written")
        yield from _written(found)
    yield Heading("What it was measured on")
    yield Notes(tuple(_measured(found)))


def _gaps(found: Transfer) -> Iterator[Block]:
    frame = found.gaps
    moved = frame.iloc[0]
    rows = [(BASE[1], "1", moved)]
    rows += [(BASE[3], str(row["after"]), row) for _, row in frame.iloc[1:].iterrows() if row["after"] in AFTER]
    yield Table(
        ("read after", "and true tokens", "full context is ahead by", "95 %"),
        [(name, after, f"{row['gap']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}") for name, after, row in rows],
        numbers=3,
    )
    yield Notes(
        (
            "Over the ten tokens that follow, in nats per token. A blank line and k true tokens (“cheat-k”) are the "
            "neutral prompt from token k + 1 on: what a transfer is worth is where these are as low as its own.",
        )
    )


def _written(found: Transfer) -> Iterator[Block]:
    rows = found.generated.to_dict("records")
    away = found.distances is not None
    yield Table(
        ("written after", "nats per token", "95 %", *(("distance", "95 %") if away else ())),
        [
            (
                row["condition"],
                f"{row['cross_entropy']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                *(
                    (f"{row['distance']:.3f}", f"{row['distance_low']:.3f} to {row['distance_high']:.3f}")
                    if away
                    else ()
                ),
            )
            for row in rows
        ],
        numbers=4 if away else 2,
    )
    how = "the likeliest token" if found.temperature == 0 else f"temperature {found.temperature:g}, seed {found.seed}"
    yield Notes(
        (
            f"Of {len(found.samples)} documents, {how}, with the same luck under every condition. Judged by the model "
            "as it is after the whole donor; true tokens that were given do not count.",
            *(("Distance: cosine, in the embedding that was given, to the true paragraph.",) if away else ()),
        )
    )
    for sample in found.samples[:SAMPLES]:
        yield Paragraph(f"{on_one_line(sample.id)}: …{_shown(sample.before, end=True)}")
        yield Table(("written after", "text"), list(_texts(found, sample)))


def _texts(found: Transfer, sample: Sample) -> Iterator[tuple[str, str]]:
    yield "(true)", _shown(sample.true)
    for writer, text in zip(found.writers, sample.written, strict=True):
        yield writer, _shown(text)


def _shown(text: str, *, end: bool = False) -> str:
    """A foreign text in a line, in which no asterisks make bold what only our own tables may."""
    line = on_one_line(text[-LETTERS:] if end else text)
    return shorten(line, 2 * LETTERS).replace("**", "*\u2060*")


def _measured(found: Transfer) -> Iterator[str]:
    where = "at the donor's positions" if found.positions else "at their own positions"
    yield (
        f"{on_one_line(found.judged_on)}: {len(found.lengths):,} documents{told_left_out(found.left_out)}; "
        f"{int(found.lengths.sum()):,} tokens of next paragraphs, at most {found.losses.shape[2]} of each."
    )
    yield f"Transferred: {' and '.join(found.sites)} of {len(found.layers)} layers; recipients are read {where}."
    yield "Intervals are 95 %, over documents, in pairs wherever conditions are compared."
    weights = found.source.weights or found.source.checksum or "unknown"
    yield on_one_line(f"{found.source.name}, {found.source.dtype}, weights {weights}.")
