"""Names that mean something to a terminal, a page, Markdown or LaTeX: everywhere they are only characters."""

import re
import shutil
import subprocess
import warnings

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from transformers import ViTImageProcessorPil

import ablation_lens as al
from ablation_lens.study.table2 import make_table2
from tests.browser.conftest import opened
from tests.faults.processes_run import done
from tests.tiny_models import BY_NAME

TERMINAL = "\x1b]0;owned\x07\x1b[5;41m\x9b2J"
PAGE = "<img src=x onerror=\"document.title='run'\"><svg onload=alert(1)>"
HOSTILE = f"m{TERMINAL}\nFAKE line\r{PAGE}[bold]$x^2$%{{x}} a|b_c & #~^ \\input `x` *y* \u202etxt"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A model, pictures, statistics, a page, a run and its report, all in folders of such names."""
    folder = tmp_path_factory.mktemp("hostile") / HOSTILE.replace("/", "")
    model, pictures, out = folder / "model" / folder.name, folder / "pictures" / folder.name, folder / "out"
    BY_NAME["vit"].model().save_pretrained(model)
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(model)
    pictures.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (12, 12), (20 * number, 99, 7)).save(pictures / f"{number}{TERMINAL}\n.png")
    with (pictures / "labels.csv").open("w") as file:
        file.write("file,label\n")
        for number in range(12):
            file.write(f'"{number}{TERMINAL}\n.png",{number % 7}\n')
    out.mkdir()
    return {"folder": folder, "model": str(model), "pictures": str(pictures), "out": out}


def commands(made):
    """(what must come of it, arguments), in an order that they need."""
    model, pictures, out = made["model"], made["pictures"], made["out"]
    labels = ["--labels", f"{pictures}/labels.csv"]
    statistics, page, run = (
        str(out / f"s{TERMINAL}.safetensors"),
        str(out / f"p{TERMINAL}.html"),
        str(out / "run\n\x1b[5m"),
    )
    study = ["study", "--model", model, "--image", pictures, *labels, "--method", "zero", "--method", "mean"]
    study += ["--fractions", "0.5", "--seeds", "1,2", "--collect-images", "4", "--evaluate-images", "4"]
    table = ["table", run, "--fractions", "0.5"]
    return [
        (0, ["info", model]),
        (0, ["collect", model, "--corpus", pictures, *labels, "--out", statistics]),
        (0, ["neurons", statistics]),
        (0, ["explore", statistics, "--html", page, "--compare", statistics]),
        (0, [*study, "--out", run]),
        (0, [*table]),
        *((0, [*table, "--format", form]) for form in ("markdown", "latex", "csv")),
        (0, ["export", run, str(out / f"cells{TERMINAL}.csv")]),
        (0, ["report", run, "--out", str(out / f"report{TERMINAL}")]),
        (2, ["info", HOSTILE]),
        (2, ["info", f"./{HOSTILE}".replace(PAGE, "")]),
        (2, ["info", pictures]),
        (2, ["collect", "tiny-vit", "--corpus", HOSTILE, "--out", str(out / "x")]),
        (2, ["collect", "tiny-vit", "--out", f"nowhere/{HOSTILE}"]),
        (2, ["collect", "tiny-vit", "--site", HOSTILE, "--out", str(out / "x")]),
        (2, ["neurons", HOSTILE]),
        (2, ["neurons", f"{pictures}/labels.csv"]),
        (2, ["neurons", statistics, "--sort", HOSTILE]),
        (2, ["neurons", statistics, "--top", HOSTILE]),
        (2, ["explore", statistics, "--html", pictures]),
        (2, ["table", HOSTILE]),
        (2, ["table", run, "--fractions", HOSTILE]),
        (2, ["table", run, "--format", HOSTILE]),
        (2, ["study", "--model", HOSTILE, "--out", str(out / "none")]),
        (2, ["study", "--model", "tiny-vit", "--method", HOSTILE, "--out", str(out / "none")]),
        (2, ["study", "--preset", HOSTILE, "--out", str(out / "none")]),
        (2, ["study", HOSTILE, "--out", str(out / "none")]),
        (2, ["export", run, str(out / f"x.{TERMINAL}")]),
        (2, [HOSTILE]),
        (2, [f"--{HOSTILE}"]),
        (2, ["info", "tiny-vit", HOSTILE]),
    ]


def require_obeyed_nothing(printed):
    """No order of ours reaches the terminal; a line of ours begins no line."""
    assert "\x1b]" not in printed
    assert "\x1b[5" not in printed
    assert "\x07" not in printed
    assert "\x9b" not in printed
    assert "\u202e" not in printed
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)  # rich's own colours
    assert not re.search(r"(?m)^\W*FAKE line", plain), plain[:2000]
    assert "\x1b" not in plain


@pytest.fixture(scope="module")
def printed(hostile, tmp_path_factory):
    planned = commands(hostile)
    ended = done(tmp_path_factory.mktemp("work"), [{"arguments": arguments} for _, arguments in planned])
    return list(zip(planned, ended, strict=True))


def test_a_terminal_is_told_nothing(printed, tally):
    counted = tally("hostile names: terminal")
    for (code, arguments), end in printed:
        with counted.attempt(f"{arguments[0][:20]!r} {[argument[:20] for argument in arguments[1:]]}"):
            assert end["code"] == code, f"{end['code']}: {end['printed'][-800:]!r}"
            require_obeyed_nothing(end["printed"])
            assert "Traceback" not in end["printed"]
            if code == 2 and "Usage" not in end["printed"]:
                # What was begun is said before, on lines that end in dots.
                said = [line for line in end["printed"].strip().splitlines() if not line.rstrip().endswith(" …")]
                assert len(said) == 1, end["printed"]


def test_the_check_notices_an_order():
    for order in ("\x1b]0;owned\x07", "\x1b[5;41mblinks", "error: no folder 'm\nFAKE line'", "\x1b7"):
        with pytest.raises(AssertionError):
            require_obeyed_nothing(order)


@pytest.mark.browser
def test_a_browser_runs_nothing(printed, hostile, chromium, tally):
    counted = tally("hostile names: pages")
    pages = sorted(hostile["out"].rglob("*.html"))
    assert len(pages) == 2
    for path in pages:
        plain = hostile["out"] / "page.html"
        shutil.copy(path, plain)
        with counted.attempt(path.name), opened(chromium, plain.as_uri()) as page:
            page.wait_for_timeout(500)
            assert page.title() != "run"
            assert page.evaluate("document.querySelectorAll('img[src=x], svg[onload]').length") == 0
        plain.unlink()


def table_of(hostile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_table2(al.Results.load(next(hostile["out"].glob("run*"))), [0.5])


def test_markdown_shows_characters(printed, hostile, tally):
    counted = tally("hostile names: Markdown")
    (report,) = hostile["out"].rglob("report.md")
    for text in (report.read_text(), table_of(hostile).markdown()):
        with counted.attempt(text[:20]):
            assert all(letter.isprintable() or letter == "\n" for letter in text)
            made = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
            assert not re.search(r"<(img|svg|script)", made)
            assert "onerror" in made, "the name is not there at all"


def test_latex_compiles(printed, hostile, tally, tmp_path):
    latex = shutil.which("pdflatex") or shutil.which("tectonic")
    if latex is None:
        pytest.skip("no TeX is at hand: that the table of hostile names compiles was not tried")
    rules = "".join(rf"\newcommand\{name}{{\hline}}" for name in ("toprule", "midrule", "bottomrule"))
    preamble = r"\documentclass{article}\usepackage[T1]{fontenc}"  # and booktabs, which not every TeX has
    preamble += rf"\IfFileExists{{booktabs.sty}}{{\usepackage{{booktabs}}}}{{{rules}}}\begin{{document}}"
    (tmp_path / "table.tex").write_text(f"{preamble}\n{table_of(hostile).latex()}\n\\end{{document}}\n")
    with tally("hostile names: LaTeX").attempt("table"):
        made = subprocess.run(
            [latex, "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout[-1500:]
