"""The explorer as a person uses it: clicks, keys, links, downloads. Times are printed, never asserted."""

import csv
import io
import time

import pytest
import torch

from ablation_lens.explorer import explore
from ablation_lens.sites import Site, neuron_name, parse_neuron
from tests.browser.conftest import XSS, opened, until
from tests.made_curves import curves_of
from tests.made_effects import effects_of
from tests.synthetic_statistics import draw, large_statistics, statistics_of

SWITCH = """async (key) => {
    const root = document.documentElement;
    const times = [];
    for (let i = 0; i < 20; i++) {
        const before = root.dataset.shown;
        const start = performance.now();
        const done = new Promise((resolve) => {
            const watch = new MutationObserver(() => {
                if (root.dataset.shown === before) return;
                watch.disconnect();
                resolve();
            });
            watch.observe(root, { attributes: true });
        });
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        await done;
        times.push(performance.now() - start);
        // A frame between two keys, as between those of a person; drawing it counts.
        await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    }
    return times;
}"""


def shown(page):
    return page.locator("#name").inner_text()


def row(page, name):
    return page.locator(f'#list [data-neuron="{name}"]')


def fragment(page):
    return page.evaluate("decodeURIComponent(location.hash)")


def bar_count(page):
    return page.evaluate("document.getElementById('histogram').data[0].x.length")


def plotted_peak(page, statistics, name, width):
    """The peak on the page at a width, and Python's."""
    text = page.locator("#widths tbody tr", has_text=f"≤ {width}").first.get_attribute("data-peak")
    return float(text), statistics.center("peak", bins=width)[parse_neuron(name)].item()


def test_it_opens_on_the_most_striking_neuron(visit, zoo):
    path, statistics, _ = zoo
    table = statistics.table().sort_values("peak_over_sigma", ascending=False, kind="stable")
    with visit(path) as page:
        assert shown(page) == table.index[0]
        assert page.locator("#model").inner_text() == "tiny-opt"
        assert page.locator("#found").inner_text() == "512 neurons"
        names = page.locator("#list .row").evaluate_all("rows => rows.map(row => row.dataset.neuron)")
        assert names[:8] == list(table.index[:8])
        assert page.locator("#label").inner_text() == table["shape"].iloc[0]


def test_the_list_sorts_filters_and_chooses(visit, zoo):
    path, statistics, _ = zoo
    table = statistics.table()
    with visit(path) as page:
        page.locator('#columns [data-by="std"]').click()
        by_sigma = table.sort_values("std", ascending=False, kind="stable").index
        assert page.locator("#list .row").first.get_attribute("data-neuron") == by_sigma[0]
        page.locator('#columns [data-by="std"]').click()
        assert page.locator("#list .row").first.get_attribute("data-neuron") == by_sigma[-1]
        page.fill("#filter", "L2 peak/σ>0.5")
        wanted = table[(table["layer"] == 2) & (table["peak_over_sigma"] > 0.5)]
        until(page, f"document.getElementById('found').textContent.startsWith('{len(wanted)} of 512')")
        second = wanted.sort_values("std").index[1]
        row(page, second).click()
        until(page, f"document.getElementById('name').textContent === '{second}'")
        page.fill("#filter", "")
        word, number = next(iter(table["shape"].value_counts().items()))
        page.select_option("#shape", word)
        assert page.locator("#found").inner_text() == f"{number} of 512 neurons"


