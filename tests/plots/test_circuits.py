import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ablation_lens import plots
from ablation_lens.circuits import Circuit
from ablation_lens.errors import MismatchError
from ablation_lens.sites import Site
from tests.made_effects import effects_of

HOSTILE = '<img src=x onerror=alert(1)><a href="javascript:alert(2)">%{stolen}$x$'


def heads(layers=2, count=3):
    return torch.arange(1.0, layers * count + 1).view(layers, count) / 10


def curves(finders=("zero", "peak"), judges=("zero", "peak"), *, refused=()):
    """f rises with the share, faster for the first finder."""
    rows = []
    for judge in judges:
        for place, finder in enumerate(finders):
            for share in (0.01, 0.1, 1.0):
                f = np.nan if judge in refused else share ** (0.1 + place / 5)
                ms = 4 * f - 1, -1.0, 3.0
                rows.append((finder, judge, share, int(50 * share), *ms, f, f - 0.1, f + 0.1))
    columns = ["found_with", "judged_with", "share", "units", "m_circuit", "m_empty", "m_model"]
    return pd.DataFrame(rows, columns=[*columns, "f", "low", "high"])


def pairs(values, judges=("zero", "peak")):
    """CPR and CMD, a row of `values` per finder, under judges that lose 4 and 5."""
    finders = [f"finder {number}" for number in range(len(values))]
    rows = [
        (finder, judge, cpr, 1 - cpr, 3.0, -1.0 - judges.index(judge))
        for finder, row in zip(finders, values, strict=True)
        for judge, cpr in zip(judges, row, strict=True)
    ]
    return pd.DataFrame(rows, columns=["found_with", "judged_with", "cpr", "cmd", "m_model", "m_empty"])


def said(figure):
    return json.dumps(json.loads(figure.to_json()), ensure_ascii=False)


def cell(figure, row, column):
    (heat,) = figure.data
    return heat.customdata[row][column]


# ------------------------------------------------------------------ effects


def test_a_head_is_where_its_layer_and_number_say_and_tells_its_share():
    figure = plots.effect_map(effects_of({Site.Z: -heads()}))
    (heat,) = figure.data
    np.testing.assert_allclose(heat.z, -heads(), rtol=1e-6)
    assert heat.zmin == -heat.zmax
    assert figure.layout.yaxis.autorange == "reversed"
    assert "L1.H2" in cell(figure, 1, 2)
    assert "-0.6" in cell(figure, 1, 2)
    assert "15 % of ablating everything" in cell(figure, 1, 2)


def test_red_is_the_way_of_ablating_everything_whatever_the_sign_of_the_metric():
    falls = plots.effect_map(effects_of({Site.Z: -heads()}, clean=3, empty=-1)).data[0].colorscale
    rises = plots.effect_map(effects_of({Site.Z: heads()}, clean=1, empty=5)).data[0].colorscale
    assert [color for _, color in falls] == [color for _, color in reversed(rises)]


def test_mlps_have_a_column_of_their_own_and_do_not_take_all_the_colours():
    figure = plots.effect_map(effects_of({Site.Z: heads(), Site.MLP: torch.tensor([[40.0], [0.1]])}))
    (heat,) = figure.data
    assert list(figure.layout.xaxis.ticktext) == ["H0", "H1", "H2", "MLP"]
    assert heat.z[0][-1] == 40
    assert heat.zmax == pytest.approx(0.6)
    assert "the largest is 40" in figure.layout.title.subtitle.text
    assert "L0.MLP" in cell(figure, 0, -1)


def test_neurons_of_a_head_are_added_up_only_where_effects_add_up():
    parts = torch.tensor([[[0.5, -0.75, 0.5]]])
    summed = plots.effect_map(effects_of({Site.Z: parts}, level="neuron", method="integrated"))
    assert summed.data[0].z[0][0] == pytest.approx(0.25)
    largest = plots.effect_map(effects_of({Site.Z: parts}, level="neuron"))
    assert largest.data[0].z[0][0] == pytest.approx(-0.75)
    assert "L0.H0.D1" in cell(largest, 0, 0)


def test_whole_layers_stand_side_by_side():
    effects = effects_of({Site.Z: torch.tensor([1.0, 2.0]), Site.MLP: torch.tensor([3.0, 4.0])}, level="layer")
    figure = plots.effect_map(effects)
    assert list(figure.layout.xaxis.ticktext) == ["ATTN", "MLP"]
    np.testing.assert_allclose(figure.data[0].z, [[1, 3], [2, 4]])


def test_units_that_an_interruption_left_out_are_blank_and_counted():
    done = torch.tensor([[True, True, False], [True, False, True]])
    figure = plots.effect_map(effects_of({Site.Z: heads()}, done={Site.Z: done}))
    assert np.isnan(figure.data[0].z).tolist() == (~done).tolist()
    assert "not measured" in cell(figure, 0, 2)
    assert "2 not measured" in figure.layout.title.subtitle.text


def test_effects_of_nothing_have_no_shares_and_a_map_all_the_same():
    figure = plots.effect_map(effects_of({Site.Z: torch.zeros(2, 2)}, clean=1, empty=1))
    assert figure.data[0].zmax > 0
    assert "%" not in cell(figure, 0, 0)


