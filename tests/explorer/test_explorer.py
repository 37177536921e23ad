"""What the explorer's page is made of: packed counts, embedded text, contexts, damage."""

import base64
import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.explorer import explore, page
from ablation_lens.explorer.dataset import pack_dataset
from ablation_lens.explorer.moved import OVERLAP_BINS, moved_over_sigma, overlap
from ablation_lens.explorer.packing import (
    FEWEST_DIGITS,
    byte_planes,
    code_planes,
    merge_shifts,
    pack_counts,
    slider_widths,
    unpack_counts,
    zero_merges,
)
from ablation_lens.measure.contexts import Example, striking_neurons
from ablation_lens.neurons.grid import Grid
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.peaks import naive_peak
from ablation_lens.palette import DARK_METHOD_COLORS, METHOD_COLORS
from tests.pages import payload_of
from tests.synthetic_statistics import draw, statistics_of, study_results


@pytest.fixture(scope="module")
def statistics():
    return statistics_of(draw(500, (2, 2, 4)))


# ------------------------------------------------------------------ packing


def peak_by_hand(counts, offset, width):
    """The fullest bin after merging neighbours on the absolute grid, by a plain dictionary."""
    used = max(i for i, count in enumerate(counts) if count)
    shift = 0
    while ((offset + used) >> shift) - (offset >> shift) >= width:
        shift += 1
    merged = {}
    for i, count in enumerate(counts):
        merged[(offset + i) >> shift] = merged.get((offset + i) >> shift, 0) + count
    most = max(merged.values())
    return min(cell for cell, count in merged.items() if count == most), shift


near_ties = st.integers(0, 2**40).flatmap(lambda base: st.lists(st.integers(base, base + 3), min_size=2, max_size=128))
any_counts = st.lists(st.integers(0, 2**50) | st.integers(0, 300), min_size=2, max_size=128)


@settings(max_examples=300)
@given(st.one_of(any_counts, near_ties), st.integers(-(2**24), 2**24))
def test_rounding_keeps_the_peak_at_every_width(counts, offset):
    counts = [*counts, 1]
    exact, start = torch.tensor([counts]), torch.tensor([offset])
    widths = slider_widths(len(counts))
    codes, digits = pack_counts(exact, start, widths)
    rounded = unpack_counts(codes, digits)[0]
    for width in widths:
        assert peak_by_hand(rounded.tolist(), offset, width) == peak_by_hand(counts, offset, width)
    assert ((rounded - exact[0]).abs() <= exact[0] / 2.0**FEWEST_DIGITS).all()
    assert torch.equal(rounded == 0, exact[0] == 0)


