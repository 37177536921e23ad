"""What must hold on a GPU: the same numbers as Hugging Face and as the CPU, in every dtype that models come in.

`pytest -m gpu` runs it on one; the same bodies run on the CPU otherwise.
"""

import warnings

import pytest
import torch

import ablation_lens as al
from ablation_lens import circuits
from ablation_lens.measure import resampling
from ablation_lens.measure.forward import capture, logits_everywhere
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.sending import send
from ablation_lens.sites import Site
from ablation_lens.tasks.plans import Batch
from tests.histograms import assert_same_state
from tests.tiny_models import BY_NAME, FAMILIES, reference, run

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EXACT, HALF = 1e-4, 1.5  # a difference, and how many times what transformers is wrong by
TEXTS = ("opt", "mistral", "roberta")
SMALL = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def name_of(tiny):
    return getattr(tiny, "name", None) or str(tiny).removeprefix("torch.")


def batch_of(model, tiny, seed=0, rows=6):
    """Rows of random tokens, the second one padded, or images."""
    draw = torch.Generator().manual_seed(seed)
    if tiny.image is not None:
        pixels = torch.randn(rows, *tiny.image, generator=draw)
        batch = Batch.images(pixels, model.cfg.n_ctx)
        labels = torch.randint(model.cfg.d_vocab_out, (rows,), generator=draw)
        return Batch(batch.inputs, batch.valid, labels, torch.ones(rows, dtype=torch.bool))
    tokens = torch.randint(3, 61, (rows, 12), generator=draw)
    valid = torch.ones(rows, 12, dtype=torch.bool)
    valid[1, 7:] = False
    return Batch.causal(torch.where(valid, tokens, 1), valid)


def drawn(model, seed=0, share=0.5):
    """Some neurons of z, set to random values."""
    shape = Site.Z.shape(model.cfg)
    return al.Ablation(al.random_neurons(shape, share, seed), torch.randn(shape) / 4)


def error(logits, truth, keep):
    return (logits.cpu().double() - truth).abs()[keep].mean().item()


# ---------------------------------------------------------------------- loading


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("tiny", FAMILIES, ids=name_of)
def test_logits_and_z_are_hugging_faces(tiny, dtype, accelerator, saved):
    inputs, mask = tiny.inputs()
    keep = slice(None) if mask is None else mask.bool()
    truth, true_z = reference(tiny.model().double(), tiny, inputs.double() if mask is None else inputs, mask)
    there = inputs.to(accelerator, dtype) if mask is None else inputs.to(accelerator)
    mask = None if mask is None else mask.to(accelerator)
    theirs, their_z = reference(tiny.model().to(accelerator, dtype), tiny, there, mask)

    model = al.load_model(saved(tiny.name), device=accelerator, dtype=dtype)
    z = []
    hooks = [(name, lambda value, hook: z.append(value.flatten(2).clone())) for name in Site.Z.hook_names(model.cfg)]
    with torch.inference_mode():
        ours = run(model, there, mask, hooks)
    assert ours.device.type == accelerator.type
    assert ours.dtype == dtype
    assert model.record.dtype == name_of(dtype)
    logits_keep = keep if truth.ndim == 3 else slice(None)
    assert error(ours, truth, logits_keep) <= max(EXACT, HALF * error(theirs, truth, logits_keep))
    for mine, other, exact in zip(z, their_z, true_z, strict=True):
        assert error(mine, exact, keep) <= max(EXACT, HALF * error(other, exact, keep))


def test_none_is_the_gpu_and_the_checkpoints_own_dtype(accelerator):
    if accelerator.type == "cpu" and torch.cuda.is_available():
        pytest.skip("None is the GPU here")
    model = al.load_model("tiny-opt")
    weight = next(iter(model.parameters()))
    assert weight.device.type == accelerator.type
    assert weight.dtype == (torch.float32 if accelerator.type == "cpu" else model.hf_config.dtype)


# ---------------------------------------------------------------------- statistics


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("tiny", [BY_NAME["mistral"], BY_NAME["vit"]], ids=name_of)
def test_counts_are_the_cpus_counts_of_the_same_activations(tiny, dtype, accelerator, saved, tmp_path):
    model = al.load_model(saved(tiny.name), device=accelerator, dtype=dtype)
    batches = [batch_of(model, tiny, seed) for seed in (1, 2)]
    found = al.collect(model, batches, passes=2, progress=False)
    shape = Site.Z.shape(model.cfg)

    def activations():
        with torch.inference_mode():
            for batch in batches:
                captured = capture(model, batch.to(accelerator))
                yield torch.stack(list(captured.values()), dim=2).cpu(), batch.valid

    first = NeuronHistogram(shape, resolution=dtype)
    for values, valid in activations():
        first.update(values, valid)
    assert_same_state(found.histogram.to("cpu"), first)
    trimmed = TrimmedHistogram.around(first)
    for values, valid in activations():
        trimmed.update(values, valid)
    assert_same_state(found.trimmed.inside.to("cpu"), trimmed.inside)

    found.save(tmp_path / "there.safetensors")
    read = al.ActivationStatistics.load(tmp_path / "there.safetensors")
    assert_same_state(read.histogram, first)
    for center in ("mean", "peak", "median"):
        assert torch.equal(read.center(center), found.center(center).cpu())