def test_the_heat_map_drills_to_dims(visit, zoo):
    path, _, _ = zoo
    with visit(path) as page:
        plot = page.locator("#heatmap .nsewdrag").first.bounding_box()

        def click(column, row_, columns, rows):
            x = plot["x"] + plot["width"] * (column + 0.5) / columns
            y = plot["y"] + plot["height"] * (row_ + 0.5) / rows
            page.mouse.move(x - 3, y)
            page.mouse.move(x, y)
            page.wait_for_timeout(100)
            page.mouse.click(x, y)

        click(3, 2, 4, 4)
        until(page, "document.getElementById('crumb').textContent === '› L2.H3'")
        page.wait_for_timeout(100)
        plot = page.locator("#heatmap .nsewdrag").first.bounding_box()
        click(5, 1, 8, 4)
        until(page, "document.getElementById('name').textContent === 'L2.H3.D13'")
        # The list shows the same head, and going back in either shows all again in both.
        assert page.input_value("#filter") == "L2.H3"
        assert page.locator("#found").inner_text() == "32 of 512 neurons"
        page.click("#all-heads")
        until(page, "document.getElementById('crumb').textContent === ''")
        assert page.input_value("#filter") == ""
        assert page.locator("#found").inner_text() == "512 neurons"
        page.fill("#filter", "gaussian L1.H0")
        until(page, "document.getElementById('crumb').textContent === '› L1.H0'")
        page.fill("#filter", "gaussian")
        until(page, "document.getElementById('crumb').textContent === ''")
        page.select_option("#measure", "shape:off-zero")
        assert "map=shape:off-zero" in fragment(page)


def test_the_keyboard_does_everything(visit, zoo):
    path, _, _ = zoo
    with visit(path) as page:
        order = page.locator("#list .row").evaluate_all("rows => rows.map(row => row.dataset.neuron)")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        until(page, f"document.getElementById('name').textContent === '{order[1]}'")
        page.keyboard.press("ArrowRight")
        layer, head, dim = parse_neuron(order[1])
        beside = neuron_name(layer, head, dim + 1)
        until(page, f"document.getElementById('name').textContent === '{beside}'")
        page.keyboard.press("l")
        until(page, "document.getElementById('histogram').layout.yaxis.type === 'log'")
        page.keyboard.press("p")
        assert page.locator("#pin").get_attribute("aria-pressed") == "true"
        page.keyboard.press("[")
        until(page, "document.getElementById('bins').textContent === '≤ 64'")
        page.keyboard.press(".")
        assert "bin=" in fragment(page)
        page.keyboard.press("Escape")
        assert "bin=" not in fragment(page)
        page.keyboard.press("h")
        until(page, f"document.getElementById('crumb').textContent === '› {beside.rpartition('.')[0]}'")
        page.keyboard.press("h")
        until(page, "document.getElementById('crumb').textContent === ''")
        # What is drawn anew keeps the focus, and a menu that closes gives it back.
        page.locator("#line-median").focus()
        page.keyboard.press("Space")
        until(page, "!document.getElementById('line-median').checked")
        assert page.evaluate("document.activeElement.id") == "line-median"
        page.locator("#syntax-menu summary").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.parentElement.id") == "syntax-menu"
        page.keyboard.press("/")
        page.keyboard.type("L3 p")  # letters typed into the filter are not commands
        until(page, "document.getElementById('found').textContent.includes('of 512')")
        assert page.locator("#pin").get_attribute("aria-pressed") == "true"
        page.keyboard.press("ArrowDown")
        until(page, "document.getElementById('name').textContent.startsWith('L3.')")


def test_a_link_opens_the_same_view(visit, zoo):
    path, statistics, _ = zoo
    with visit(path, "#n=L2.H1.D7&bins=32&log=1&pins=L0.H0.D1+L3.H3.D31&sort=std&q=L2&theme=dark") as page:
        assert shown(page) == "L2.H1.D7"
        assert page.locator("#bins").inner_text() == "≤ 32"
        assert page.input_value("#filter") == "L2"
        assert page.locator("#legend li").count() == 4  # this, the comparison, two pins
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        # Bars, the comparison and two pins; the axis is logarithmic.
        assert page.evaluate("document.getElementById('histogram').data.length") == 4
        first = fragment(page)
        page.locator('#list [data-neuron="L2.H1.D7"] + .row').click()  # in sight: scrolling makes the rows anew
        until(page, "document.getElementById('name').textContent !== 'L2.H1.D7'")
        assert fragment(page) != first
        page.evaluate("location.hash = 'n=L1.H1.D1&bins=16'")
        until(page, "document.documentElement.dataset.shown === 'L1.H1.D1 16'")
        assert plotted_peak(page, statistics, "L1.H1.D1", 16)[0] == plotted_peak(page, statistics, "L1.H1.D1", 16)[1]


