"""`load_model(..., random_init=seed)`: the model before training, which nothing takes for the trained one."""

import json
import shutil

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens import load_model
from ablation_lens.adapters import HookedViT
from ablation_lens.errors import MismatchError, ModelError
from ablation_lens.experiments.scores import Scores
from ablation_lens.explorer.files import explore_files
from ablation_lens.sites import Site
from tests.answers import answered
from tests.tiny_models import FAMILIES, reference, run

TOKENS = torch.randint(3, 2000, (8, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_logits_and_z_are_those_of_transformers_own_initialisation(tiny, saved):
    inputs, mask = tiny.inputs()
    torch.manual_seed(7)
    hf_model = tiny.build().eval()
    logits, reference_z = reference(hf_model, tiny, inputs, mask)
    model, z = load_model(saved(tiny.name), random_init=7), []
    hooks = [(name, lambda value, hook: z.append(value.flatten(2).clone())) for name in Site.Z.hook_names(model.cfg)]
    ours = run(model, inputs, mask, hooks)
    real = ... if mask is None else mask.bool()
    assert logits.std() > 0.01
    assert torch.allclose(
        ours if logits.ndim == 2 else ours[real], logits if logits.ndim == 2 else logits[real], atol=1e-5
    )
    for ours_at_layer, theirs in zip(z, reference_z, strict=True):
        assert theirs.std() > 0.001
        assert torch.allclose(ours_at_layer[real], theirs[real], atol=1e-6)


def test_a_seed_gives_the_same_weights_wherever_it_is_asked_and_leaves_the_callers_numbers_alone(saved):
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        first = load_model(saved("opt"), random_init=3)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.rand(5)
    after = torch.get_rng_state()
    again = load_model(saved("opt"), random_init=np.int64(3))
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(before, after)
    assert again.record == first.record
    half = load_model(saved("opt"), random_init=3, dtype="bfloat16")
    assert all(
        torch.equal(weight.bfloat16(), ours) for weight, ours in zip(first.parameters(), half.parameters(), strict=True)
    )
    assert load_model(saved("opt"), random_init=4).record.weights != first.record.weights


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-roberta"])
def test_tied_embeddings_stay_tied(name):
    twin, trained = load_model(name, random_init=0), load_model(name)
    sizes = [sum(parameter.numel() for parameter in set(model.parameters())) for model in (twin, trained)]
    places = [{p.untyped_storage().data_ptr() for p in torch.nn.Module.parameters(model)} for model in (twin, trained)]
    assert len(places[0]) == len(places[1])
    assert sizes[0] == sizes[1]


def test_all_but_the_weights_is_the_checkpoints():
    twin, trained = load_model("tiny-opt", random_init=0), load_model("tiny-opt")
    assert twin.to_tokens("a plan").tolist() == trained.to_tokens("a plan").tolist()
    assert twin.hf_config.to_dict() == trained.hf_config.to_dict()
    assert twin.record.differences(trained.record)[0].startswith("weights: ")
    assert twin.record.name == "tiny-opt (random 0)"
    images = HookedViT.from_pretrained("tiny-vit", random_init=0)
    assert images.image_processor.to_dict() == load_model("tiny-vit").image_processor.to_dict()
    assert images.record == load_model("tiny-vit", random_init=0).record


def test_no_weights_are_read(saved, tmp_path):
    folder = shutil.copytree(saved("mistral"), tmp_path / "config alone")
    expected = load_model(folder, random_init=1).record.weights
    (folder / "model.safetensors").write_bytes(b"broken")
    assert load_model(folder, random_init=1).record.weights == expected
    (folder / "model.safetensors").unlink()
    assert load_model(folder, random_init=1).record.weights == expected
    with pytest.raises(ModelError, match="no weights"):
        load_model(folder)


@pytest.mark.parametrize("seed", [True, -1, 1.5, "0", 2**64, [1]])
def test_what_is_no_seed_is_refused(seed, saved):
    with pytest.raises(ModelError, match=r"random_init=.* whole number"):
        load_model(saved("opt"), random_init=seed)


def test_a_config_that_memory_does_not_hold_is_refused_before_it_is_built(saved, tmp_path):
    folder = shutil.copytree(saved("mistral"), tmp_path / "large")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"vocab_size": 10**9, "hidden_size": 10**6}))
    with pytest.raises(ModelError, match="bytes to initialise"):
        load_model(folder, random_init=0)


