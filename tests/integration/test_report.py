"""A report says what was measured, nothing else, and what is foreign in it stays text."""

import csv
import datetime
import io
import json
import re
import shutil

import pytest

import ablation_lens as al
from ablation_lens.errors import AblationLensError
from ablation_lens.files import load_json, save_json
from ablation_lens.report.page import Code, Figure, Files, Heading, Links, Notes, Paragraph, Table
from ablation_lens.report.study import SEEDS_OF_INPUTS, make_report, write_report
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.results import UnreadableFile
from tests.made_runs import add_baseline, add_cell, add_group, made_run

HOSTILE = "<img src=x onerror=alert(1)>"
MINE = "bold <b> & $x$"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study with resampling over more seeds than a report shows inputs of."""
    path = tmp_path_factory.mktemp("runs") / "run"
    al.Study(
        models=["tiny-vit", "tiny-opt"],
        methods=["zero", "peak", "resample-pixels", "resample-tokens"],
        fractions=[0.5, 1.0],
        seeds=[1, 2, 3, 4],
        collect_tokens=500,
        evaluate_tokens=300,
        collect_images=40,
        evaluate_images=30,
        metrics={"kl": "kl", MINE: boldness},
    ).run(path, progress=False)
    return path


def boldness(logits, batch):
    return logits.flatten(1).amax(-1)


@pytest.fixture(scope="module")
def page(folder):
    return make_report(folder)


def blocks(page, kind):
    return [block for block in page.blocks if isinstance(block, kind)]


def under(page, title):
    """The blocks from a heading to the next one."""
    start = next(i for i, block in enumerate(page.blocks) if isinstance(block, Heading) and title in block.text)
    rest = page.blocks[start + 1 :]
    return rest[: next((i for i, block in enumerate(rest) if isinstance(block, Heading)), len(rest))]


def test_it_begins_with_how_much_was_measured(page, folder):
    frame = al.Results.load(folder).frame
    first = blocks(page, Paragraph)[0].text
    # 2 models: a baseline, 4 seeds × 3 methods at half, 2 constants and 4 drawn ones at all.
    assert len(frame) == 2 * (1 + 12 + 2 + 4)
    assert "2 models, 4 methods, 2 fractions, 4 seeds: 38 evaluations" in first
    assert f"{frame['predictions'].sum():,} predictions" in first


def test_in_short_names_the_best_and_the_worst_method(page, folder):
    (table,) = [block for block in under(page, "In short") if isinstance(block, Table)]
    summary = al.Results.load(folder).summary([0.5])
    for model, ablated, best, _, worst in table.rows:
        assert ablated == "50 %"
        here = summary[summary["model"] == model].sort_values("cross_entropy")
        assert best.startswith(here.iloc[0]["method"])
        assert worst.startswith(here.iloc[-1]["method"])
        change = here.iloc[0]["cross_entropy"] - here.iloc[0]["baseline_cross_entropy"]
        assert f"({change:+.2f} nats)" in best


def test_every_model_has_its_neurons_counted_by_shape_and_its_figure_1(page, folder):
    results = al.Results.load(folder)
    for group, label in results.groups.items():
        found = under(page, f"Neurons of {label}")
        (table,) = [block for block in found if isinstance(block, Table)]
        statistics = al.ActivationStatistics.load(StudyFolder(folder).statistics(results.facts(group)["statistics"][0]))
        counts = statistics.table()["shape"].value_counts()
        assert {row[0]: int(row[1].replace(",", "")) for row in table.rows} == counts.to_dict()
        (figure,) = [block for block in found if isinstance(block, Figure)]
        assert label in figure.figure.layout.title.subtitle.text
        text = " ".join(block.text for block in found if isinstance(block, Paragraph))
        assert f"{statistics.count.numel():,} neurons" in text
        assert ("unresolved" in text) == ("unresolved" in counts)


def test_inputs_of_resampling_are_shown_for_some_seeds_and_counted_for_the_others(page, folder):
    found = under(page, "Inputs of resampling")
    (table,) = [block for block in found if isinstance(block, Table)]
    assert len(table.rows) == 2 * SEEDS_OF_INPUTS
    kept = {(drawn.kind, str(drawn.seed)): drawn.extract for drawn in StudyFolder(folder).inputs()}
    assert len(kept) == 8
    for _, kind, seed, extract in table.rows:
        assert kept[kind, seed] == extract
    assert any("2 more are in the folder" in block.text for block in found if isinstance(block, Paragraph))


def test_what_was_run_names_corpora_with_digests_and_versions(page, folder):
    found = under(page, "What was run")
    (table,) = [block for block in found if isinstance(block, Table)]
    results = al.Results.load(folder)
    for row, group in zip(table.rows, results.groups, strict=True):
        facts = results.facts(group)
        assert facts["evaluate"]["digest"][:12] in row[3]
        assert facts["collect"]["digest"][:12] in row[2]
        assert row[4] == f"{facts['predictions']:,}"
    text = " ".join(block.text for block in found if isinstance(block, Paragraph))
    assert f"torch {facts['versions']['torch']}" in text


def test_zero_mean_and_peak_can_be_read_from_a_panel_per_model_with_intervals(page, folder):
    (block,) = [block for block in under(page, "Against the best method") if isinstance(block, Figure)]
    results = al.Results.load(folder)
    titles = [note.text for note in block.figure.layout.annotations]
    assert titles == [f"{name}: {what}" for name in results.groups.values() for what in ("top-1", "cross-entropy")]
    summary = results.summary([0.5])
    row = summary[(summary["model"] == "tiny-opt") & (summary["method"] == "zero")].iloc[0]
    panel = titles.index("tiny-opt: cross-entropy") + 1
    (zero,) = [trace for trace in block.figure.data if trace.name == "zero" and trace.yaxis == f"y{panel}"]
    assert zero.y[0] == pytest.approx(row["cross_entropy_to_best"])
    assert zero.y[0] + zero.error_y.array[0] == pytest.approx(row["cross_entropy_high"])


def test_metrics_of_a_users_own_have_their_panels(page, folder):
    found = {block.name: block.figure for block in under(page, "Further metrics") if isinstance(block, Figure)}
    curves = found["metrics-1"]
    assert [note.text for note in curves.layout.annotations][:2] == [
        "tiny-vit: bold &lt;b&gt; &amp; &#36;x&#36;",
        "tiny-vit: KL divergence",
    ]
    # Nobody said what is better for the function, so no method is the best by it.
    assert [note.text for note in found["metrics-1-differences"].layout.annotations] == [
        f"{name}: KL divergence" for name in al.Results.load(folder).groups.values()
    ]


def test_every_seed_is_a_line_and_chance_is_another(page):
    figure = next(block.figure for block in blocks(page, Figure) if block.name == "figure-2")
    names = {trace.name for trace in figure.data}
    assert {"peak, by seed", "chance"} <= names
    levels = {round(float(trace.y[0]), 3) for trace in figure.data if trace.name == "chance"}
    assert {10.0, 2.303} <= levels  # of ten digits; ln 10


def test_the_page_says_when_and_how_and_with_which_seeds(page, folder):
    text = " ".join(block.text for block in blocks(page, Paragraph))
    assert datetime.datetime.now(datetime.UTC).date().isoformat() in text
    assert str(folder) in text
    assert "Seeds of the cells: 1, 2, 3, 4." in text
    code = [block.text for block in under(page, "To do it again") if isinstance(block, Code)]
    assert code[0] == "ablation-lens study study.toml --out runs/again"
    assert "seeds = [1, 2, 3, 4]" in code[1]
    (citation,) = [block.text for block in under(page, "To cite") if isinstance(block, Code)]
    for word in ("Pochinkov", "Pasero", "Shibayama", "2024", "Peak Activation Centering"):
        assert word in citation


def test_the_page_hands_out_its_numbers(page, folder):
    (block,) = blocks(page, Files)
    files = {file.name: file.text for file in block.files}
    frame = al.Results.load(folder).frame
    cells = list(csv.DictReader(io.StringIO(files["cells.csv"])))
    assert [float(row["top1"]) for row in cells] == frame["top1"].tolist()
    assert {"cross_entropy_low", "cross_entropy_high"} <= set(next(csv.reader(io.StringIO(files["summary.csv"]))))
    everything = json.loads(files["results.json"])
    assert [row["cross_entropy"] for row in everything["cells"]] == frame["cross_entropy"].tolist()
    assert everything["cells"][0]["seed"] is None
    (tmp := folder.parent / "study.toml").write_text(files["study.toml"], encoding="utf-8")
    assert al.Study.from_toml(tmp).seeds == (1, 2, 3, 4)


def test_explorer_pages_in_the_folder_are_linked_and_others_can_be_made(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "run")
    name = 'explorer javascript:"<img>.html'
    (copied / name).write_text("a page")
    (copied / "somebody else.html").write_text("not ours")
    found = under(make_report(copied, beside=tmp_path / "elsewhere"), "Every neuron")
    (links,) = [block for block in found if isinstance(block, Links)]
    assert links.items == ((name, "./../run/explorer%20javascript%3A%22%3Cimg%3E.html"),)
    (commands,) = [block.text for block in found if isinstance(block, Code)]
    for line, label in zip(commands.splitlines(), al.Results.load(copied).groups.values(), strict=True):
        assert line.startswith(f"ablation-lens explore {copied}/statistics/")
        assert line.endswith(f"explorer-{label}.html")


def test_a_command_of_the_page_makes_what_the_next_report_links_to(folder, tmp_path, command):
    copied = shutil.copytree(folder, tmp_path / "run")
    (commands,) = [block.text for block in under(make_report(copied), "Every neuron") if isinstance(block, Code)]
    code, _, _ = command(*commands.splitlines()[0].split()[1:])
    assert code == 0
    (links,) = [block for block in under(make_report(copied), "Every neuron") if isinstance(block, Links)]
    assert [text for text, _ in links.items] == [path.name for path in copied.glob("explorer*.html")]


def test_what_failed_and_foreign_names_are_shown_as_text(folder, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    run = StudyFolder(copied)
    for path in (copied / "groups").iterdir():
        values = load_json(path, "run group")
        if values["model"]["name"] == "tiny-opt":
            values["model"]["name"] = HOSTILE
            save_json(path, "run group", values)
    run.record_failure("x" * 24, {"model": HOSTILE, "cell": "peak, 50 %"}, ValueError(f"{HOSTILE} </script>"))
    made, text = write_report(copied)
    written = made.read_text(encoding="utf-8")
    assert made.parent == copied
    assert HOSTILE not in written
    assert "&lt;img src=x onerror=alert(1)&gt;" in written
    assert len(re.findall("</script", written)) == len(re.findall("<script", written))
    assert "ValueError" in text.read_text(encoding="utf-8")
    assert HOSTILE not in text.read_text(encoding="utf-8").replace("\\<", "")


def test_a_damaged_cell_is_named_on_the_page(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "run")
    path = next((copied / "cells").iterdir())
    path.write_bytes(b"half")
    with pytest.warns(UnreadableFile, match=path.name):
        made = make_report(copied)
    (notes,) = [block for block in under(made, "What is missing") if isinstance(block, Notes)]
    assert path.name in notes.lines[0]


DAMAGED = ("cells", "failures", "inputs", "statistics", "studies")


def test_of_a_folder_with_bad_files_the_rest_is_shown_and_each_is_named_once(folder, tmp_path, command):
    copied = shutil.copytree(folder, tmp_path / "run")
    StudyFolder(copied).record_failure("0" * 24, {"model": "tiny-opt"}, ValueError("no such luck"))
    StudyFolder(copied).record_failure("1" * 24, {"model": "tiny-opt"}, ValueError("no such luck"))
    damaged = [min((copied / part).iterdir()) for part in DAMAGED]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UnreadableFile) as said:
        code, out, _ = command("report", copied)
    text = (copied / "report.md").read_text(encoding="utf-8")
    assert (code, "report.html" in out) == (1, True)
    for path in damaged:
        assert sum(path.name in str(warning.message) for warning in said) == 1
        assert text.count(path.stem.replace("_", r"\_")) == 1
    assert "no such luck" in text  # of the failure that can be read
    assert "The statistics cannot be read; what is missing is listed at the end." in text
    for name in ("tiny-opt", "tiny-vit"):
        assert f"## Neurons of {name}" in text
    with pytest.warns(UnreadableFile):
        code, out, _ = command("table", copied)
    assert (code, "Table 2" in out) == (1, True)


def one_group(path, scores, baseline=True):
    """{method: nats} at half, the same in every document and for every seed."""
    run = made_run(path, methods=list(scores))
    group = add_group(run)
    if baseline:
        add_baseline(run, group, [60, 40], [2.0, 1.0])
    for method, loss in scores.items():
        for seed in (1, 2):
            add_cell(run, group, method, 0.5, seed, [30, 20], [loss, loss])
    return make_report(run.path)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"peak": 2.5, "mean": 3.0}, ("peak (+1.00 nats)", "–", "mean (+1.50 nats)")),
        ({"peak": 2.5, "mean": 2.5}, ("peak (+1.00 nats)", "mean", "no difference")),
        ({"peak": 2.5, "mean": 2.5, "zero": 4.0}, ("peak (+1.00 nats)", "mean", "zero (+2.50 nats)")),
        ({"mean": 2.5}, ("mean (+1.00 nats)", "–", "–")),
    ],
)
def test_no_method_is_the_best_and_the_worst(tmp_path, scores, expected):
    (table,) = [block for block in under(one_group(tmp_path / "run", scores), "In short") if isinstance(block, Table)]
    assert table.rows[0][2:] == expected


def test_where_the_baseline_failed_report_and_table_agree(tmp_path):
    """Both show the methods, neither a number that is none."""
    page = one_group(tmp_path / "run", {"peak": 2.5, "mean": 3.0}, baseline=False)
    assert "nan" not in page.markdown()
    assert "| peak (baseline failed) |" in page.markdown()
    assert "**2.50 ± 0.00**" in page.markdown()


def test_a_folder_without_cells_is_refused(tmp_path):
    StudyFolder.create(tmp_path / "run")
    with pytest.raises(AblationLensError, match="no finished cell"):
        make_report(tmp_path / "run")