# ------------------------------------------------------------------ curves and pairs


def test_every_judge_has_a_panel_with_a_line_per_center_that_found():
    figure = plots.faithfulness_curves(curves(judges=("zero", "mean", "peak")))
    titles = [note.text for note in figure.layout.annotations]
    assert [title.split("<br>")[0] for title in titles] == [f"judged with {name}" for name in ("zero", "mean", "peak")]
    assert all("m(M) 3, m(∅) -1" in title for title in titles)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [trace.name for trace in lines] == ["zero", "peak"] * 3
    # 1 % of 50 units are none, which a logarithmic axis cannot show.
    np.testing.assert_allclose(lines[0].x, [10, 100])
    np.testing.assert_allclose(lines[0].y[-1], 1)
    assert "m(C) 3, m(M) 3, m(∅) -1" in lines[0].customdata[-1]
    assert [trace.showlegend for trace in lines] == [True, True, False, False, False, False]
    # 0 and 1 in every panel.
    assert sorted(shape.y0 for shape in figure.layout.shapes) == [0] * 3 + [1] * 3


def test_sizes_are_the_units_that_were_kept():
    rounded = curves(finders=("zero",), judges=("zero",)).assign(units=[2, 2, 40])
    line = next(trace for trace in plots.faithfulness_curves(rounded).data if trace.mode == "lines+markers")
    np.testing.assert_allclose(line.x, [5, 100])


def test_curves_say_which_model_and_metric_and_what_is_kept():
    measured = SimpleNamespace(
        frame=curves(), level="neuron", metric="logit_difference", source=SimpleNamespace(name="<b>tiny</b>")
    )
    figure = plots.faithfulness_curves(measured)
    assert figure.layout.title.subtitle.text.startswith("&lt;b&gt;tiny&lt;/b&gt; · m: logit difference · ")
    assert figure.layout.xaxis.title.text == "neurons kept (%)"
    # A frame does not say.
    assert plots.faithfulness_curves(curves()).layout.xaxis.title.text == "units kept (%)"


def test_a_refused_f_leaves_its_panel_empty_and_says_why():
    figure = plots.faithfulness_curves(curves(refused=("peak",)))
    (note,) = [note.text for note in figure.layout.annotations if "cannot" in note.text]
    assert "m(M) − m(∅)" in note
    assert figure.layout.yaxis.range[1] == pytest.approx(1.1)


def test_an_f_far_out_does_not_flatten_the_others():
    frame = curves()
    frame.loc[1, "f"] = 250.0
    figure = plots.faithfulness_curves(frame)
    assert figure.layout.yaxis.range[1] < 3
    assert "double click" in figure.layout.title.subtitle.text


def test_pairs_are_ranked_within_a_column():
    figure = plots.pair_map(pairs([[0.9, 0.1], [0.8, 0.3], [0.7, 0.2]], judges=("zero", "peak")))
    (heat,) = figure.data
    assert np.asarray(heat.z).tolist() == [[1, 3], [2, 1], [3, 2]]
    assert list(heat.text[1]) == ["0.8", "0.3"]
    assert "place 3 of 3" in heat.customdata[2][0]
    cmd = plots.pair_map(pairs([[0.9, 0.1], [0.8, 0.3]]), "cmd").data[0]
    assert np.asarray(cmd.z).tolist() == [[1, 2], [2, 1]]
    assert list(cmd.text[0]) == ["0.1", "0.9"]


def test_what_ablating_everything_costs_stands_above_its_column():
    heads = plots.pair_map(pairs([[0.5, 0.5]])).layout.xaxis.ticktext
    assert list(heads) == ["zero<br>-4", "peak<br>-5"]


def test_a_pair_without_f_is_blank():
    figure = plots.pair_map(pairs([[np.nan, 0.1], [np.nan, 0.2]]))
    assert [list(row) for row in figure.data[0].text] == [["", "0.1"], ["", "0.2"]]
    assert "no f" in figure.data[0].customdata[0][0]


def test_what_is_no_curve_is_refused():
    for draw in (plots.faithfulness_curves, plots.pair_map):
        with pytest.raises(MismatchError, match=r"int .* faithfulness_curve"):
            draw(3)
        with pytest.raises(MismatchError, match="lacks the columns"):
            draw(pd.DataFrame({"found_with": ["zero"]}))
    with pytest.raises(MismatchError, match="no rows"):
        plots.faithfulness_curves(curves().iloc[:0])
    with pytest.raises(MismatchError, match="no measure 'cpt'; did you mean 'cpr'"):
        plots.pair_map(pairs([[1, 2]]), "cpt")


# ------------------------------------------------------------------ diagram


def twelve_by_twelve(kept):
    mask = torch.zeros(12, 12, 4, dtype=torch.bool)
    for layer, head in kept:
        mask[layer, head] = True
    return mask


