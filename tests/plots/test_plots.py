import json
import pydoc
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

import ablation_lens as al
from ablation_lens import plots
from ablation_lens.errors import MismatchError
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.statistics import ActivationStatistics, Provenance
from ablation_lens.palette import METHOD_COLORS
from ablation_lens.records import ModelRecord, Versions

HOSTILE = '<img src=x onerror=alert(1)><a href="javascript:alert(2)">%{stolen}$x$'


def collected(values, name="model", site="z"):
    """Statistics of `[token layer head dim]` values."""
    _, layers, heads, dims = values.shape
    histogram, moments = NeuronHistogram(values.shape[1:]), Moments(values.shape[1:])
    histogram.update(values)
    for layer in range(layers):
        moments.update_layer(layer, values[:, layer])
    record = ModelRecord(
        name, None, "Test", "float32", "none", None, layers, heads, dims, heads * dims, 4 * heads * dims, 16
    )
    provenance = Provenance(record, site, True, len(values), (), (), Versions.current())
    return ActivationStatistics(histogram=histogram, moments=moments, provenance=provenance)


@pytest.fixture
def values():
    return torch.randn(5000, 3, 2, 4) * torch.linspace(0.5, 3, 4) + torch.linspace(-1, 1, 2)[:, None]


@pytest.fixture
def stats(values):
    return collected(values)


def lines(figure):
    """Name → position of every vertical line."""
    return {shape.name: shape.x0 for shape in figure.layout.shapes if shape.name}


def said(figure):
    """Everything a figure says, as a browser gets it."""
    return json.dumps(json.loads(figure.to_json()), ensure_ascii=False)


# ------------------------------------------------------------------ one look, nothing global


def every_figure(stats):
    yield plots.neuron_distribution(stats, 0, 0, 0)
    yield plots.layer_distribution(stats, 0)
    yield plots.figure_1(stats)
    yield plots.neuron_map(stats)
    yield plots.head_map(stats)
    yield plots.centers_scatter(stats)
    yield plots.damage_map(torch.zeros(2, 2))
    yield plots.figure_2(cells())


def test_figures_carry_their_look_and_leave_the_global_one_alone(stats):
    before = pio.templates.default
    for figure in every_figure(stats):
        assert figure.layout.template == plots.LENS_TEMPLATE
        assert figure.layout.title.text
    assert pio.templates.default == before
    dark = plots.neuron_map(stats, template="plotly_dark")
    assert dark.layout.template == pio.templates["plotly_dark"]


def test_every_panel_has_axis_titles(stats):
    for figure in every_figure(stats):
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_importing_the_package_does_not_import_plotly():
    code = "import sys, ablation_lens; assert 'plotly' not in sys.modules; assert 'plots' in dir(ablation_lens)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert al.plots is plots


def test_names_from_outside_are_text(values):
    hostile = collected(values, name=HOSTILE)
    figures = [
        *list(every_figure(hostile))[:-2],
        plots.neuron_distribution({HOSTILE: hostile, "b": hostile}, 0, 0, 0),
        plots.damage_map(torch.zeros(2, 2), model=HOSTILE, method=HOSTILE, unit=HOSTILE),
        plots.figure_2(cells(group=HOSTILE, methods=(HOSTILE, "peak"))),
    ]
    for figure in figures:
        text = said(figure)
        assert "&lt;img" in text
        assert "&#37;{stolen}&#36;x&#36;" in text
        for interpreted in ("<img", "<a ", "%{stolen}", "$x$"):
            assert interpreted not in text


# ------------------------------------------------------------------ distributions


def test_a_neurons_bars_are_its_histogram(stats):
    (bars,) = plots.neuron_distribution(stats, 1, 0, 2).data
    low, high, count = np.asarray(bars.customdata).T
    assert count.sum() == 5000
    assert (np.asarray(bars.y) * (high - low)).sum() == pytest.approx(1)
    np.testing.assert_allclose(np.asarray(bars.y), count / 5000 / bars.width)
    assert bars.hovertemplate.startswith("<b>L1.H0.D2</b>")
    for field in ("value", "count", "density"):
        assert field in bars.hovertemplate