def test_the_slider_moves_the_peak_as_python_does(visit, zoo):
    path, statistics, _ = zoo
    with visit(path, "#n=L2.H1.D7") as page:
        for place, width in enumerate((8, 16, 32, 64, 128)):
            page.locator("#width").fill(str(place))
            until(page, f"document.documentElement.dataset.shown === 'L2.H1.D7 {width}'")
            on_page, in_python = plotted_peak(page, statistics, "L2.H1.D7", width)
            assert on_page == in_python
            assert bar_count(page) <= width
            line = page.evaluate(
                "document.getElementById('histogram').layout.shapes.filter(s => s.line.width > 2.2).map(s => s.x0)"
            )
            assert line == [in_python]
        # As wide as at the start, and every center's value beside it.
        for center in ("mean", "median", "peak-kde"):
            cell = page.locator(f'#centers tr[data-center="{center}"] td').first.inner_text().replace("−", "-")
            assert float(cell) == pytest.approx(statistics.center(center)[2, 1, 7].item(), rel=1e-3)


def test_pins_lines_log_and_overlay_are_buttons_too(visit, zoo):
    path, _, _ = zoo
    traces = "document.getElementById('histogram').data.length"
    with visit(path, "#n=L0.H0.D0") as page:
        assert page.evaluate(traces) == 2
        page.click("#overlay")
        until(page, f"{traces} === 1")
        page.click("#pin")
        page.locator("#list .row").nth(2).click()
        until(page, f"{traces} === 2")
        assert "L0.H0.D0" in page.locator("#legend").inner_text()
        page.click("#legend .close")
        until(page, f"{traces} === 1")
        page.click("#log")
        until(page, "document.getElementById('histogram').layout.yaxis.type === 'log'")
        lines = "document.getElementById('histogram').layout.annotations.map(a => a.text)"
        assert "median" in page.evaluate(lines)
        page.locator('#centers label[for="line-median"]').click()
        until(page, f"!{lines}.includes('median')")


def test_a_click_on_a_bin_lists_its_examples(visit, zoo):
    path, _, found = zoo
    name, contexts = next(iter(found.items()))
    with visit(path, f"#n={name}&bins=8") as page:
        assert page.locator("#examples li").count() == len(contexts)
        plot = page.locator("#histogram .nsewdrag").first.bounding_box()
        page.mouse.move(plot["x"] + plot["width"] * 0.5 - 4, plot["y"] + plot["height"] * 0.6)
        page.mouse.move(plot["x"] + plot["width"] * 0.5, plot["y"] + plot["height"] * 0.6)
        page.wait_for_timeout(150)
        assert "approximate count" in page.locator("#histogram .hoverlayer").text_content()
        page.mouse.click(plot["x"] + plot["width"] * 0.5, plot["y"] + plot["height"] * 0.6)
        until(page, "document.getElementById('examples-title').textContent.includes(' to ')")
        low, high = page.evaluate(
            """() => {
                const bars = document.getElementById('histogram').data[0];
                const chosen = bars.marker.color.findIndex((color) => color !== bars.marker.color[0]);
                const place = chosen < 0 ? 0 : chosen;
                return [bars.x[place] - bars.width / 2, bars.x[place] + bars.width / 2];
            }"""
        )
        inside = [context.value for context in contexts if low <= context.value < high]
        listed = page.locator("#examples li .value").all_inner_texts()
        listed = [float(text.replace("−", "-")) for text in listed]
        if inside:
            assert listed == [pytest.approx(value, rel=1e-3) for value in inside]
        else:
            assert "nearest" in page.locator("#examples").inner_text()
        page.click("#all-examples")
        assert page.locator("#examples li").count() == len(contexts)
        assert page.locator("#examples mark").count() == len(contexts)