def test_seven_digits_alone_would_move_peaks():
    """The refinement is needed: a hundred thousand values make ties that rounding decides the wrong way."""
    counts = torch.tensor([[1025, 1030, 0, 0], [1 << 40, (1 << 40) + 1, 3, 0]])
    offset = torch.tensor([0, 0])
    codes, digits = pack_counts(counts, offset, (4, 2))
    assert unpack_counts(codes, digits).argmax(-1).tolist() == [1, 1]
    assert digits.tolist() == [8, 40]  # 2^40 + 1 rounds up


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=60),
    st.sampled_from([2, 4, 100, 128, 256]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_widths_are_those_of_the_peak_center(values, bins, resolution):
    histogram = NeuronHistogram((1, 1, 1), bins, resolution=resolution)
    histogram.update(torch.tensor(values).to(resolution).view(-1, 1, 1, 1))
    fine = histogram.coarsen(slider_widths(bins)[0])
    counts, offset = fine.counts((0, 0, 0)), fine.offset.item()
    merges = zero_merges(counts[None], fine.offset.flatten(), fine.zeros.flatten()).item()
    for width in slider_widths(bins):
        cell, shift = peak_by_hand(counts.tolist(), offset, width)
        assert merge_shifts(counts[None], fine.offset.flatten(), width).item() == shift
        low, high = fine.minimum.item(), fine.maximum.item()
        middle = 0.0 if shift < merges else math.ldexp(cell + 0.5, int(fine.exponent.item()) + shift)
        expected = low if low == high else middle
        assert naive_peak(histogram, width).item() == expected


def test_planes_hold_every_byte():
    values = np.array([0.1, -3e9, 5e-324])
    planes = np.frombuffer(byte_planes(values), "u1").reshape(8, 3)
    assert np.array_equal(np.ascontiguousarray(planes.T).view("<f8")[:, 0], values)
    codes = torch.tensor([[0, 255], [256, 70_000]])
    data, number = code_planes(codes)
    assert number == 3
    read = np.frombuffer(data, "u1").reshape(3, 4).astype(int)
    assert (read[0] + 256 * read[1] + 65536 * read[2]).tolist() == [0, 255, 256, 70_000]


# ------------------------------------------------------------------ comparing


def test_what_moved_is_measured_against_both_spreads():
    one, two = draw(4000, (1, 2, 8)), draw(4000, (1, 2, 8), seed=5) + 1
    moved = moved_over_sigma(statistics_of(one), statistics_of(two))
    sigma = ((one.double().var(0, correction=0) + two.double().var(0, correction=0)) / 2).sqrt()
    torch.testing.assert_close(moved, (one.double().mean(0) - two.double().mean(0)).abs() / sigma)
    same = statistics_of(torch.full((9, 1, 2, 8), 3.0))
    assert moved_over_sigma(same, same).max() == 0
    assert moved_over_sigma(same, statistics_of(torch.full((9, 1, 2, 8), 4.0))).min() == math.inf


@settings(max_examples=100)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=40),
    st.lists(st.integers(-40, 40), min_size=1, max_size=40),
    st.sampled_from([8, 100, 256]),
)
def test_the_overlap_is_that_of_shares_on_one_grid(first, second, bins):
    one, two = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1) / 4 for values in (first, second))
    found = overlap(statistics_of(one, bins).histogram, statistics_of(two, bins).histogram).item()
    low, high = min(first + second) / 4, max(first + second) / 4
    grid = Grid.fitting(torch.tensor(low), torch.tensor(high), min(bins, OVERLAP_BINS), torch.float32)
    shares = []
    for values in (first, second):
        cells = Counter(math.floor(value / 4 / 2.0 ** grid.exponent.item()) for value in values)
        shares.append({cell: count / len(values) for cell, count in cells.items()})
    assert found == pytest.approx(sum(min(share, shares[1].get(cell, 0)) for cell, share in shares[0].items()))


def test_a_comparison_adds_two_columns_and_no_other_page_has_them(statistics):
    names = [column["name"] for column in pack_dataset(statistics, "one", compared=statistics)["columns"]]
    assert {"moved_over_sigma", "overlap"} <= set(names)
    assert "overlap" not in [column["name"] for column in pack_dataset(statistics, "one")["columns"]]


# ------------------------------------------------------------------ the page


def test_notes_belong_to_statistics_and_not_to_a_page(statistics):
    digest = pack_dataset(statistics, "one")["digest"]
    assert pack_dataset(statistics, "another label", compared=statistics)["digest"] == digest
    newer = replace(statistics.provenance, versions=replace(statistics.provenance.versions, ablation_lens="9"))
    assert pack_dataset(replace(statistics, provenance=newer), "one")["digest"] == digest
    assert pack_dataset(statistics_of(draw(500, (2, 2, 4), seed=1)), "one")["digest"] != digest


def test_neurons_are_written_by_their_site(statistics):
    assert pack_dataset(statistics, "one")["naming"] == "LHD"
    mlp = statistics_of(draw(50, (2, 1, 4)))
    mlp = replace(mlp, provenance=replace(mlp.provenance, site="mlp"))
    assert pack_dataset(mlp, "one")["naming"] == "LM"
    # Old names of an MLP's neurons are read, too.
    example = Example("L0.H0.D1", "peak", 0.5, 3, "doc/3", 7, (5, 6, 7), 1)
    shown = payload_of(explore(mlp, examples={"L0.H0.D1": [example]}, progress=False))["examples"]
    assert list(shown["neurons"]) == ["L0.M1"]


NASTY = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\u2028&amp;"


@given(st.text() | st.just(NASTY))
def test_no_text_breaks_out_of_its_element(text):
    embedded = page.embedded_json({"text": text})
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == {"text": text}


