"""Edges: their sums, their exact counterparts, and which models have any."""

import math

import pytest
import torch

import ablation_lens as al
from ablation_lens import circuits
from ablation_lens.circuits import Edge, EdgeEffects, attribution_effects, edge_effects, path_patching
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.measure.forward import capture
from ablation_lens.sites import Site
from tests.circuits.models import linear_batch, linear_model

BOTH = [Site.Z, Site.MLP]
TEXT = torch.tensor([[2, 7, 9, 11, 4], [2, 5, 8, 6, 3], [2, 30, 41, 12, 9]])


def prompts():
    return al.Batch.prompts(TEXT, answers=[4, 6, 8], wrong=[5, 7, 9])


def measured(model, batches, values=0.0, **options):
    return edge_effects(model, batches, "logit_difference", values, sites=BOTH, progress=False, **options)


def patched(model, batches, edges, values=0.0):
    return path_patching(model, batches, "logit_difference", values, edges, sites=BOTH, progress=False)


@pytest.fixture(scope="module")
def opt():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def effects(opt):
    return measured(opt, prompts())


def config(**changes):
    """A random HookedTransformer of two layers, in float64."""
    plain = {
        "n_layers": 2, "d_model": 12, "n_ctx": 8, "d_head": 4, "n_heads": 3, "d_vocab": 50, "d_mlp": 10,
        "act_fn": "gelu", "dtype": torch.float64, "device": "cpu", "seed": 0, "init_weights": True,
    }  # fmt: skip
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("transformer-lens 4 has no HookedTransformer")
    return HookedTransformer(HookedTransformerConfig(**{**plain, **changes}))


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated", "ignore:it is not known how this model")
@pytest.mark.parametrize("changes", [{}, {"parallel_attn_mlp": True}, {"attn_only": True}, {"n_key_value_heads": 1}])
def test_the_edges_of_a_unit_add_up_to_its_gradient_in_any_config(changes):
    model = config(**changes)
    sites = ["z"] if "attn_only" in changes else BOTH
    options = {"sites": sites, "progress": False}
    edges = edge_effects(model, prompts(), "logit_difference", 0.1, **options)
    nodes = attribution_effects(model, prompts(), "logit_difference", 0.1, method="gradient", level="head", **options)
    expected = torch.cat([nodes[site].flatten() for site in nodes.sites])
    torch.testing.assert_close(edges.effects.nan_to_num(0).sum(-1), expected)


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-vit"])
def test_the_edges_of_a_unit_add_up_to_its_gradient(name):
    model = al.load_model(name)
    batches = al.task_for(model).batches(split="evaluate", images=3) if name == "tiny-vit" else prompts()
    options = {"sites": BOTH, "progress": False}
    edges = edge_effects(model, batches, "cross_entropy", 0.1, **options)
    nodes = attribution_effects(model, batches, "cross_entropy", 0.1, method="gradient", level="head", **options)
    expected = torch.cat([nodes[site].flatten() for site in nodes.sites])
    torch.testing.assert_close(
        edges.effects.nan_to_num(0).sum(-1), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )


def test_for_small_changes_gradients_are_exact():
    model = al.load_model("tiny-opt", dtype=torch.float64)

    def slightly_other(model, batch, site):
        held = torch.stack(list(capture(model, batch, site).values()))
        return held + 1e-5 * (1 + held.sin())

    edges = [
        Edge("L0.H1", "L2.H3.Q"),
        Edge("L0.H2", "L1.H0.K"),
        Edge("L1.MLP", "L3.H2.V"),
        Edge("L2.H0", "L2.MLP"),
        Edge("L0.MLP", "L1.MLP"),
        Edge("L1.H3", "logits"),
    ]
    found = measured(model, prompts(), slightly_other)
    exact = patched(model, prompts(), edges, slightly_other)
    for edge in edges:
        assert exact[repr(edge)] == pytest.approx(found[edge], rel=1e-2, abs=1e-12)


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated", "ignore:it is not known how this model")
def test_in_a_linear_model_the_gradient_is_the_patch():
    """Attention that looks at all positions evenly, no norms, and neurons far on their linear side."""
    model = config(normalization_type=None, act_fn="relu")
    for block in model.blocks:
        block.attn.W_Q.data.zero_()
        block.attn.W_K.data.zero_()
        block.mlp.b_in.data.fill_(50)
        block.mlp.b_out.data -= 50 * block.mlp.W_out.data.sum(0)
    values = {"z": 0.3, "mlp": 50.0}
    found = measured(model, prompts(), values)
    edges = [edge for edge in found.edges() if edge.kind not in ("q", "k")]
    exact = patched(model, prompts(), edges, values)
    for edge in edges:
        assert exact[repr(edge)] == pytest.approx(found[edge], abs=1e-9)