def test_outside_text_stays_text(visit, zoo):
    """A token, a document, a file and a corpus, all named like an attack; the title must not have become 1."""
    path, _, found = zoo
    with visit(path, f"#n={next(iter(found))}") as page:
        page.wait_for_timeout(300)
        assert page.locator("#examples mark").last.inner_text() == XSS
        assert XSS in page.locator("#legend").inner_text()
        assert XSS in page.locator("#corpus").locator("xpath=..").evaluate("label => label.textContent")
        page.locator("summary", has_text="About").click()
        assert XSS in page.locator("#provenance").inner_text()
        page.locator("#examples button.link").first.click()
        until(page, "!document.getElementById('text-card').hidden")
        assert XSS in page.locator("#text").text_content()
        page.fill("#note", XSS)
        page.fill("#filter", XSS)
        assert XSS.replace(" ", "") in page.locator("#found").inner_text().replace(" ", "")
        page.evaluate("text => { location.hash = `x=${encodeURIComponent(text)}` }", XSS)
        until(page, "!document.getElementById('bad-link').hidden")
        assert XSS in page.locator("#bad-link").inner_text()
        assert page.evaluate("document.querySelectorAll('img').length") == 0
        assert page.title() == "tiny-opt – ablation-lens explorer"


def test_nothing_but_the_pages_scripts_can_run_or_load(visit, zoo):
    """The policy holds even against a hole in the page: markup put in by force neither runs nor loads."""
    path, _, _ = zoo

    def break_in():
        with visit(path) as page:
            for markup in (
                '<img src="https://example.invalid/x.png">',
                '<img src="data:," onerror="document.title=1">',
            ):
                page.evaluate("markup => document.body.insertAdjacentHTML('beforeend', markup)", markup)
            page.wait_for_timeout(300)
            assert page.title() == "tiny-opt – ablation-lens explorer"

    # The check that watches every page notices, too.
    with pytest.raises(AssertionError, match="Content Security Policy"):
        break_in()


def test_downloads(visit, zoo):
    path, statistics, _ = zoo
    with visit(path, "#n=L1.H2.D3&bins=32") as page:
        texts = {}
        for kind in ("csv", "png", "svg"):
            page.locator("#export summary").click()
            with page.expect_download() as event:
                page.click(f"#{kind}")
            assert event.value.suggested_filename == f"collect-L1.H2.D3.{kind}"
            texts[kind] = event.value.path().read_bytes()
            page.keyboard.press("Escape")
    rows = list(csv.DictReader(io.StringIO(texts["csv"].decode())))
    coarse = statistics.histogram.coarsen(32)
    counts = coarse.counts((1, 2, 3))
    counts = counts[: int(counts.nonzero().max()) + 1]
    assert [float(row["bin_low"]) for row in rows] == coarse.edges((1, 2, 3))[: len(counts)].tolist()
    for row_, count in zip(rows, counts.tolist(), strict=True):
        assert abs(float(row_["approximate_count"]) - count) <= count / 128
    assert texts["png"].startswith(b"\x89PNG")
    assert texts["svg"].startswith(b"<svg")


def test_the_list_as_csv(visit, zoo):
    path, statistics, _ = zoo
    table = statistics.table()
    with visit(path, "#q=L2+peak/σ>0.5&sort=std") as page:
        page.locator("#note").fill("watch this")
        with page.expect_download() as event:
            page.click("#list-csv")
        assert event.value.suggested_filename == "collect-neurons.csv"
        rows = list(csv.DictReader(io.StringIO(event.value.path().read_text())))
        first = shown(page)
    wanted = table[(table["layer"] == 2) & (table["peak_over_sigma"] > 0.5)].sort_values("std", kind="stable")
    assert [row_["neuron"] for row_ in rows] == list(wanted.index)
    for name in ("mean", "std", "peak", "median", "max"):
        assert [float(row_[name]) for row_ in rows] == pytest.approx(list(wanted[name]), rel=1e-6)
    assert [row_["note"] for row_ in rows if row_["neuron"] == first] == ["watch this"]