def test_counts_are_those_of_the_values(stats, values):
    (bars,) = plots.neuron_distribution(stats, 1, 0, 2, bins=256).data
    low, high, count = np.asarray(bars.customdata).T
    expected, _ = np.histogram(values[:, 1, 0, 2].double(), [*low, high[-1]])
    np.testing.assert_array_equal(count, expected)


def test_lines_stand_where_the_centers_are_in_their_colours(stats):
    figure = plots.neuron_distribution(stats, 2, 1, 3, centers=("zero", "mean", "median", "peak", "peak-kde"))
    found = lines(figure)
    for shape in figure.layout.shapes:
        name = shape.name.split()[0]
        assert shape.x0 == pytest.approx(float(stats.center(name)[2, 1, 3]))
        assert shape.line.color == METHOD_COLORS[name]
    assert len(found) == 5
    assert len({(shape.line.color, shape.line.dash) for shape in figure.layout.shapes}) == 5


def test_the_peak_stands_on_the_highest_bar(stats):
    figure = plots.neuron_distribution(stats, 0, 1, 1)
    bars = figure.data[0]
    assert bars.x[np.argmax(bars.y)] == float(stats.center("peak")[0, 1, 1])


def test_several_neurons_and_two_statistics_are_overlaid(stats, values):
    several = plots.neuron_distribution(stats, 0, 0, 0, also=["L1.H1.D3", (2, 0, 1), "L0.H0.D0"])
    assert [trace.name for trace in several.data] == ["L0.H0.D0", "L1.H1.D3", "L2.H0.D1"]
    assert len({trace.marker.color for trace in several.data}) == 3
    assert not {trace.marker.color for trace in several.data} & set(METHOD_COLORS.values())
    two = plots.neuron_distribution({"stdlib": stats, "pile": collected(values + 1)}, 0, 0, 0)
    assert [trace.name for trace in two.data] == ["stdlib · L0.H0.D0", "pile · L0.H0.D0"]
    means = [shape.x0 for shape in two.layout.shapes if shape.name.startswith("mean")]
    assert means[1] - means[0] == pytest.approx(1, abs=1e-3)
    with pytest.raises(MismatchError, match="unlike sites"):
        plots.neuron_distribution({"a": stats, "b": collected(values[:, :1])}, 0, 0, 0)
    with pytest.raises(MismatchError, match="no statistics"):
        plots.neuron_distribution({}, 0, 0, 0)


def test_buttons_switch_between_linear_and_logarithmic(stats):
    for make in (
        lambda log: plots.neuron_distribution(stats, 0, 0, 0, log=log),
        lambda log: plots.layer_distribution(stats, 0, log=log),
    ):
        assert [make(log).layout.yaxis.type for log in (False, True)] == ["linear", "log"]
        (menu,) = make(False).layout.updatemenus
        assert [button.args[0]["yaxis.type"] for button in menu.buttons] == ["linear", "log"]


def test_one_far_value_does_not_leave_a_needle():
    values = torch.randn(20_000, 1, 1, 1)
    values[0] = 300
    low, high = plots.neuron_distribution(collected(values), 0, 0, 0).layout.xaxis.range
    assert -15 < low < -2
    assert 2 < high < 15
    # A center that lies far away is in view all the same.
    far = plots.neuron_distribution(collected(values.abs() + 1000), 0, 0, 0).layout.xaxis.range
    assert far[0] < 0 < 1000 < far[1]