def test_what_the_logits_alone_read_is_patched_as_it_is_knocked_out(opt):
    exact = patched(opt, prompts(), [Edge("L3.MLP", "logits")])
    ablation = circuits.Circuit.of_heads("L3.MLP", opt).inside(0.0)
    scores = [al.evaluate(opt, prompts(), each, metrics="logit_difference") for each in (ablation, None)]
    expected = scores[0]["logit_difference"] - scores[1]["logit_difference"]
    assert float(exact.iloc[0]) == pytest.approx(expected, abs=1e-4)


def test_batches_are_added_up(opt, effects):
    alone = measured(opt, [prompts().rows(row, row + 1) for row in range(3)])
    torch.testing.assert_close(alone.effects, effects.effects, rtol=1e-3, atol=1e-5, equal_nan=True)


def test_dead_ends_are_left_out_before_edges_are_counted(effects):
    for count in (1, 5, 20, 60):
        chosen = effects.top(count)
        read = {edge.writer for edge in chosen}
        assert len(chosen) <= count
        assert all(edge.reader == "logits" or edge.unit in read for edge in chosen)
    assert len(effects.top(60)) > len(effects.top(20)) > 0


def test_no_unit_is_read_by_what_comes_before_it(effects):
    with pytest.raises(MismatchError, match="no edge"):
        effects["L2.H0", "L1.MLP"]
    assert math.isnan(effects.effects[effects.writers.index("L2.H0"), effects.readers.index("L1.MLP")])
    assert effects["L2.H0", "L2.MLP"] != 0
    table = effects.table()
    assert len(table) == 426  # 6 for each pair of layers would count what comes before
    assert set(table.kind) == {"q", "k", "v", "mlp", "logits"}
    assert not table.effect.isna().any()
    assert list(table.effect.abs()) == sorted(table.effect.abs(), reverse=True)


def test_edges_are_saved(effects, tmp_path):
    effects.save(tmp_path / "edges.safetensors")
    loaded = EdgeEffects.load(tmp_path / "edges.safetensors")
    assert repr(loaded) == repr(effects)
    torch.testing.assert_close(loaded.effects, effects.effects, equal_nan=True)
    (tmp_path / "half").write_bytes((tmp_path / "edges.safetensors").read_bytes()[:500])
    with pytest.raises(FileFormatError):
        EdgeEffects.load(tmp_path / "half")


def test_a_model_with_norms_after_its_parts_is_refused():
    model = al.load_model("tiny-roberta")
    asked = al.Batch.prompts([[5, model.tokenizer.mask_token_id, 7]], [6], model=model)
    with pytest.raises(MismatchError, match="post-LayerNorm"):
        edge_effects(model, asked, "cross_entropy", 0.0, progress=False)


def test_a_model_without_the_known_parts_is_refused():
    with pytest.raises(MismatchError, match="ln1"):
        edge_effects(linear_model(), linear_batch(), "logit_difference", 0.0, progress=False)


@pytest.mark.parametrize("edge", [Edge("L2.H0", "L1.MLP"), Edge("L0.H9", "logits"), Edge("L0.H0", "L1.H0"), "L0.H0"])
def test_edges_that_are_not_there_are_refused(opt, edge):
    with pytest.raises(MismatchError, match="edge"):
        patched(opt, prompts(), [edge])


def test_a_metric_without_a_gradient_is_refused(opt):
    with pytest.raises(MismatchError, match="no gradient"):
        edge_effects(opt, prompts(), "rank", 0.0, progress=False)