def test_a_comparison_is_sorted_by_what_moved(visit, zoo):
    path, statistics, _ = zoo
    with visit(path) as page:
        moved = page.locator('#columns [data-by="moved_over_sigma"]')
        moved.click()
        numbers = page.locator('#list [data-by="moved_over_sigma"]').all_inner_texts()[:8]
        assert [float(text) for text in numbers] == sorted(map(float, numbers), reverse=True)
        page.locator('#columns [data-by="overlap"]').click()
        numbers = page.locator('#list [data-by="overlap"]').all_inner_texts()[:8]
        assert [float(text) for text in numbers] == sorted(map(float, numbers))
        # Both collections' centers, and how far each moved.
        titles = page.locator("#centers thead th").all_inner_texts()
        assert titles == ["center", "collect", "from μ, σ", XSS, "moved, σ"]
        one, _, two, away = page.locator('#centers tr[data-center="mean"] td').all_inner_texts()
        one, two, away = (float(text.replace("−", "-")) for text in (one, two, away))
        sigma = statistics.std[parse_neuron(shown(page))].item()
        assert away == pytest.approx((two - one) / sigma, abs=2e-2 / sigma * abs(one) + 1e-3)


def test_a_seventh_pin_is_refused(visit, zoo):
    path, _, _ = zoo
    six = "+".join(f"L0.H0.D{dim}" for dim in range(6))
    with visit(path, f"#n=L1.H0.D0&pins={six}") as page:
        page.click("#pin")
        assert "unpin one first" in page.locator("#said").inner_text()
        assert page.locator("#pin").get_attribute("aria-pressed") == "false"
        assert page.locator("#legend .close").count() == 6
        page.locator("#legend .close").first.click()
        until(page, "document.querySelectorAll('#legend .close').length === 5")
        assert page.locator("#said").inner_text() == ""
        page.click("#pin")
        until(page, "document.getElementById('pin').getAttribute('aria-pressed') === 'true'")


def test_a_bad_link_says_so(visit, zoo):
    path, _, _ = zoo
    with visit(path, "#n=L9.H0.D0&bins=32&sort=beauty") as page:
        assert "n=L9.H0.D0" in page.locator("#bad-link").inner_text()
        assert "sort=beauty" in page.locator("#bad-link").inner_text()
        assert page.locator("#bins").inner_text() == "≤ 32"
        page.click("#close-bad-link")
        assert page.locator("#bad-link").is_hidden()
    with visit(path, "#n=L2.H0.D0") as page:
        assert page.locator("#bad-link").is_hidden()


def test_an_unknown_word_is_marked_and_the_syntax_is_at_hand(visit, zoo):
    path, _, _ = zoo
    with visit(path, "#q=L2+bananas") as page:
        assert page.locator("#found mark").all_inner_texts() == ["bananas"]
        assert page.locator("#filter").get_attribute("aria-invalid") == "true"
        assert page.locator("#list .row").count() == 0
        examples = page.locator("#syntax button").count()
        assert examples > 6
        for number in range(examples):
            page.click("#syntax-menu summary")
            page.locator("#syntax button").nth(number).click()
            assert page.locator("#found mark").count() == 0, page.input_value("#filter")


def test_a_text_is_coloured_token_by_token(visit, zoo):
    path, _, found = zoo
    name, contexts = next(iter(found.items()))
    with visit(path, f"#n={name}") as page:
        page.locator("#examples button.link").first.click()
        until(page, "!document.getElementById('text-card').hidden")
        chosen = contexts[0]
        read = page.locator("#text-read")
        assert f"position {chosen.position} ·" in read.inner_text()
        value = float(read.inner_text().split(" · ")[2].split(" ")[0].replace("−", "-"))
        assert value == pytest.approx(chosen.value, rel=1e-3)
        # The arrow keys go along the text, and not along the list.
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert "position 1 ·" in read.inner_text()
        assert shown(page) == name
        colors = page.locator("#text .token").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
        assert len(set(colors)) > 5
        assert f"text={chosen.document}" in fragment(page)
        page.keyboard.press("Escape")
        assert page.locator("#text-card").is_hidden()
        assert page.evaluate("document.activeElement.dataset.document") == str(chosen.document)
        page.keyboard.press("ArrowDown")
        until(page, f"document.getElementById('name').textContent !== '{name}'")
    with visit(path, f"#n={name}&text={chosen.document}") as page:
        until(page, "!document.getElementById('text-card').hidden")
    with visit(path, f"#n={name}&text=99999") as page:
        until(page, "document.getElementById('text-title').textContent.startsWith('No whole text')")