def test_the_layers_average_is_that_of_its_neurons(stats):
    lower, upper, average = plots.layer_distribution(stats, 1, quantiles=(0.25, 0.75)).data
    middles = np.asarray(average.x)
    width = middles[1] - middles[0]
    edges = np.concatenate([middles - width / 2, middles[-1:] + width / 2])
    densities = []
    for head in range(2):
        for dim in range(4):
            counts = stats.histogram.counts((1, head, dim)).numpy()
            below = np.concatenate([[0], counts.cumsum()]) / counts.sum()
            densities.append(np.diff(np.interp(edges, stats.histogram.edges((1, head, dim)).numpy(), below)) / width)
    np.testing.assert_allclose(average.y, np.mean(densities, 0), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(upper.y, np.maximum(np.quantile(densities, 0.75, axis=0), lower.y.min()), rtol=1e-6)
    assert (lower.y > 0).all()  # a logarithmic axis has no zero
    assert np.sum(average.y) * width == pytest.approx(0.998, abs=1e-3)


def test_neurons_that_are_not_there(stats):
    with pytest.raises(MismatchError, match=r"L3\.H0\.D0 does not exist: this model has 3 layers"):
        plots.neuron_distribution(stats, 3, 0, 0)
    with pytest.raises(MismatchError, match=r"L0\.H0\.D9 does not exist"):
        plots.neuron_distribution(stats, 0, 0, 0, also=["L0.H0.D9"])
    for layer in (-1, 3):
        with pytest.raises(MismatchError, match=r"layer -?\d does not exist: this model has 3 layers"):
            plots.layer_distribution(stats, layer)
    with pytest.raises(MismatchError, match="nearest is 'peak'"):
        plots.neuron_distribution(stats, 0, 0, 0, centers=["pique"])
    empty = replace(stats, histogram=NeuronHistogram(stats.shape))
    with pytest.raises(MismatchError, match="has seen no values"):
        plots.layer_distribution(empty, 0)


def test_a_constant_neuron_is_drawn():
    values = torch.zeros(100, 1, 1, 2)
    values[..., 1] = 0.3
    stats = collected(values)
    assert plots.neuron_distribution(stats, 0, 0, 1).data[0].customdata[0][2] == 100
    assert np.isfinite(plots.layer_distribution(stats, 0).data[2].y).all()
    for figure in (plots.figure_1(stats), plots.neuron_map(stats), plots.centers_scatter(stats)):
        assert figure.to_json()


# ------------------------------------------------------------------ Figure 1


def planted(**neurons):
    """Normal neurons at zero, `[2 layers, 1 head, 8 dims]`, but for the named ones: d10=… is L1.H0.D0."""
    values = torch.randn(20_000, 2, 1, 8)
    for name, column in neurons.items():
        values[:, int(name[1]), 0, int(name[2])] = column
    return collected(values)


def modes(*at, width=0.4):
    column = torch.randn(20_000) * width
    return column + torch.tensor(at)[torch.randint(0, len(at), (20_000,))]


def test_figure_1_finds_what_was_planted():
    skewed = -torch.rand(20_000).log() - 1
    figure = plots.figure_1(
        planted(d03=modes(-2.0, 2.0), d15=skewed, d07=modes(0.0, 3.0), d12=modes(-1.0, 1.0)), layer=1
    )
    assert [note.text for note in figure.layout.annotations] == [
        "Layer 1: average of 8 neurons",
        "Two peaks off zero: L0.H0.D3",
        "Atypical: L1.H0.D5",
    ]
    marks = next(trace for trace in figure.data if trace.name == "peaks of the smoothed histogram")
    assert sorted(marks.x) == pytest.approx([-2, 2], abs=0.2)


def test_figure_1_says_when_there_is_no_such_neuron():
    normal = plots.figure_1(planted())
    assert [note.text for note in normal.layout.annotations][1:] == ["Two peaks off zero: none", "Atypical: none"]
    words = [trace.text[0] for trace in normal.data if trace.mode == "text"]
    assert len(words) == 2
    assert all(line.startswith("No such neuron") for line in words)
    # One peak at zero does not count, and three are not two.
    near = plots.figure_1(planted(d00=modes(0.0, 3.0), d01=modes(-4.0, 2.0, 8.0)))
    assert near.layout.annotations[1].text == "Two peaks off zero: none"
    assert "2 are multi-modal" in next(trace.text[0] for trace in near.data if trace.mode == "text")


def test_one_legend_entry_per_center():
    for figure in (plots.figure_1(planted(d00=modes(-2.0, 2.0))), plots.figure_1(planted())):
        named = [shape.name for shape in figure.layout.shapes if shape.showlegend]
        assert len(named) == len(set(named))
        assert named


# ------------------------------------------------------------------ maps


@pytest.mark.parametrize("measure", [*plots.MEASURES, "|peak|/σ", "kurtosis"])
def test_a_cell_is_the_neuron_it_is_called(stats, measure):
    column = {"|peak|/σ": "peak_over_sigma", "kurtosis": "excess_kurtosis"}.get(measure, measure)
    (heat,) = plots.neuron_map(stats, measure).data
    table = stats.table()[column]
    for row, layer in enumerate(heat.y):
        for place, neuron in enumerate(heat.x):
            assert heat.z[row][place] == pytest.approx(table[f"{layer}.{neuron}"], rel=1e-6)
    assert heat.hovertemplate.startswith("<b>%{y}.%{x}</b>")


def test_a_wrong_measure_is_answered_with_the_nearest(stats):
    with pytest.raises(MismatchError, match="no measure 'skw'; did you mean 'skew'"):
        plots.neuron_map(stats, "skw")
    with pytest.raises(MismatchError, match="no summary 'media'; did you mean 'median'"):
        plots.head_map(stats, summary="media")


@pytest.mark.parametrize("summary", ["median", "mean", "max"])
def test_heads_summarise_their_neurons(values, summary):
    stats = collected(values[..., :3])  # an odd number: the median is one of them
    (heat,) = plots.head_map(stats, "skew", summary=summary).data
    expected = getattr(stats.table().groupby(["layer", "head"])["skew"], summary)()
    np.testing.assert_allclose(np.asarray(heat.z).flatten(), expected, rtol=1e-5)


def test_signed_measures_are_coloured_about_zero(stats):
    skew = plots.neuron_map(stats, "skew").data[0]
    assert skew.zmin == -skew.zmax < 0
    effects = torch.tensor([[0.5, -0.1], [0.0, 2.0]])
    damage = plots.damage_map(effects, method="peak", model="tiny-opt")
    assert (damage.data[0].zmin, damage.data[0].zmax) == (-2, 2)
    np.testing.assert_allclose(damage.data[0].z, effects)
    assert "peak" in damage.layout.title.subtitle.text
    with pytest.raises(MismatchError, match=r"shape \(3,\); expected one number per \(layer, head\)"):
        plots.damage_map(torch.zeros(3))


def test_one_extreme_neuron_does_not_take_all_the_colours():
    values = torch.randn(2000, 4, 4, 32)
    values[0, 0, 0, 0] = 1e4
    figure = plots.neuron_map(collected(values), "kurtosis")
    assert figure.data[0].zmax < 10
    assert np.max(figure.data[0].z) > 1000
    assert "the largest is" in figure.layout.title.subtitle.text


def test_peaks_have_a_colour_each():
    heat = plots.neuron_map(planted(d00=modes(-2.0, 2.0)), "peaks").data[0]
    assert (heat.zmin, heat.zmax) == (0.5, 2.5)
    assert heat.colorbar.ticktext == ("1", "2")
    assert np.asarray(heat.z)[0][0] == 2


@pytest.mark.parametrize("over_sigma", [False, True])
def test_every_neuron_is_a_point_of_the_scatter(stats, over_sigma):
    figure = plots.centers_scatter(stats, over_sigma=over_sigma)
    table, seen = stats.table(), 0
    for trace in figure.data:
        assert isinstance(trace, go.Scattergl)
        for (layer, head, dim), x, y in zip(trace.customdata, trace.x, trace.y, strict=True):
            row = table.loc[f"L{layer}.H{head}.D{dim}"]
            scale = row["std"] if over_sigma else 1
            assert (x, y) == pytest.approx((row["mean"] / scale, row["peak"] / scale), rel=1e-5, abs=1e-7)
            assert trace.name.startswith(row["shape"])
            seen += 1
    assert seen == 24


def test_a_layers_mlp_is_a_head_of_many_neurons():
    stats = collected(torch.randn(50, 2, 1, 300), site="mlp")
    figure = plots.neuron_map(stats)
    assert (figure.data[0].x[299], figure.data[0].y[1]) == ("M299", "L1")
    assert len(figure.layout.xaxis.ticktext) == 8
    assert plots.neuron_distribution(stats, 1, 0, 299).layout.xaxis.title.text.startswith("mlp")
    assert sum(len(trace.x) for trace in plots.centers_scatter(stats).data) == 600


def test_fifty_thousand_neurons_stay_small(monkeypatch):
    stats = collected(torch.randn(40, 24, 32, 64) + torch.randn(24, 32, 64))
    described = stats.shapes()  # seconds, so once for all figures
    monkeypatch.setattr(ActivationStatistics, "shapes", lambda self: described)
    figures = {
        "map": plots.neuron_map(stats),
        "peaks": plots.neuron_map(stats, "peaks"),
        "scatter": plots.centers_scatter(stats),
        "layer": plots.layer_distribution(stats, 5),
        "heads": plots.head_map(stats),
        "figure 1": plots.figure_1(stats),
        "neuron": plots.neuron_distribution(stats, 1, 2, 3),
    }
    sizes = {name: len(figure.to_json()) for name, figure in figures.items()}
    assert max(sizes.values()) < 3e6, sizes
    # Nothing draws thousands of SVG elements.
    for figure in figures.values():
        assert all(len(trace.x) < 1000 for trace in figure.data if isinstance(trace, go.Scatter | go.Bar))


# ------------------------------------------------------------------ several neurons


def test_neurons_are_named_as_everywhere(stats):
    by_numbers = said(plots.neuron_distribution(stats, 1, 0, 2))
    for given in ("L1.H0.D2", ["L1.H0.D2"], (1, 0, 2), [(1, 0, 2)], np.array([1, 0, 2]), pd.Index(["L1.H0.D2"])):
        assert said(plots.neuron_distribution(stats, given)) == by_numbers
    head = plots.neuron_distribution(stats, "L1.H0")
    assert [bars.name for bars in head.data] == [f"L1.H0.D{dim}" for dim in range(4)]
    named = stats.table().index[:3]
    assert [bars.name for bars in plots.neuron_distribution(stats, named).data] == list(named)
    assert said(plots.layer_distribution(stats, "L2")) == said(plots.layer_distribution(stats, 2))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("L1.H0.D",), "L3.H5.D17"),
        ((1, 0), "a layer, a head and a dim"),
        (("L1.H0.D2", 0, 1), "a layer, a head and a dim"),
        ((1.5, 0, 2), "is not a neuron"),
        ((None,), "a layer, a head and a dim"),
        (([],), "0 neurons"),
        (([(1, 0, 2, 3)],), "not a neuron"),
        (("L9.H0.D0",), "does not exist"),
    ],
)
def test_what_is_no_neuron_is_answered_in_a_sentence(stats, given, words):
    with pytest.raises(MismatchError, match=words):
        plots.neuron_distribution(stats, *given)
    with pytest.raises(MismatchError):
        plots.layer_distribution(stats, "third")