def test_collecting_twice_gives_the_same_bits_and_parts_merge_to_the_whole(accelerator, saved):
    tiny = BY_NAME["opt"]
    model = al.load_model(saved("opt"), device=accelerator, dtype=torch.float32)
    batches = [batch_of(model, tiny, seed) for seed in (1, 2, 3)]
    whole, again = (al.collect(model, batches, progress=False) for _ in range(2))
    parts = [al.collect(model, part, progress=False) for part in (batches[:1], batches[1:])]
    for other in (again, parts[0].merge(parts[1])):
        assert_same_state(whole.histogram.to("cpu"), other.histogram.to("cpu"))
    assert torch.equal(whole.center("mean"), again.center("mean"))


# ---------------------------------------------------------------------- ablating


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("tiny", FAMILIES, ids=name_of)
def test_an_ablated_model_is_the_one_whose_values_are_set_by_hand(tiny, dtype, accelerator, saved):
    model = al.load_model(saved(tiny.name), device=accelerator, dtype=dtype)
    batch = batch_of(model, tiny).to(accelerator)
    ablation = drawn(model)
    mask, values = ablation.mask.flatten(1).to(accelerator), ablation.values.flatten(1).to(accelerator, dtype)
    hf_model = tiny.model().to(accelerator, dtype)
    for layer, projection in enumerate(tiny.projections(hf_model)):
        projection.register_forward_pre_hook(
            lambda module, inputs, layer=layer: (torch.where(mask[layer], values[layer], inputs[0]),)
        )
    options = {} if tiny.image else {"attention_mask": batch.valid.long()}
    inputs = batch.inputs.to(dtype) if tiny.image else batch.inputs
    with torch.inference_mode():
        expected = hf_model(inputs, **options).logits
        ours = logits_everywhere(model, batch, ablation.hooks())
        with ablation.applied_to(model):
            inside = logits_everywhere(model, batch)
    keep = batch.valid if expected.ndim == 3 else slice(None)
    scale = expected[keep].float().abs().max()
    assert (ours - expected)[keep].float().abs().max() <= 10 * SMALL[dtype] * scale
    assert torch.equal(inside[keep], ours[keep])
    score = al.evaluate(model, batch.to("cpu"), ablation)
    loss = torch.nn.functional.cross_entropy(ours[batch.scored].double(), batch.labels[batch.scored])
    assert score.cross_entropy == pytest.approx(float(loss), rel=10 * SMALL[dtype])
    assert score.predictions == int(batch.scored.sum())


def test_values_that_depend_on_position_and_input_are_placed_as_on_the_cpu(accelerator, saved):
    tiny = BY_NAME["opt"]
    models = [al.load_model(saved("opt"), device=device, dtype=torch.float32) for device in ("cpu", accelerator)]
    batch = batch_of(models[0], tiny)
    mask = al.random_neurons(Site.Z.shape(models[0].cfg), 0.5, 3)
    found = []
    for model in models:
        resampled = resampling.resample(model, "tokens", seed=5, positions=12)
        assert resampled.values.device.type == "cpu"
        by_place = al.evaluate(model, batch, al.Ablation(mask, resampled.values))
        means = al.collect(model, batch, positions=True, progress=False)
        at_the_end = al.evaluate(model, batch, means.ablation(mask, "mean").at(-1))
        found.append((by_place.cross_entropy, at_the_end.cross_entropy))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("tiny", FAMILIES, ids=name_of)
def test_baked_weights_do_what_hooks_do(tiny, dtype, accelerator, saved):
    model = al.load_model(saved(tiny.name), device=accelerator, dtype=dtype)
    batch, ablation = batch_of(model, tiny).to(accelerator), drawn(model)
    with torch.inference_mode():
        before = logits_everywhere(model, batch)
        hooked = logits_everywhere(model, batch, ablation.hooks())
        baked = logits_everywhere(ablation.bake(model), batch)
        assert torch.equal(logits_everywhere(model, batch), before)
    keep = batch.valid if hooked.ndim == 3 else slice(None)
    assert baked.device.type == accelerator.type
    assert (baked - hooked)[keep].float().abs().max() <= 10 * SMALL[dtype] * hooked[keep].float().abs().max()
    assert (before - hooked)[keep].float().abs().max() > 0.05