def test_layers_go_upwards_heads_to_the_right_and_mlps_beside_them():
    mlps = torch.zeros(12, 1, 8, dtype=torch.bool)
    mlps[3] = True
    figure = plots.circuit_diagram(Circuit({"z": twelve_by_twelve([(0, 0), (11, 5)]), "mlp": mlps}))
    kept = next(trace for trace in figure.data if trace.name == "kept")
    assert dict(zip(kept.text, zip(kept.x, kept.y, strict=True), strict=True)) == {
        "L0.H0": (0, 0),
        "L11.H5": (5, 11),
        "L3.MLP": (pytest.approx(12.4), 3),
    }
    ablated = next(trace for trace in figure.data if trace.name == "ablated")
    assert len(ablated.x) == 144 + 12 - 3
    assert "3 of 156 units" in figure.layout.title.subtitle.text


def test_a_unit_is_as_large_as_its_share_and_shows_what_holds_back():
    circuit = Circuit.of(type("M", (), {"cfg": type("C", (), {"n_layers": 1, "n_heads": 3, "d_head": 4})}), True)
    effects = effects_of({Site.Z: torch.tensor([[-4.0, -1.0, 2.0]])})
    figure = plots.circuit_diagram(circuit, effects)
    needed, against = figure.data
    assert (needed.name, list(needed.text)) == ("kept", ["L0.H0", "L0.H1"])
    assert needed.marker.size[0] > needed.marker.size[1]
    assert (against.name, list(against.text)) == ("kept, holds it back", ["L0.H2"])
    assert needed.marker.color != against.marker.color
    assert "-4 " in needed.customdata[0]


def test_a_part_of_a_head_is_fainter_and_counted():
    mask = torch.tensor([[[True, False, False, False], [True] * 4]])
    (kept,) = plots.circuit_diagram(Circuit({"z": mask})).data
    assert kept.marker.opacity[0] < kept.marker.opacity[1] == 1
    assert "1 of 4 neurons kept" in kept.customdata[0]


def test_edges_are_lines_between_kept_units_and_the_strongest_is_the_widest():
    circuit = Circuit({"z": twelve_by_twelve([(0, 0), (11, 5)])})
    rows = [
        ("L0.H0", "L11.H5", "q", 0.5),
        ("L0.H0", "L11.H5", "k", -0.25),
        ("L11.H5", "logits", "logits", -2.0),
        ("L0.H1", "logits", "logits", 9.0),  # of a head that is not kept
    ]
    edges = pd.DataFrame(rows, columns=["from", "to", "kind", "effect"])
    figure = plots.circuit_diagram(circuit, edges=edges)
    weak, strong, *_ = [trace for trace in figure.data if trace.mode == "lines"]
    assert (tuple(weak.x), tuple(weak.y)) == ((0, 5), (0, 11))
    assert "+0.25 (q +0.5, k -0.25)" in weak.hovertemplate
    assert strong.line.width > weak.line.width
    assert strong.y[1] > 11
    assert len([trace for trace in figure.data if trace.mode == "lines"]) == 2
    assert [note.text for note in figure.layout.annotations] == ["logits"]
    for wrong, words in (
        (edges.assign(to="L12"[:2] + "<b>"), "is not"),
        (edges.drop(columns="effect"), "from, to and effect"),
        (3, "from, to and effect"),
    ):
        with pytest.raises(MismatchError, match=words):
            plots.circuit_diagram(circuit, edges=wrong)


def test_a_diagram_of_thousands_of_edges_draws_the_strongest():
    heads = [(layer, head) for layer in range(12) for head in range(12)]
    names = [f"L{layer}.H{head}" for layer, head in heads]
    rows = [(name, "logits", place) for place, name in enumerate(names)]
    edges = pd.DataFrame(rows, columns=["from", "to", "effect"])
    figure = plots.circuit_diagram(Circuit({"z": twelve_by_twelve(heads)}), edges=edges)
    assert [trace.name.split()[0] for trace in figure.data if trace.mode == "lines"] == names[-60:]


def test_effects_of_layers_cannot_size_heads():
    with pytest.raises(MismatchError, match="effects of layers"):
        plots.circuit_diagram(Circuit({"z": twelve_by_twelve([])}), effects_of({Site.Z: torch.ones(12)}, level="layer"))


# ------------------------------------------------------------------ all of them


def every_figure(name="peak"):
    effects = effects_of({Site.Z: heads()}, values=name, metric=name)
    yield plots.effect_map(effects)
    yield plots.circuit_diagram(Circuit({"z": torch.ones(2, 3, 4, dtype=torch.bool)}), effects)
    yield plots.faithfulness_curves(curves((name, "zero"), (name, "zero")))
    table = pairs([[0.1, 0.2]], judges=(name, "zero")).assign(found_with=name)
    yield plots.pair_map(table)


def test_figures_carry_the_look_and_say_what_they_are_on_a_telephone():
    for figure in every_figure():
        assert figure.layout.template == plots.LENS_TEMPLATE
        assert 0 < len(figure.layout.title.text) <= 34


def test_names_from_outside_are_text():
    for figure in every_figure(HOSTILE):
        text = said(figure)
        for interpreted in ("<img", "<a ", "%{stolen}", "$x$"):
            assert interpreted not in text