# ---------------------------------------------------------------------- told from the trained model


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The trained model and its twin, with statistics of each."""
    folder = tmp_path_factory.mktemp("twins")
    models = {"trained": load_model("tiny-opt"), "random": load_model("tiny-opt", random_init=0)}
    statistics = {}
    for name, model in models.items():
        statistics[name] = al.collect(model, [TOKENS], progress=False)
        statistics[name].save(folder / f"{name}.safetensors")
    return folder, models, statistics


@pytest.mark.parametrize(("of", "other"), [("trained", "random"), ("random", "trained")])
def test_statistics_of_one_are_refused_for_the_other(twins, of, other):
    _, models, statistics = twins
    mask = al.random_neurons(statistics[of].shape, 0.5, 0)
    statistics[of].ablation(mask, "mean").bake(models[of])
    with pytest.raises(MismatchError, match="not the same model"):
        statistics[of].ablation(mask, "mean").bake(models[other])
    with pytest.raises(MismatchError, match="not the same model"):
        statistics[of].merge(statistics[other])


def test_a_folder_keeps_scores_of_both_apart(twins, tmp_path):
    _, models, _ = twins
    found = {
        name: Scores(model, [al.Batch.causal(TOKENS)], folder=tmp_path).of().cross_entropy
        for name, model in models.items()
    }
    assert abs(found["random"] - found["trained"]) > 0.1
    assert len(list((tmp_path / "scores").iterdir())) == 2


def test_a_study_of_both_tells_them_apart_by_name(twins, tmp_path):
    _, models, _ = twins
    batches = {"collect": [TOKENS[:4]], "evaluate": [TOKENS[4:]]}
    settings = {"methods": ["mean"], "fractions": [0.5], "seeds": [1], "batches": batches}
    results = al.Study(models=["tiny-opt", models["random"]], **settings).run(tmp_path, progress=False)
    assert set(results.frame["model"]) == {"tiny-opt", "tiny-opt (random 0)"}
    with pytest.raises(ModelError, match="neither a folder here nor a hub id"):
        load_model("tiny-opt (random 0)")


def test_a_page_about_the_twin_does_not_load_the_trained_model_for_its_examples(twins, tmp_path):
    folder, *_ = twins
    explore_files(folder / "random.safetensors", html=tmp_path / "page.html")
    assert "what a file names is not loaded" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(MismatchError, match="not the same model"):
        explore_files(folder / "random.safetensors", html=tmp_path / "p.html", model="tiny-opt", examples=1)


def test_the_command_loads_it_and_refuses_the_trained_models_statistics(command, twins):
    folder, models, _ = twins
    record = answered(command("info", "tiny-opt", "--random-init", "0", "--json"), "model")
    assert record["name"] == "tiny-opt (random 0)"
    assert record["weights"] == models["random"].record.weights
    code, _, errors = command("info", "tiny-opt", "--random-init", "-1")
    assert code == 2
    assert "--random-init -1 is not possible" in errors
    for seed, given in (("0", "trained"), ("1", "random")):
        asked = ("--center", "mean", "--fraction", "0.5", "--statistics", folder / f"{given}.safetensors")
        code, _, errors = command("evaluate", "tiny-opt", "--random-init", seed, *asked)
        assert code == 2
        assert "not the same model" in " ".join(errors.split())
    text, place = folder / "text.txt", folder / "by command.safetensors"
    text.write_text("A text of a few words.", encoding="utf-8")
    command("collect", "tiny-opt", "--random-init", "0", "--corpus", text, "--split", "all", "--out", place)
    assert al.ActivationStatistics.load(place).provenance.model == models["random"].record