def test_mlp_neurons_are_written_without_a_head():
    stats = collected(torch.randn(50, 2, 1, 30), site="mlp")
    for given in (["L1.M7"], ["L1.H0.D7"], [1, 0, 7], [[1, 0, 7]]):
        (bars,) = plots.neuron_distribution(stats, *([given] if len(given) < 3 else given)).data
        assert bars.name == "L1.M7"
    heat = plots.neuron_map(stats).data[0]
    assert (heat.x[7], heat.y[1]) == ("M7", "L1")
    assert all(
        "L%{customdata[0]}.M%{customdata[2]}" in trace.hovertemplate for trace in plots.centers_scatter(stats).data
    )


def test_more_than_four_neurons_have_a_panel_each(stats):
    names = list(stats.table().index)
    overlaid = plots.neuron_distribution(stats, names[:4])
    assert len({axis for trace in overlaid.data for axis in [trace.xaxis]}) == 1
    assert len({trace.marker.color for trace in overlaid.data}) == 4
    figure = plots.neuron_distribution(stats, names[:7])
    assert [note.text for note in figure.layout.annotations] == names[:7]
    assert len({trace.xaxis for trace in figure.data}) == 7
    legend = [shape.name for shape in figure.layout.shapes if shape.showlegend]
    assert sorted(legend) == ["mean", "median", "peak", "zero"]
    for name, trace in zip(names, figure.data, strict=False):
        (peak,) = [
            shape for shape in figure.layout.shapes if shape.name == "peak" and shape.xref == (trace.xaxis or "x")
        ]
        assert peak.x0 == pytest.approx(stats.table().loc[name, "peak"])
    (menu,) = figure.layout.updatemenus
    assert {key.split(".")[0] for key in menu.buttons[1].args[0]} == {"yaxis", *(f"yaxis{n}" for n in range(2, 8))}