def test_output_tokens_say_that_they_are_approximate(visit, zoo):
    path, _, _ = zoo
    with visit(path, "#n=L3.H1.D7") as page:
        until(page, "document.querySelectorAll('#promoted li').length === 10")
        assert page.locator("#suppressed li").count() == 10
        assert "approximate" in page.locator("#outputs-card").inner_text()
        effects = page.locator("#suppressed li .quiet").all_inner_texts()
        assert all(text.startswith("−") for text in effects)


def test_notes_are_kept_and_exported(visit, zoo, tmp_path):
    path, _, _ = zoo
    with visit(path, "#n=L1.H2.D3") as page:
        page.fill("#note", "closes brackets")
        page.fill("#filter", "notes")
        assert page.locator("#found").inner_text() == "1 of 512 neurons"
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        assert page.input_value("#note") == "closes brackets"
        page.fill("#filter", '"brackets"')
        assert row(page, "L1.H2.D3").locator(".has-note").count() == 1
        with page.expect_download() as event:
            page.click("#export-notes")
        assert event.value.path().read_text() == "neuron,note\nL1.H2.D3,closes brackets\n"
        page.fill("#note", "")
        assert page.locator("#export-notes").is_disabled()


def test_a_page_that_may_not_store_says_so(chromium, zoo, tmp_path):
    """As in a notebook: the frame has no origin, and reading `localStorage` throws."""
    path, _, _ = zoo
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe src="{path.as_uri()}" sandbox="allow-scripts" width="1200" height="800"></iframe>')
    with opened(chromium, outer.as_uri(), offline=False) as page:
        frame = page.frame_locator("iframe")
        frame.locator("html[data-ready=yes]").wait_for(timeout=30_000)
        frame.locator("#note").fill("here")
        assert "export them" in frame.locator("#notes-kept").inner_text()
        first, second = (frame.locator("#list .row").nth(place) for place in (0, 1))
        second.click()
        first.click()
        frame.locator("#list .row").first.locator(".has-note").wait_for()
        assert frame.locator("#problem").is_hidden()


def test_the_damage_is_shown(visit, zoo):
    path, _, _ = zoo
    with visit(path) as page:
        text = page.locator("#damage-table").inner_text()
        assert "peak" in text
        assert "2" in text
        colors = page.evaluate("document.getElementById('damage').data.map(line => line.line.color)")
        assert colors == ["#D55E00", "#000000"]
        page.select_option("#score", "1")
        until(page, "document.getElementById('damage').layout.yaxis.title.text.includes('top-1')")


def test_it_can_be_used_with_a_screen_reader(visit, zoo):
    """Everything that is not text has a name, and what changes is said."""
    path, _, _ = zoo
    with visit(path) as page:
        for selector in ("button", "select", "input", "summary"):
            for control in page.locator(selector).all():
                named = control.evaluate(
                    "e => (e.ariaLabel ?? '') + e.textContent + [...(e.labels ?? [])].map(l => l.textContent)"
                )
                assert named.strip(), control.evaluate("e => e.outerHTML")
        for figure in ("heatmap", "histogram"):
            assert len(page.locator(f"#{figure}").get_attribute("aria-label")) > 20
        assert shown(page) in page.locator("#spoken").text_content()
        chosen = page.locator("#list").get_attribute("aria-activedescendant")
        assert page.locator(f"#{chosen}").get_attribute("data-neuron") == shown(page)


