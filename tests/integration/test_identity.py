"""Values belong to one model: to its weights, whatever it is called and wherever it came from."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import transformers

import ablation_lens as al
from ablation_lens import Ablation, load_model, random_neurons, record_of, weights
from ablation_lens.adapters import HookedRoberta
from ablation_lens.errors import MismatchError
from ablation_lens.measure.contexts import gather_contexts
from ablation_lens.models.load import transformer_lens_major
from tests.tiny_models import FAMILIES

TOKENS = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(0))
BATCH = al.Batch.causal(TOKENS)


def from_a_config(seed):
    torch.manual_seed(seed)
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16,
        max_position_embeddings=20,
    )  # fmt: skip
    return HookedRoberta(transformers.RobertaForMaskedLM(config))


def statistics_of(model):
    return al.collect(model, [TOKENS], progress=False)


def train_a_step(model):
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(TOKENS).pow(2).mean().backward()
    optimizer.step()
    model.zero_grad()
    model.requires_grad_(False)


def uses(statistics, model):
    """Every way in which values meet a model that is known."""
    ablation = statistics.ablation(random_neurons(statistics.shape, 0.5, 0), "mean")
    return {
        "applied_to": lambda: ablation.applied_to(model),
        "hooks": lambda: ablation.hooks(model=model),
        "bake": lambda: ablation.bake(model),
        "evaluate": lambda: al.evaluate(model, [BATCH], ablation),
        "merge": lambda: statistics.merge(statistics_of(model)),
        "contexts": lambda: gather_contexts(model, [BATCH], statistics, ["L0.H0.D0"], k=1),
    }


def require_refused(statistics, model, match="not the same model"):
    for use in uses(statistics, model).values():
        with pytest.raises(MismatchError, match=match):
            use()


def require_accepted(statistics, model):
    for use in uses(statistics, model).values():
        use()


def test_models_from_one_config_are_told_apart_by_their_weights():
    statistics = statistics_of(from_a_config(seed=0))
    require_accepted(statistics, from_a_config(seed=0))
    require_refused(statistics, from_a_config(seed=1), "checksum: ")


def test_a_training_step_makes_another_model():
    model = from_a_config(seed=0)
    before = copy.deepcopy(model.state_dict())
    statistics = statistics_of(model)
    train_a_step(model)
    require_refused(statistics, model)
    require_accepted(statistics_of(model), model)
    model.load_state_dict(before)
    require_accepted(statistics, model)


@pytest.mark.skipif(transformer_lens_major() >= 4, reason="transformer-lens 4 has no HookedTransformer")
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_a_hooked_transformer_from_a_config_is_told_apart_too():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = {"n_layers": 2, "d_model": 12, "n_ctx": 12, "d_head": 4, "d_vocab": 50, "act_fn": "gelu"}
    models = [HookedTransformer(HookedTransformerConfig(**config, seed=seed)) for seed in (0, 0, 1)]
    statistics = statistics_of(models[0])
    require_accepted(statistics, models[1])
    require_refused(statistics, models[2])
    train_a_step(models[1])
    require_refused(statistics, models[1])


def train_some(model):
    # What an optimizer does, on whichever parameters of a bridge there are.
    for parameter in model.parameters():
        parameter.data.add_(1e-3)


def edit_one_number(model):
    weight = list(torch.nn.Module.parameters(model))[-1]
    weight.data.view(-1)[0].add_(1e-6)


def round_to_16_bits(model):
    model.to(torch.bfloat16)


@pytest.mark.parametrize("change", [train_some, edit_one_number, round_to_16_bits])
@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_a_loaded_model_that_was_changed_is_no_longer_the_one_that_was_loaded(tiny, change, saved):
    model = load_model(saved(tiny.name))
    ablation = Ablation(
        random_neurons(al.Site.Z.shape(model.cfg), 0.5, 0), torch.zeros(al.Site.Z.shape(model.cfg)), record_of(model)
    )
    assert record_of(model) == model.record
    assert record_of(copy.deepcopy(model)) == model.record
    old = replace(ablation, source=replace(model.record, checksum=None))  # as files of earlier versions say it
    old.require_fits(model)
    change(model)
    record = record_of(model)
    assert (record.weights, record.name) == (None, f"{model.record.name} (changed after loading)")
    for known in (ablation, old):
        with pytest.raises(MismatchError, match="not the same model"):
            known.require_fits(model)
    Ablation(ablation.mask, ablation.values, record).require_fits(model)


def test_both_majors_layouts_of_one_checkpoint_are_one_model():
    here = load_model("tiny-opt").record
    there = replace(here, checksum="01234567-0000000000000000")
    assert here.differences(there) == []
    # Without the digest of what was loaded nothing says so.
    (difference,) = here.differences(replace(there, weights=None))
    assert difference.startswith("checksum")
    # In one layout the checksum sees what the digest, which takes samples, may miss.
    (difference,) = here.differences(replace(here, checksum=here.checksum[:-1] + "?"))
    assert difference.startswith("checksum")


def test_an_old_file_that_knows_but_the_name_of_a_model_is_taken_and_spoken_of_once():
    model = from_a_config(seed=0)
    values = statistics_of(model).ablation(random_neurons((2, 3, 4), 0.5, 0), "mean")
    old = replace(values, source=replace(values.source, checksum=None))
    with pytest.warns(UserWarning, match="whether they are this model's cannot be told"):
        old.applied_to(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old.bake(model)
        values.applied_to(from_a_config(seed=0))
    assert caught == []


def test_what_the_checksum_is_of_is_part_of_a_key_where_no_digest_is():
    loaded, own = load_model("tiny-vit").record, record_of(from_a_config(seed=0))
    shape = {"n_layers", "n_heads", "d_head", "d_model", "d_mlp", "n_ctx"}
    # As keys were before there were checksums.
    assert loaded.identity.keys() == shape | {"name", "revision", "architecture", "dtype", "processing", "weights"}
    assert (loaded.identity["name"], loaded.identity["weights"]) == (None, loaded.weights)
    assert (own.identity["name"], own.identity["checksum"]) == (own.name, own.checksum)


def test_a_study_looks_at_a_models_weights_once(monkeypatch, tmp_path):
    looked = []
    monkeypatch.setattr(weights, "checksum", lambda model: looked.append(model) or model.record.checksum)
    sizes = {"collect_images": 32, "evaluate_images": 32}
    study = al.Study(models=["tiny-vit"], methods=["mean"], fractions=[0.5, 1.0], seeds=[0, 1], device="cpu", **sizes)
    assert len(study.run(tmp_path, progress=False).frame) == 4
    assert len(looked) == 1  # what `collect` writes into the statistics