def test_too_many_neurons_are_refused_with_what_shows_them():
    wide = collected(torch.randn(20, 2, 2, 20))
    with pytest.raises(MismatchError, match=r"80 neurons .* 1 to 64"):
        plots.neuron_distribution(wide, wide.table().index)


def test_titles_fit_on_a_telephone(stats):
    names = list(stats.table().index)
    for count in range(1, 9):
        assert len(plots.neuron_distribution(stats, names[:count]).layout.title.text) <= 34


def test_help_reads_in_ten_lines():
    for name in plots.__all__:
        if callable(function := getattr(plots, name)):
            shown = pydoc.render_doc(function, renderer=pydoc.plaintext).splitlines()[2:]
            assert len(shown) <= 10, (name, shown)


# ------------------------------------------------------------------ Figures 2 and 3


def cells(group="tiny-opt", methods=("peak", "zero"), seeds=(0, 1, 2), corpus="stdlib"):
    """top-1 falls with the fraction squared, and by a hundredth per seed; with everything ablated seeds are alike."""
    rows = []
    for number, method in enumerate(methods):
        for fraction in (0.5, 1.0):
            for seed in seeds if fraction < 1 else [None]:
                top1 = 0.6 - fraction**2 / 2 - (seed or 0) / 100 - number / 20
                rows.append((group, corpus, group, method, fraction, seed, top1, 3 - top1, 100, 0.6, 2.4))
    columns = ["model", "corpus", "group", "method", "fraction", "seed", "top1", "cross_entropy", "predictions"]
    return pd.DataFrame(rows, columns=[*columns, "baseline_top1", "baseline_cross_entropy"])


