import csv
import io
import re

import pytest
from rich.console import Console

from ablation_lens.study.results import Results
from ablation_lens.study.table2 import make_table2
from tests.made_runs import add_baseline, add_cell, add_group, made_run

SEEDS = (42, 123, 456)
HOSTILE = "./a|b_c & <img src=x>[bold]$50%#{~^}\\ `x` *y*\nnext"


def fill(run, model, *, baseline=(55, 2.24), scores):
    """A group of four equal documents: {(method, fraction): (top-1 %, nats)}, the same for every seed."""
    group = add_group(run, model, documents=4)
    add_baseline(run, group, [baseline[0]] * 4, [baseline[1]] * 4)
    for (method, fraction), (top1, loss) in scores.items():
        for seed in SEEDS:
            add_cell(run, group, method, fraction, seed, [top1] * 4, [loss] * 4)


def rows_of(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


def bold_methods(table, metric, fraction):
    return {
        row["method"]
        for row in rows_of(table)
        if row["metric"] == metric and float(row["fraction"]) == fraction and row["as_best"] == "True"
    }


@pytest.fixture
def paper_like(tmp_path):
    """Ours for a model of the paper: baseline 55 % and 2.24 nats, against the paper's 55.05 % and 2.24 nats."""
    run = made_run(tmp_path / "run", models=["facebook/opt-1.3b"], methods=["zero", "mean", "peak"])
    scores = {
        ("zero", 0.5): (40, 3.20),
        ("mean", 0.5): (42, 3.00),
        ("peak", 0.5): (44, 2.90),
        ("resample-characters", 0.5): (20, 5.00),
        ("median", 0.5): (43, 2.95),
        ("zero", 0.9): (10, 6.90),
        ("peak", 0.9): (12, 6.30),
    }
    fill(run, "facebook/opt-1.3b", scores=scores)
    return run


def test_the_paper_s_change_stands_beside_ours(paper_like):
    found = {
        (row["metric"], float(row["fraction"]), row["method"]): (row["change"], row["paper_change"])
        for row in rows_of(make_table2(Results.load(paper_like)))
    }
    # By hand from the paper's Table 2: OPT's baseline is 55.05 % and 2.24 nats.
    expected = {
        ("top1", 0.5, "peak"): (44 - 55, 44.54 - 55.05),
        ("top1", 0.5, "mean"): (42 - 55, 42.39 - 55.05),
        ("top1", 0.5, "resample-characters"): (20 - 55, 25.97 - 55.05),
        ("top1", 0.9, "zero"): (10 - 55, 11.05 - 55.05),
        ("cross_entropy", 0.5, "peak"): (2.90 - 2.24, 2.93 - 2.24),
        ("cross_entropy", 0.5, "zero"): (3.20 - 2.24, 3.19 - 2.24),
        ("cross_entropy", 0.9, "peak"): (6.30 - 2.24, 6.33 - 2.24),
    }
    for place, (ours, paper) in expected.items():
        assert float(found[place][0]) == pytest.approx(ours), place
        assert float(found[place][1]) == pytest.approx(paper), place
    assert found["top1", 0.5, "median"][1] == ""  # not in the paper
    assert found["top1", 0.0, "none"][1] == ""


def test_the_text_of_a_figure(paper_like):
    markdown = make_table2(Results.load(paper_like)).markdown()
    assert "| 50 % ablated | peak | **44.00 ± 0.00** (-11.00; paper -10.51) |" in markdown
    assert "|  | RS1 | 20.00 ± 0.00 (-35.00; paper -29.08) |" in markdown
    assert "|  | median | 43.00 ± 0.00 |" in markdown
    assert "| Top-1 accuracy (%) | baseline | 55.00 |" in markdown
    assert "| Cross-entropy (nats) | baseline | 2.24 |" in markdown
    assert "†" not in markdown
    assert "In brackets: change from the baseline, ours and the paper's." in markdown


def test_rows_stand_in_the_papers_order(paper_like):
    markdown = make_table2(Results.load(paper_like)).markdown()
    names = re.findall(r"^\|[^|]*\| (\S+) \|", markdown, re.MULTILINE)
    once = ["baseline", "peak", "mean", "zero", "median", "RS1", "peak", "zero"]
    assert [name for name in names if name != "---"] == once * 2


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("/models/of/mine/opt-1.3b", True),
        ("FacebookAI/roberta-large", True),
        ("mistralai/Mistral-7B-v0.1", True),
        ("google/vit-base-patch16-224", True),
        ("mistralai/Mistral-7B-v0.3", False),
        ("tiny-opt", False),
    ],
)
def test_a_model_is_the_papers_by_the_last_part_of_its_name(tmp_path, model, known):
    run = made_run(tmp_path / "run", models=[model])
    fill(run, model, scores={("peak", 0.5): (40, 3.0)})
    assert [
        row["paper_change"] != "" for row in rows_of(make_table2(Results.load(run))) if row["method"] == "peak"
    ] == [known] * 2