# ---------------------------------------------------------------------- studies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_a_study_is_gone_on_with(dtype, accelerator, saved, tmp_path):
    tiny = BY_NAME["opt"]
    model = al.load_model(saved("opt"), device=accelerator, dtype=dtype)
    batches = {"collect": batch_of(model, tiny, 1), "evaluate": batch_of(model, tiny, 2)}

    def study(fractions):
        methods = ("zero", "peak", "resample-tokens")
        return al.Study(models=[model], methods=methods, fractions=fractions, seeds=[1, 2], batches=batches)

    folder = tmp_path / "run"
    first = study([0.5]).run(folder, progress=False)
    cells = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    both = study([0.5, 1.0]).run(folder, progress=False)
    assert not first.failed
    assert not both.failed
    assert len(both.frame) > len(first.frame) == len(cells)
    assert cells.items() <= {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}.items()
    fresh = study([0.5, 1.0]).run(tmp_path / "fresh", progress=False)
    order = ["method", "fraction", "seed"]
    gone_on, at_once = (each.frame.sort_values(order, ignore_index=True) for each in (both, fresh))
    assert gone_on["cross_entropy"].tolist() == at_once["cross_entropy"].tolist()  # to the last bit
    assert gone_on["top1"].tolist() == at_once["top1"].tolist()


# ---------------------------------------------------------------------- circuits


@pytest.mark.parametrize("name", TEXTS)
def test_circuits_are_the_cpus(name, accelerator, saved):
    models = [al.load_model(saved(name), device=device, dtype=torch.float32) for device in ("cpu", accelerator)]
    tokens = torch.randint(3, 61, (4, 8), generator=torch.Generator().manual_seed(4))
    batch = Batch.prompts(tokens, [5, 6, 7, 8], [15, 16, 17, 18])
    if name == "roberta":
        batch = Batch.causal(tokens)
    metric = "cross_entropy" if name == "roberta" else "logit_difference"
    for measure in (
        lambda model: circuits.knockout_effects(model, batch, metric, 0.0, progress=False),
        lambda model: circuits.attribution_effects(model, batch, metric, 0.0, steps=4, progress=False),
    ):
        here, there = (measure(model) for model in models)
        largest = here["z"].abs().max()
        assert largest > 0
        assert (here["z"] - there["z"].cpu()).abs().max() <= 1e-3 * largest


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_head_is_knocked_out_as_by_evaluating_without_it(dtype, accelerator, saved):
    model = al.load_model(saved("mistral"), device=accelerator, dtype=dtype)
    batch = batch_of(model, BY_NAME["mistral"])
    effects = circuits.knockout_effects(model, batch, "cross_entropy", 0.0, progress=False)["z"]
    mask = torch.zeros(Site.Z.shape(model.cfg), dtype=torch.bool)
    mask[1, 2] = True
    damage = al.evaluate(model, batch, al.Ablation(mask, 0.0)).cross_entropy - al.evaluate(model, batch).cross_entropy
    assert float(effects[1, 2]) == pytest.approx(damage, abs=SMALL[dtype])


def test_attributions_add_up_in_half_precision_too(accelerator, saved):
    model = al.load_model(saved("opt"), device=accelerator, dtype=torch.bfloat16)
    batch = batch_of(model, BY_NAME["opt"])
    effects = circuits.attribution_effects(model, batch, "cross_entropy", 0.0, steps=16, progress=False)
    assert torch.isfinite(effects["z"]).all()
    assert abs(effects.residual) <= 0.3 * abs(effects.total)


# ---------------------------------------------------------------------- memory


def test_memory_that_runs_out_splits_a_batch_and_changes_no_number(accelerator, saved):
    model = al.load_model(saved("opt"), device=accelerator, dtype=torch.float32)
    batch, ablation = batch_of(model, BY_NAME["opt"]), drawn(model)
    whole = al.evaluate(model, batch, ablation)

    def fill(block, inputs, options):
        residual = next(value for value in (*inputs, *options.values()) if isinstance(value, torch.Tensor))
        if len(residual) > 3:
            if accelerator.type == "cuda":
                torch.empty(2**50, dtype=torch.uint8, device=accelerator)
            raise torch.OutOfMemoryError  # a CPU has an error of another kind

    handle = model.blocks[0].register_forward_pre_hook(fill, with_kwargs=True)
    parts = al.evaluate(model, batch, ablation)
    handle.remove()
    assert parts.splits == 1
    assert parts.cross_entropy == pytest.approx(whole.cross_entropy, rel=1e-6)


# ---------------------------------------------------------------------- waiting


def waits_in(run):
    """How often the host has waited for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in said)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["collect", "evaluate", "evaluate ablated"])
@pytest.mark.parametrize("tiny", FAMILIES, ids=name_of)
def test_the_host_waits_at_most_once_for_every_further_batch(tiny, way, saved):
    model = al.load_model(saved(tiny.name), device="cuda", dtype=torch.bfloat16)
    batches = [batch_of(model, tiny, seed) for seed in range(9)]
    ablation = drawn(model)

    def run(count):
        if way == "collect":
            al.collect(model, batches[:count], progress=False)
        else:
            al.evaluate(model, batches[:count], ablation if "ablated" in way else None)

    run(3)  # what is looked at once per model or kernel is behind us
    assert waits_in(lambda: run(9)) - waits_in(lambda: run(3)) <= 6


@pytest.mark.gpu
def test_memory_that_its_owner_pinned_may_be_written_to_at_once():
    pinned = torch.zeros(2**22, dtype=torch.int64).pin_memory()
    busy = torch.rand(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy  # the copy comes after this
    sent = send(pinned, "cuda")
    pinned.fill_(7)
    assert not sent.any()