def drawn(figure, name):
    """(top-1, CE) traces of that name."""
    return [trace for trace in figure.data if trace.name == name]


def test_lines_go_from_the_baseline_through_the_means():
    top1, cross_entropy = drawn(plots.figure_2(cells()), "peak")
    np.testing.assert_allclose(top1.x, [0, 50, 100])
    np.testing.assert_allclose(top1.y, [60, 47.5 - 1, 10])
    np.testing.assert_allclose(cross_entropy.y, [2.4, 3 - 0.465, 2.9])
    assert "3 seeds" in top1.customdata[1]
    assert "-13.5 %" in top1.customdata[1]


def test_bands_are_one_standard_deviation_over_seeds():
    top1, cross_entropy = drawn(plots.figure_2(cells()), "peak ± sd")
    assert top1.x == (0, 50, 100, 100, 50, 0, None)
    np.testing.assert_allclose(top1.y[:-1], [60, 47.5, 10, 10, 45.5, 60])  # sd of 0, 1, 2 is 1
    np.testing.assert_allclose(cross_entropy.y[1], 2.535 + 0.01)


def test_one_seed_has_no_band_and_an_unknown_spread_interrupts_it():
    alone = plots.figure_2(cells(seeds=(7,)))
    assert all(trace.x == () for trace in drawn(alone, "peak ± sd"))
    frame = cells()
    middle = cells(seeds=(0,)).query("fraction == 0.5").assign(fraction=0.75)
    later = cells().query("fraction == 0.5").assign(fraction=0.9)
    broken = drawn(plots.figure_2(pd.concat([frame, middle, later])), "peak ± sd")[0]
    assert broken.x == (0, 50, 50, 0, None, 90, 100, 100, 90, None)