@pytest.mark.parametrize(
    ("baseline", "flagged"),
    [
        ((55, 2.24), set()),
        ((50, 2.24), set()),  # 9.2 % apart
        ((49, 2.24), {"top1"}),  # 11 % apart
        ((55, 2.47), {"cross_entropy"}),  # 10.3 % apart
        ((55, 2.01), {"cross_entropy"}),
    ],
)
def test_baselines_more_than_10_percent_apart_are_flagged(tmp_path, baseline, flagged):
    run = made_run(tmp_path / "run", models=["facebook/opt-1.3b"])
    scores = {("peak", 0.5): (40, 3.0), ("median", 0.5): (40, 3.0)}
    fill(run, "facebook/opt-1.3b", baseline=baseline, scores=scores)
    table = make_table2(Results.load(run))
    assert {row["metric"] for row in rows_of(table) if row["comparable"] == "False"} == flagged
    shown = [line for line in table.markdown().splitlines() if "†)" in line]
    assert len(shown) == len(flagged)
    assert any(note.startswith("†:") for note in table.notes) is bool(flagged)
    assert table.latex().count(r"$^\dagger$)") == len(flagged)


def test_bold_is_what_cannot_be_told_from_the_best(tmp_path):
    run = made_run(tmp_path / "run")
    documents = 12
    group = add_group(run, "m", documents=documents)
    add_baseline(run, group, [90] * documents, [1.0] * documents)
    for number, seed in enumerate(SEEDS):
        best = [2.0 + 0.1 * document for document in range(documents)]
        add_cell(run, group, "peak", 0.5, seed, [50] * documents, best)
        # As often above the best as below it, document by document: no telling them apart.
        near = [loss + (0.3 if (document + number) % 2 else -0.28) for document, loss in enumerate(best)]
        add_cell(run, group, "mean", 0.5, seed, [50] * documents, near)
        # Hardly worse, but in every document.
        add_cell(run, group, "zero", 0.5, seed, [49] * documents, [loss + 0.05 for loss in best])
    table = make_table2(Results.load(run), [0.5])
    assert bold_methods(table, "cross_entropy", 0.5) == {"peak", "mean"}
    assert bold_methods(table, "top1", 0.5) == {"peak", "mean"}
    assert "given the masks that were drawn" in table.notes[0]


def test_with_ten_seeds_the_note_speaks_of_all_masks(tmp_path):
    run = made_run(tmp_path / "run")
    group = add_group(run, "m")
    add_baseline(run, group, [90, 90], [1.0, 1.0])
    for seed in range(10):
        add_cell(run, group, "peak", 0.5, seed, [50, 50], [2.0, 2.0])
    (note,) = make_table2(Results.load(run), [0.5]).notes
    assert "over 10 seeds" in note
    assert "bootstrapped over masks and documents" in note


def test_text_and_image_models_share_a_row_and_keep_their_methods_in_the_csv(tmp_path):
    run = made_run(tmp_path / "run", models=["words", "pictures"])
    fill(run, "words", scores={("resample-characters", 0.5): (20, 5.0), ("resample-tokens", 0.5): (21, 4.0)})
    fill(run, "pictures", scores={("resample-pixels", 0.5): (30, 3.0)})
    table = make_table2(Results.load(run))
    assert "|  | RS2 | **21.00 ± 0.00** | – |" in table.markdown()
    assert "| 50 % ablated | RS1 | 20.00 ± 0.00 | **30.00 ± 0.00** |" in table.markdown()
    tidy = {(row["model"], row["method"]) for row in rows_of(table)}
    assert tidy == {
        ("words", "none"),
        ("words", "resample-characters"),
        ("words", "resample-tokens"),
        ("pictures", "none"),
        ("pictures", "resample-pixels"),
    }
    places = [(row["model"], row["metric"], row["fraction"], row["method"]) for row in rows_of(table)]
    assert len(places) == len(set(places))


def test_a_baseline_that_failed_is_a_dash_and_no_number(tmp_path):
    run = made_run(tmp_path / "run", models=["facebook/opt-1.3b"])
    group = add_group(run, "facebook/opt-1.3b", documents=1)
    for seed in SEEDS:
        add_cell(run, group, "peak", 0.5, seed, [40], [3.0])
    markdown = make_table2(Results.load(run)).markdown()
    assert "nan" not in markdown
    assert "| Top-1 accuracy (%) | baseline | – |" in markdown
    assert "| 50 % ablated | peak | **40.00 ± 0.00** |" in markdown


