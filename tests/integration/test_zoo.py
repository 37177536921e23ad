"""The shipped models: real weights, so parity and statistics on what neurons really do."""

import pytest
import torch
import transformers

import ablation_lens as al
from ablation_lens import zoo
from ablation_lens.errors import ModelError
from ablation_lens.sites import Site
from tests.reference_peak import PeakComparison, compare_peaks

AUTO = {
    "tiny-opt": "AutoModelForCausalLM",
    "tiny-mistral": "AutoModelForCausalLM",
    "tiny-roberta": "AutoModelForMaskedLM",
    "tiny-vit": "AutoModelForImageClassification",
    "tiny-llama": "AutoModelForCausalLM",
}


def projections(hf_model):
    """The output projection of every layer."""
    names = ("out_proj", "o_proj", "attention.output.dense")
    return [module for name, module in hf_model.named_modules() if name.endswith(names)]


def small_plan(model, split="evaluate"):
    unit = "images" if getattr(model, "task", "") == "image-classification" else "tokens"
    return al.task_for(model).batches(split=split, **{unit: {"images": 16, "tokens": 1500}[unit]})


@pytest.mark.parametrize("name", zoo.NAMES)
def test_logits_and_z_equal_hugging_faces(name):
    model = al.load_model(name)
    hf_model = getattr(transformers, AUTO[name]).from_pretrained(zoo.folder(name), dtype=torch.float32).eval()
    for batch in small_plan(model):
        z, expected_z = [], []
        handles = [
            module.register_forward_pre_hook(lambda module, args, seen=expected_z: seen.append(args[0].detach()))
            for module in projections(hf_model)
        ]
        args, options = batch.arguments()
        with torch.no_grad():
            expected = hf_model(*args, **options).logits
        for handle in handles:
            handle.remove()
        hooks = [
            (hook, lambda value, hook, seen=z: seen.append(value.flatten(2))) for hook in Site.Z.hook_names(model.cfg)
        ]
        logits = model.run_with_hooks(*args, fwd_hooks=hooks, **options)
        real = batch.valid if logits.ndim == 3 else slice(None)
        assert (logits[real] - expected[real]).abs().max() <= 1e-4
        assert len(z) == len(expected_z) == model.cfg.n_layers == 4
        for ours, theirs in zip(z, expected_z, strict=True):
            # trained weights: z reaches ±6, and float32 rounds in proportion (random weights: test_parity, absolute)
            scale = theirs[batch.valid].abs().max().clamp_min(1.0)
            assert (ours - theirs)[batch.valid].abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_zoo_model_says_what_it_is_and_reads_text_or_images(name):
    model = al.load_model(name)
    assert model.record.name == name
    assert model.record.n_heads >= 4
    assert al.task_for(model).corpus.name == zoo.training_record(name)["corpus"]
    if name == "tiny-vit":
        assert model.tokenizer is None
        assert model.image_processor is not None
        return
    tokenizer = model.hf_tokenizer
    text = "The class of an object is returned by type(); see __class__ too.\n    x = [1, 2]\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    ids = tokenizer("if x:")["input_ids"]
    starts = {"tiny-opt": "</s>", "tiny-mistral": "<s>", "tiny-roberta": "<s>", "tiny-llama": "<s>"}
    assert tokenizer.convert_ids_to_tokens(ids)[0] == starts[name]
    assert ids.count(ids[0]) == 1  # no double BOS


def test_they_are_small_enough_to_ship():
    files = [path for name in zoo.NAMES for path in zoo.folder(name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert not [path for path in files if path.suffix not in {".json", ".safetensors"}]


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match="did you mean tiny-opt"):
        al.load_model("tiny-op")


def test_one_pass_finds_the_peaks_of_real_neurons_where_the_reference_does(capsys):
    """≥ 1,000 real neurons: our peak is within one of the reference's bin widths of its own, where a peak is clear."""
    comparisons = {256: [], 128: []}
    for name in zoo.NAMES:
        model = al.load_model(name)
        size = {"images": 150} if name == "tiny-vit" else {"tokens": 12_000}
        plan = al.task_for(model).batches(split="collect", **size)
        kept = [[] for _ in range(model.cfg.n_layers)]
        for batch in plan:
            args, options = batch.arguments()
            hooks = [
                (hook, lambda z, hook, rows=kept[layer], valid=batch.valid: rows.append(z[valid].flatten(1).clone()))
                for layer, hook in enumerate(Site.Z.hook_names(model.cfg))
            ]
            model.run_with_hooks(*args, fwd_hooks=hooks, **options)
        statistics = al.collect(model, plan, progress=False)
        values = torch.cat([torch.cat(rows) for rows in kept], dim=1)
        for bins, found in comparisons.items():
            found.append(compare_peaks(values, statistics, bins))
    fine, default = (PeakComparison.of_all(found) for found in comparisons.values())
    with capsys.disabled():
        print(f"\nzoo, 256 bins: {fine}\nzoo, 128 bins: {default}")
    assert len(fine.qualifying) >= 1000
    assert fine.qualifying.sum() >= 100  # most real neurons have a broad top
    # At the default's 128 bins ε may exceed the reference's bin width; then one width is not always to be had.
    assert fine.matched_share >= 0.99


def test_the_two_sides_of_a_collection_agree_on_real_weights_with_and_without_padding():
    model = al.load_model("tiny-roberta")
    plan = small_plan(model, split="collect")
    together = al.collect(model, plan, progress=False)
    alone = al.collect(model, [torch.tensor([item.inputs]) for item in plan.items], progress=False)
    assert torch.equal(together.count, alone.count)
    assert torch.allclose(together.minimum, alone.minimum, atol=1e-5)
    assert torch.allclose(together.maximum, alone.maximum, atol=1e-5)
    assert torch.allclose(together.mean, alone.mean, atol=1e-6)
    assert torch.allclose(together.std, alone.std, atol=1e-6)