def test_a_measured_fraction_of_zero_is_the_baseline():
    zero = cells().query("fraction == 0.5").assign(fraction=0.0)
    line = drawn(plots.figure_2(pd.concat([cells(), zero])), "peak")[0]
    assert (list(line.x), line.y[0]) == ([0, 50, 100], 60)


def test_methods_look_the_same_in_every_panel_and_figure():
    both = plots.figure_2(pd.concat([cells("a", ("zero", "mine")), cells("b", ("mine", "peak", "zero"))]))
    for name in ("zero", "peak"):
        assert {trace.line.color for trace in drawn(both, name)} == {METHOD_COLORS[name]}
    looks = {(trace.line.color, trace.line.dash, trace.marker.symbol) for trace in drawn(both, "mine")}
    assert len(looks) == 1
    alone = plots.figure_2(cells("b", ("mine",)))
    trace = drawn(alone, "mine")[0]
    assert {(trace.line.color, trace.line.dash, trace.marker.symbol)} == looks
    shown = sorted((trace for trace in both.data if trace.showlegend), key=lambda trace: trace.legendrank)
    assert [trace.name for trace in shown] == ["zero", "peak", "mine"]


def test_built_in_methods_differ_without_colours():
    figure = plots.figure_2(cells(methods=tuple(METHOD_COLORS)))
    looks = {(trace.line.dash, trace.line.width, trace.marker.symbol) for trace in figure.data if trace.mode != "lines"}
    assert len(looks) == len(METHOD_COLORS)


def test_what_tells_groups_apart_is_not_cut_from_their_titles():
    alike = "statistics of 64 images, 256 bins, an input per seed, batches of 32, cpu, ablation-lens 0.1.0"
    names = [f"tiny-vit on digits (float32, {n} images, {alike}, transformer-lens 3.9.0)" for n in (7, 8)]
    titles = [
        note.text.replace("<br>", " ") for note in plots.figure_2(pd.concat(map(cells, names))).layout.annotations
    ]
    assert titles[::2] == [f"{name}: top-1" for name in names]


def test_a_row_of_panels_per_model_or_the_one_asked_for():
    frame = pd.concat([cells("a"), cells("b"), cells("b", corpus="pile")])
    titles = [note.text for note in plots.figure_2(frame).layout.annotations]
    assert titles[::2] == ["a: top-1", "b · stdlib: top-1", "b · pile: top-1"]
    assert [note.text for note in plots.figure_2(frame, model="a").layout.annotations] == [
        "a: top-1",
        "a: cross-entropy",
    ]
    with pytest.raises(MismatchError, match="no model 'tiny-op'; did you mean 'tiny-opt'"):
        plots.figure_2(cells(), model="tiny-op")