@pytest.fixture
def hostile(tmp_path, registry):
    """Names of models and methods that mean something in every format."""
    registry.register("q|r_[red]&")(lambda statistics: statistics.mean)
    run = made_run(tmp_path / "run", models=[HOSTILE])
    fill(run, HOSTILE, scores={("q|r_[red]&", 0.5): (40, 3.0)})
    return make_table2(Results.load(run))


def test_hostile_names_stay_text_in_markdown(hostile):
    lines = hostile.markdown().splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert set(cells) == {4}  # three columns, whatever is in the names
    escaped = r"./a\|b\_c \& \<img src=x\>\[bold\]\$50%\#{\~^}\\ \`x\` \*y\*\\nnext"
    assert escaped in lines[0]
    assert r"q\|r\_\[red\]\&" in hostile.markdown()


def test_hostile_names_stay_text_in_latex(hostile):
    lines = hostile.latex().splitlines()
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in lines if line.endswith(r"\\"))
    head = lines[2]
    expected = (
        r"./a\textbar{}b\_c \& \textless{}img src=x\textgreater{}[bold]\$50\%\#\{\textasciitilde{}\textasciicircum{}\}"
        r"\textbackslash{} \textasciigrave{}x\textasciigrave{} *y*\textbackslash{}nnext"
    )
    assert expected in head
    assert r"q\textbar{}r\_[red]\&" in hostile.latex()
    assert r"50 \% ablated" in hostile.latex()
    assert r"\textbf{40.00 $\pm$ 0.00}" in hostile.latex()


def test_hostile_names_are_one_line_of_csv_each(hostile):
    assert {row["model"] for row in rows_of(hostile)} == {HOSTILE.replace("\n", "\\n")}
    assert {row["method"] for row in rows_of(hostile)} == {"none", "q|r_[red]&"}
    assert len(hostile.csv().splitlines()) == 1 + len(rows_of(hostile))


@pytest.mark.parametrize("name", ["=cmd|' /c calc'!A1", "+1", "-1", "@sum(1)", "\x1b]0;title\x07", "a\r\nb,=c"])
def test_names_are_no_formulas_and_no_controls_in_csv(tmp_path, name):
    run = made_run(tmp_path / "run", models=[name])
    fill(run, name, scores={("peak", 0.5): (40, 3.0)})
    results = Results.load(run.path)
    results.export(tmp_path / "cells.csv")
    for text in (make_table2(results).csv(), (tmp_path / "cells.csv").read_bytes().decode()):
        assert "".join(text.split("\n")).isprintable()
        models = {row["model"] for row in csv.DictReader(io.StringIO(text))}
        assert len(models) == 1
        assert models.pop()[0] not in "=+-@"
    assert set(results.frame["model"]) == {name}


def test_hostile_names_are_no_markup_in_the_terminal(hostile):
    console = Console(width=300, record=True, file=io.StringIO())
    for part in hostile.rich():
        console.print(part)
    text = console.export_text()
    assert "./a|b_c & <img src=x>[bold]$50%#{~^}\\ `x` *y*\\nnext" in text
    assert "q|r_[red]&" in text


def test_more_groups_than_fit_in_a_terminal_go_below_and_no_figure_is_broken(tmp_path):
    run = made_run(tmp_path / "run", models=[f"./models/number-{number}" for number in range(7)], methods=["zero"])
    for number in range(7):
        group = add_group(run, f"./models/number-{number}")
        add_baseline(run, group, [60, 60], [2.0, 2.0])
        for seed in SEEDS:
            add_cell(run, group, "zero", 0.5, seed, [10 * number + seed % 7, 5], [1.0 + number, seed % 5])
    made = make_table2(Results.load(run), [0.5])
    for width in (80, 40):
        console = Console(width=width, record=True, file=io.StringIO())
        parts = made.rich(width)
        for part in parts:
            console.print(part)
        text = console.export_text()
        assert sum(len(part.columns) - 2 for part in parts) == 7
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert "…" not in text
        for figure in rows_of(made):
            sd = "" if figure["sd"] == "nan" or not figure["sd"] else f"±{float(figure['sd']):.2f}"
            assert f"{float(figure['mean']):.2f}{sd}" in text


def test_latex_is_a_whole_tabular(paper_like):
    latex = make_table2(Results.load(paper_like)).latex()
    assert latex.startswith("\\begin{tabular}{llr}\n\\toprule\n")
    assert latex.count(r"\midrule") == 1 + 5  # under the head, and between six sections
    assert latex.index(r"\bottomrule") < latex.index(r"\end{tabular}") < latex.index("% Mean")
    assert all(line.endswith(r"\\") or line.startswith(("\\", "%")) for line in latex.splitlines())