def test_only_the_pages_own_scripts_may_run(statistics):
    html = explore(statistics, labels=(NASTY, ""), progress=False).html
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == len(page.SCRIPTS) + 1
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert digests == allowed
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert "default-src 'none'" in policy
    assert "alert(1)</script>" not in html
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", html)


def test_a_script_cannot_end_its_element():
    assert page._closed('x = "</script><!-- ";') == 'x = "<\\/script><\\!-- ";'


def test_the_notebook_shows_the_same_page(statistics):
    made = explore(statistics, progress=False, height=500)
    frame = made._repr_html_()
    match = re.fullmatch(
        r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts allow-downloads" .*height:500px.*</iframe>', frame
    )
    import html

    assert html.unescape(match[1]) == made.html


def test_the_file_is_written_whole_or_not_at_all(statistics, tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    made = explore(statistics, html=target, progress=False)
    assert target.read_text(encoding="utf-8") == made.html
    monkeypatch.setattr("ablation_lens.files.os.fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.save(target)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert target.read_text(encoding="utf-8") == made.html


# ------------------------------------------------------------------ what stands beside a neuron


def test_examples_carry_text_ids_or_patches(statistics):
    text = Example("L0.H0.D1", "peak", 0.5, 3, "doc/3", 7, (5, 6, 7), 1)
    image = Example("L0.H0.D1", "high", 2.5, 1, "img/1", 4, (), 0)
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(f"<{i}>" for i in ids))
    found = {"L0.H0.D1": [text, image]}
    with_words = payload_of(explore(statistics, examples=found, tokenizer=tokenizer, progress=False))["examples"]
    one, two = with_words["neurons"]["L0.H0.D1"]
    assert one["text"] == ["<5>", "<6>", "<7>"]
    assert (two["side"], two["position"]) == (32, 4)  # n_ctx 1024 is CLS and 32 × 32 patches, about
    assert with_words["images"] == {}
    without = payload_of(explore(statistics, examples=found, progress=False))["examples"]["neurons"]["L0.H0.D1"]
    assert without[0]["text"] == ["#5 ", "#6", " #7"]
    with pytest.raises(MismatchError, match="does not exist"):
        explore(statistics, examples={"L9.H0.D1": [text]}, progress=False)


def test_damage_is_the_mean_change_over_seeds(statistics):
    other = study_results().assign(model="another", top1=0.0)
    peak, zero = payload_of(explore(statistics, results=pandas.concat([study_results(), other]), progress=False))[
        "damage"
    ]
    assert (peak["method"], peak["corpus"], peak["group"]) == ("peak", "stdlib", "")
    assert peak["points"] == [[0.5, pytest.approx(-0.2), 1.0, 2], [1.0, pytest.approx(-0.4), 2.0, 1]]
    assert zero["points"] == [[0.5, pytest.approx(-0.2), None, 1]]


def test_striking_neurons_are_far_from_zero_or_their_mean(statistics):
    table = statistics.table()
    chosen = striking_neurons(statistics, 4)
    far = table[["peak_over_sigma", "mean_to_peak_over_sigma"]].max(axis=1)
    clear = ~table["shape"].isin(["constant", "unresolved"])
    assert far[chosen].min() >= far[clear].drop(chosen).max()
    assert clear[chosen].all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: explore(s, examples=3), "takes the model"),
        (lambda s: explore("stats.safetensors"), "str cannot be explored"),
        (lambda s: explore(SimpleNamespace(cfg=None)), "explored over batches"),
        (lambda s: explore(s, compare=statistics_of(draw(50, (1, 2, 4)))), "cannot lie over each other"),
        (lambda s: explore(s, results=study_results().drop(columns="top1")), r"lack the columns \['top1'\]"),
        (lambda s: explore(s, results=study_results().assign(model="x")), "no cell of 'synthetic'; they are of x"),
    ],
)
def test_wrong_requests_are_one_clear_error(statistics, call, message):
    with pytest.raises(MismatchError, match=message):
        call(statistics)


def test_every_color_is_a_color():
    for colors in (METHOD_COLORS, DARK_METHOD_COLORS):
        assert all(re.fullmatch(r"#[0-9A-F]{6}", color) for color in colors.values())
        assert len(set(colors.values())) == len(colors)
    assert set(al.centers.names()) <= set(METHOD_COLORS)