def test_seeds_are_lines_from_the_baseline_to_where_all_meet():
    figure = plots.figure_2(cells(), seeds=True)
    top1, _ = drawn(figure, "peak, by seed")
    assert top1.x == (0, 50, 100, None) * 3
    np.testing.assert_allclose([y for y in top1.y if y is not None], [60, 47.5, 10, 60, 46.5, 10, 60, 45.5, 10])
    assert top1.customdata[4:8] == ("seed 1",) * 4
    assert not drawn(figure, "peak ± sd")
    assert "3 seeds" in figure.layout.title.subtitle.text


def test_a_metric_of_ones_own_has_a_panel_of_its_own():
    own = cells().assign(**{HOSTILE: 0.25, f"baseline_{HOSTILE}": 0.75})
    own.loc[own["seed"] == 2, HOSTILE] = np.nan  # of a cell that was measured before the metric was there
    figure = plots.figure_2(own)
    assert [note.text.split(": ", 1)[1][:7] for note in figure.layout.annotations] == ["top-1", "cross-e", "&lt;img"]
    assert "<img" not in said(figure)
    third = drawn(figure, "peak")[2]
    assert list(third.y) == [0.75, 0.25, 0.25]
    (alone,) = drawn(plots.figure_2(own, metrics=["top1"]), "peak")
    assert alone.y[0] == 60
    with pytest.raises(MismatchError, match="no metric 'top2'; did you mean 'top1'"):
        plots.figure_2(own, metrics=["top2"])


def compared(group="tiny-opt"):
    """A summary: peak is the best, mean cannot be told from it, zero can, resampling is far off."""
    rows = []
    for fraction in (0.5, 1.0):
        for method, gap, alike in (("zero", 0.2, False), ("mean", 0.01, True), ("peak", 0.0, True)):
            rows.append((group, group, fraction, method, gap, gap - 0.05, gap + 0.02, alike))
        rows.append((group, group, fraction, "resample-tokens", 5.0, 4.0, 6.0, False))
    columns = ["group", "model", "fraction", "method"]
    return pd.DataFrame(
        rows, columns=[*columns, *(f"cross_entropy_{end}" for end in ("to_best", "low", "high", "as_best"))]
    )


def test_differences_have_their_intervals_and_say_who_is_as_good_as_the_best():
    figure = plots.differences_to_best(pd.concat([compared("a"), compared("b")]))
    assert [note.text for note in figure.layout.annotations] == ["a: cross-entropy", "b: cross-entropy"]
    zero = drawn(figure, "zero")[0]
    np.testing.assert_allclose(zero.y, [0.2, 0.2])
    np.testing.assert_allclose(zero.error_y.array, [0.02, 0.02])
    np.testing.assert_allclose(zero.error_y.arrayminus, [0.05, 0.05])
    assert all(symbol.endswith("-open") for symbol in zero.marker.symbol)
    assert not any(symbol.endswith("-open") for symbol in drawn(figure, "mean")[0].marker.symbol)
    # Side by side, in the order of methods, and each nearer to its own fraction than to another.
    places = [drawn(figure, name)[0].x[0] for name in ("zero", "mean", "peak", "resample-tokens")]
    assert places == sorted(set(places))
    assert max(abs(place - 50) for place in places) < 5


def test_constants_can_be_told_apart_beside_resampling():
    axis = plots.differences_to_best(compared()).layout.yaxis
    assert -0.1 < axis.range[0] < -0.05
    assert 0.22 < axis.range[1] < 0.25
    with pytest.raises(MismatchError, match="nothing to compare"):
        plots.differences_to_best(compared().iloc[:0])


def test_results_that_are_none():
    with pytest.raises(MismatchError, match="results lack the columns seed, top1"):
        plots.figure_2(cells().drop(columns=["top1", "seed"]))
    with pytest.raises(MismatchError, match="no results to show"):
        plots.figure_2(cells().iloc[:0])