CONTRAST = """element => {
    const parts = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    const brightness = (color) => 0.2126 * light(color[0]) + 0.7152 * light(color[1]) + 0.0722 * light(color[2]);
    let under = element;
    const ground = () => parts(getComputedStyle(under).backgroundColor);
    while ((ground()[3] ?? 1) === 0) under = under.parentElement;
    const both = [parts(getComputedStyle(element).color), ground()].map(brightness).sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_can_be_read_while_the_mouse_is_on_them(visit, zoo, scheme):
    path, _, found = zoo
    # Some pressed, some not; a pin of another neuron has a button of its own.
    with visit(path, f"#n={next(iter(found))}&log=1&pins=L0.H0.D1&head=L1.H1", color_scheme=scheme) as page:
        tried = 0
        for button in page.locator("button:visible, summary:visible").all():
            for act in (lambda: None, button.hover, page.mouse.down):
                act()
                assert button.evaluate(CONTRAST) >= 4.5, (button.evaluate("e => e.outerHTML"), act)
            # Off the button before it is let go, so that nothing is clicked.
            page.mouse.move(2, 2)
            page.mouse.up()
            tried += 1
        assert tried >= 20


WIDTHS = pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (830, "light"), (390, "light"), (390, "dark")])


def size_of(width):
    return {"width": width, "height": 844 if width < 500 else 800}


@WIDTHS
def test_nothing_is_cut_or_overlaps(visit, zoo, width, scheme):
    path, _, _ = zoo
    with visit(path, "#pins=L0.H0.D1", viewport=size_of(width), color_scheme=scheme) as page:
        require_that_nothing_is_cut(page, width)
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.querySelector('.card')).backgroundColor]"
        )
        brightness = [sum(map(int, text[4:-1].split(","))) for text in (ink, paper)]
        assert (brightness[0] > brightness[1]) == (scheme == "dark")


def require_that_nothing_is_cut(page, width):
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for texts in (
        "#histogram .annotation-text",
        "#columns button:visible",
        "#histogram .xtick text",
        "#heatmap .xtick text",
    ):
        boxes = [box for box in (each.bounding_box() for each in page.locator(texts).all()) if box]
        assert boxes
        for number, one in enumerate(boxes):
            assert one["x"] >= 0
            assert one["x"] + one["width"] <= width
            for other in boxes[number + 1 :]:
                apart_x = one["x"] + one["width"] <= other["x"] + 1 or other["x"] + other["width"] <= one["x"] + 1
                apart_y = one["y"] + one["height"] <= other["y"] + 2 or other["y"] + other["height"] <= one["y"] + 2
                assert apart_x or apart_y, (texts, one, other)
    right = "e => { const box = e.getBoundingClientRect(); return box.left + box.width }"
    edge = page.locator("#list-card").evaluate(right)
    for cell in page.locator("#columns button:visible, #list .row:first-child span:visible").all():
        assert cell.evaluate(right) <= edge
        assert cell.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), cell.text_content()


@pytest.fixture(scope="module")
def worth(tmp_path_factory):
    """Two pages of a model whose heads' and neurons' effects are known; on the second beside a comparison."""
    folder = tmp_path_factory.mktemp("worth")
    statistics, second = (statistics_of(draw(300, (3, 2, 8), seed=seed)) for seed in (0, 1))
    heads = effects_of({Site.Z: torch.tensor([[-1.0, 0.5], [-2.0, 0.0], [0.1, -0.0123]])})
    explore(statistics, html=folder / "heads.html", effects=heads, progress=False)
    neurons = effects_of({Site.Z: torch.linspace(-0.5, 0.5, 48).view(3, 2, 8)}, level="neuron", method="integrated")
    explore(statistics, html=folder / "neurons.html", effects=neurons, compare=second, progress=False)
    return folder


def test_effects_are_what_the_list_and_the_map_begin_with(visit, worth):
    with visit(worth / "heads.html") as page:
        assert shown(page) == "L1.H0.D0"
        assert page.locator("#columns [data-by=head_effect_share]").inner_text() == "head's effect"
        assert row(page, "L1.H0.D0").locator("[data-by=head_effect_share]").inner_text() == "50 %"
        assert "head's effect" in page.locator("#numbers").inner_text()
        assert "−2 (50 %)" in page.locator("#numbers").inner_text()
        assert page.locator("#measure").input_value() == "head_effect_share"
        assert "knockout of heads" in page.locator("#provenance").text_content()
        page.locator("#columns [data-by=head_effect_share]").click()
        assert page.locator("#list .row").first.locator("[data-by=head_effect_share]").inner_text() == "−12.5 %"
    with visit(worth / "neurons.html") as page:
        assert shown(page) == "L0.H0.D0"
        assert row(page, "L0.H0.D0").locator("[data-by=effect_share]").inner_text() == "12.5 %"


@pytest.mark.parametrize(
    ("name", "width"),
    [("heads", 1280), ("heads", 390), ("neurons", 1280), ("neurons", 830)],
)
def test_effects_have_room_at_every_width(visit, worth, name, width):
    with visit(worth / f"{name}.html", viewport=size_of(width)) as page:
        require_that_nothing_is_cut(page, width)


def test_a_curve_lies_under_the_histogram_of_its_neuron(visit, tmp_path):
    statistics = statistics_of(draw(300, (3, 2, 8)))
    curves = curves_of([0.5, -9.0], source=statistics.provenance.model)
    explore(statistics, html=tmp_path / "curves.html", curves=curves, progress=False)
    with visit(tmp_path / "curves.html", "#n=L0.H0.D0") as page:
        assert "1.25 (0.5 σ)" in page.locator("#numbers").inner_text()
        page.locator("#filter").fill("curves")
        until(page, "document.getElementById('found').textContent.startsWith('2 of 48')")
        row(page, "L1.H0.D0").click()
        until(page, "document.getElementById('numbers').textContent.includes('≤ −7.75 (−4 σ)')")
        assert page.evaluate("document.getElementById('histogram').layout.yaxis2.domain[1]") < 0.5
        page.keyboard.press("ArrowRight")  # a neuron that has none
        until(page, "document.getElementById('histogram').layout.yaxis2 === undefined")
        assert "least loss" not in page.locator("#numbers").inner_text()


@pytest.mark.parametrize(
    "layers",
    [3, pytest.param(24, marks=pytest.mark.slow)],  # 24 is OPT-1.3B
)
def test_a_page_of_thousands_of_neurons(visit, layers, tmp_path, capsys):
    path, statistics = tmp_path / "large.html", large_statistics((layers, 32, 64))
    explore(statistics, html=path, progress=False)
    neurons, last = f"{layers * 2048:,}".replace(",", "\u202f"), f"L{layers - 1}.H31.D63"
    size = path.stat().st_size / 1e6
    assert size <= 15 * layers / 24 + 4.9
    start = time.perf_counter()
    with visit(path) as page:
        opened = time.perf_counter() - start
        painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime") or 0
        ready = page.evaluate("performance.now()")
        assert page.locator("#found").inner_text() == f"{neurons} neurons"
        assert page.locator("#list .row").count() < 60
        down, right = page.evaluate(SWITCH, "ArrowDown"), page.evaluate(SWITCH, "ArrowRight")
        page.evaluate(f"location.hash = 'n={last}&bins=64'")
        until(page, f"document.documentElement.dataset.shown === '{last} 64'")
        on_page, in_python = plotted_peak(page, statistics, last, 64)
        assert on_page == in_python
        page.fill("#filter", "multi-modal peak/σ>0.5")
        table = statistics.table()
        number = int(((table["shape"] == "multi-modal") & (table["peak_over_sigma"] > 0.5)).sum())
        until(page, f"document.getElementById('found').textContent.replaceAll('\\u202f', '').startsWith('{number} of')")
    with capsys.disabled():
        print(
            f"\n{neurons} neurons: {size:.1f} MB with Plotly; first paint {painted / 1e3:.2f} s, all drawn by "
            f"{min(opened, ready / 1e3):.2f} s; switching along the list {sorted(down)[10]:.0f} ms (worst "
            f"{max(down):.0f}), within a head {sorted(right)[10]:.0f} ms (worst {max(right):.0f})"
        )
