"""Collection: what counts, what does not, and what is left behind."""

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ablation_lens import load_model
from ablation_lens.errors import CorpusError, FileFormatError, MismatchError, ModelError, NonFiniteError
from ablation_lens.measure import collection
from ablation_lens.measure.collection import CollectionInterrupted, collect
from ablation_lens.neurons.statistics import ActivationStatistics, PlanReading
from ablation_lens.neurons.statistics_file import Parts
from ablation_lens.sites import Site
from ablation_lens.tasks.known_rows import row_digests
from ablation_lens.tasks.padding import PaddingWarning
from ablation_lens.tasks.plans import Batch
from ablation_lens.tasks.tasks import task_for
from tests.tiny_models import BY_NAME, FAMILIES, reference


def batches_of(tiny, count=4):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        inputs, mask = tiny.inputs()
        if mask is None:
            valid = torch.ones(len(inputs), 10, dtype=torch.bool)
            labels = torch.zeros(len(inputs), dtype=torch.int64)
            made.append(Batch(inputs, valid, labels, labels.bool()))
        else:
            made.append(Batch.causal(inputs, mask.bool()))
    return made


@pytest.fixture(params=FAMILIES, ids=lambda tiny: tiny.name)
def loaded(request, saved):
    tiny = request.param
    return load_model(saved(tiny.name)), tiny


@pytest.fixture
def opt(saved):
    return load_model(saved("opt"))


def z_of_hugging_face(tiny, batches):
    """Every layer's output-projection input at real positions, [token layer neuron]."""
    hf_model, rows = tiny.model(), []
    for batch in batches:
        mask = None if batch.inputs.ndim > 2 else batch.valid.long()
        _, z = reference(hf_model, tiny, batch.inputs, mask)
        rows.append(torch.stack(z, dim=2)[batch.valid])
    return torch.cat(rows).double().numpy()


def test_statistics_equal_what_numpy_finds_in_hugging_faces_z(loaded):
    model, tiny = loaded
    batches = batches_of(tiny)
    statistics = collect(model, batches, progress=False)
    z = z_of_hugging_face(tiny, batches)
    assert statistics.shape == Site.Z.shape(model.cfg)
    assert statistics.count.unique().tolist() == [len(z)]
    assert statistics.provenance.tokens == len(z)
    flat = {name: getattr(statistics, name).flatten(1).numpy() for name in ("mean", "std", "minimum", "maximum")}
    for name, expected in (("mean", z.mean(0)), ("std", z.std(0)), ("minimum", z.min(0)), ("maximum", z.max(0))):
        assert np.abs(flat[name] - expected).max() <= 2e-5  # the two models' z differ by rounding
    for q in (0.05, 0.5, 0.9):
        found = statistics.histogram.quantile(q).flatten(1).numpy()
        epsilon = statistics.histogram.epsilon.flatten(1).numpy()
        assert (np.abs(found - np.quantile(z, q, axis=0)) <= epsilon + 2e-5).all()


def test_padding_makes_no_difference(opt):
    """The same documents one by one, unpadded, and together, padded."""
    (batch,) = batches_of(BY_NAME["opt"], 1)
    together = collect(opt, [batch], progress=False)
    alone = collect(
        opt, [row[: int(v.sum())][None] for row, v in zip(batch.inputs, batch.valid, strict=True)], progress=False
    )
    assert torch.equal(together.count, alone.count)
    assert torch.allclose(together.mean, alone.mean, atol=1e-6)
    assert torch.allclose(together.maximum, alone.maximum, atol=1e-6)


PROMPTS = ["The cat sat on the mat, and then some more was to come.", "Hello", "A dog ran."]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["tiny-opt", "tiny-mistral"])
def test_padded_prompts_give_what_each_gives_alone(name, side):
    """As `model.to_tokens` pads them, without a mask."""
    model = load_model(name)
    padded = model.to_tokens(PROMPTS, padding_side=side)
    alone = [model.to_tokens(prompt) for prompt in PROMPTS]
    with pytest.warns(PaddingWarning, match=f"{padded.numel() - sum(one.numel() for one in alone)} of"):
        together = collect(model, [padded], positions=True, progress=False)
    expected = collect(model, alone, positions=True, progress=False)
    assert together.provenance.tokens == expected.provenance.tokens == sum(one.numel() for one in alone)
    assert torch.equal(together.count, expected.count)
    for part in ("mean", "minimum", "maximum", "position_mean"):
        assert torch.allclose(getattr(together, part), getattr(expected, part), atol=1e-5)
    assert torch.equal(together.position_counts, expected.position_counts)


def test_padding_is_found_in_both_passes_and_said_once():
    model = load_model("tiny-opt")
    padded = model.to_tokens(PROMPTS)
    with pytest.warns(PaddingWarning) as caught:
        statistics = collect(model, [padded, padded], passes=2, progress=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert torch.equal(statistics.trimmed.total, statistics.count)


def test_the_mlp_site_works_in_every_family(loaded):
    model, tiny = loaded
    statistics = collect(model, batches_of(tiny), site=Site.MLP, progress=False)
    assert statistics.shape == (3, 1, 40)
    assert statistics.site is Site.MLP
    if tiny.name == "opt":  # ReLU: nothing below zero, and most neurons peak there
        assert statistics.minimum.min() == 0


def test_special_positions_count_only_when_asked(opt):
    (batch,) = batches_of(BY_NAME["opt"], 1)
    special = torch.zeros_like(batch.valid)
    special[:, 0] = True
    batch = Batch(batch.inputs, batch.valid, batch.labels, batch.scored, special=special)
    kept, dropped = (collect(opt, [batch], include_bos=kept, progress=False) for kept in (True, False))
    assert kept.provenance.tokens - dropped.provenance.tokens == len(batch.inputs)
    assert (kept.provenance.include_bos, dropped.provenance.include_bos) == (True, False)


def test_the_position_mean(opt):
    tiny = BY_NAME["opt"]
    batches = batches_of(tiny)
    statistics = collect(opt, batches, positions=True, progress=False)
    hf_model = tiny.model()
    sums, counts = torch.zeros(3, 12, 36).double(), torch.zeros(12)
    for batch in batches:
        _, z = reference(hf_model, tiny, batch.inputs, batch.valid.long())
        sums += (torch.stack(z) * batch.valid[None, :, :, None]).sum(1)
        counts += batch.valid.sum(0)
    expected = sums / counts[None, :, None]
    assert (statistics.position_mean.flatten(2) - expected).abs().max() <= 1e-5
    assert (statistics.position_sums.flatten(2) - sums).abs().max() <= 1e-4
    assert statistics.position_counts.tolist() == counts.tolist()
    with pytest.raises(MismatchError, match="positions=True"):
        _ = collect(opt, batches, progress=False).position_mean


def test_nan_at_padding_spoils_no_position_mean(opt):
    inputs, valid = torch.randint(3, 61, (2, 8)), torch.ones(2, 8, dtype=torch.bool)
    valid[0, 6:] = False

    def plant(z, hook):
        return z.masked_fill(~valid[:, :, None, None], torch.nan)

    batch = Batch.causal(inputs, valid)
    clean = collect(opt, [batch], positions=True, progress=False)
    with opt.hooks([(Site.Z.hook_name(2), plant)]):  # the last layer, where it reaches nothing else
        spoiled = collect(opt, [batch], positions=True, progress=False)
    assert torch.equal(spoiled.position_mean, clean.position_mean)


def test_a_second_pass_resolves_a_neuron_with_an_outlier(opt):
    tokens = torch.randint(3, 61, (400, 12))

    def spoiled(run):
        def with_outlier(*args, fwd_hooks=(), **options):
            def plant(z, hook):
                z = z.clone()
                z[0, 0, 2, 1] = 100.0  # a few hundred sigmas
                return z

            return run(*args, fwd_hooks=[(Site.Z.hook_name(1), plant), *fwd_hooks], **options)

        return with_outlier

    opt.run_with_hooks = spoiled(opt.run_with_hooks)
    statistics = collect(opt, [tokens], passes=2, progress=False)
    outlier = (1, 2, 1)
    assert statistics.histogram.epsilon[outlier] >= 0.4
    assert statistics.trimmed.epsilon[outlier] <= 0.03125
    assert statistics.trimmed.overflow[outlier] >= 1
    with pytest.raises(MismatchError, match="reads the batches twice"):
        collect(opt, iter([tokens]), passes=2, progress=False)
    with pytest.raises(MismatchError, match="passes=3"):
        collect(opt, [tokens], passes=3, progress=False)


def test_the_model_is_left_as_it_was_found(opt):
    (batch,) = batches_of(BY_NAME["opt"], 1)
    before = opt(batch.inputs)
    state = {name: tensor.clone() for name, tensor in opt.state_dict().items()}
    collect(opt, [batch], progress=False)
    with pytest.raises(MismatchError):
        collect(opt, [batch, torch.zeros(3)], progress=False)
    assert not any(point.fwd_hooks for name, point in opt.hook_dict.items() if name.endswith("hook_z"))
    assert torch.equal(opt(batch.inputs), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in opt.state_dict().items())


@pytest.fixture
def heeding():
    """Ctrl-C is heard: a shell's background jobs, and all they start, ignore it unless told otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(batches, after):
    """Batches that press Ctrl-C while the model runs on the one with this number."""
    for number, batch in enumerate(batches):
        if number == after:
            os.kill(os.getpid(), signal.SIGINT)
        yield batch


def test_ctrl_c_finishes_the_batch_and_hands_over_what_was_collected(opt, heeding):
    batches = batches_of(BY_NAME["opt"], 5)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(CollectionInterrupted) as caught:
        collect(opt, interrupting(batches, after=2), progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    assert isinstance(caught.value, KeyboardInterrupt)
    partial = caught.value.statistics
    expected = collect(opt, batches[:3], progress=False)
    assert torch.equal(partial.histogram.counts(), expected.histogram.counts())
    whole = partial.merge(collect(opt, batches[3:], progress=False))
    assert torch.equal(whole.histogram.counts(), collect(opt, batches, progress=False).histogram.counts())


@pytest.mark.parametrize("times", [2, 3])
def test_a_second_ctrl_c_within_a_batch_loses_nothing_and_a_third_does_not_wait(opt, heeding, times):
    batches, calls = batches_of(BY_NAME["opt"], 5), []

    def press(z, hook):
        calls.append(hook)
        if len(calls) == 3:  # halfway through the third batch: some layers are counted, some are not
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    with opt.hooks([(Site.Z.hook_name(1), press)]), pytest.raises(CollectionInterrupted) as caught:
        collect(opt, batches, progress=False)
    if times == 3:
        assert caught.value.statistics is None
        assert len(calls) == 3
        return
    expected = collect(opt, batches[:3], progress=False)
    assert torch.equal(caught.value.statistics.histogram.counts(), expected.histogram.counts())


def test_ctrl_c_after_the_last_batch_is_heard_too(opt, heeding):
    batches = batches_of(BY_NAME["opt"], 2)

    def pressing_at_the_end():
        yield from batches
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(CollectionInterrupted) as caught:
        collect(opt, pressing_at_the_end(), progress=False)
    whole = collect(opt, batches, progress=False)
    assert torch.equal(caught.value.statistics.histogram.counts(), whole.histogram.counts())


def test_ctrl_c_that_is_ignored_stays_ignored(opt):
    batches = batches_of(BY_NAME["opt"], 2)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        statistics = collect(opt, interrupting(batches, after=0), progress=False)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert statistics.provenance.tokens == sum(batch.size for batch in batches)


def test_an_interrupted_plan_does_not_pass_for_a_whole_one_and_a_first_pass_is_never_lost(monkeypatch, heeding):
    model = load_model("tiny-opt")
    plan = task_for(model).batches(split="collect", tokens=900, batch_size=1)
    take, calls = collection._Pass.take, []

    def pressing(self, item):
        calls.append(self)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, item)

    monkeypatch.setattr(collection._Pass, "take", pressing)
    stop_at = 2
    with pytest.raises(CollectionInterrupted) as caught:
        collect(model, plan, progress=False)
    (reading,) = caught.value.statistics.provenance.plans
    assert reading == PlanReading(plan.digest, len(plan), ((0, 2),))
    assert not reading.is_whole

    calls.clear()
    stop_at = len(plan)  # too late to miss anything
    with pytest.raises(CollectionInterrupted) as caught:
        collect(model, plan, progress=False)
    (reading,) = caught.value.statistics.provenance.plans
    assert reading.is_whole

    calls.clear()
    stop_at = len(plan) + 1  # in the second pass
    with pytest.raises(CollectionInterrupted) as caught:
        collect(model, plan, passes=2, progress=False)
    kept = caught.value.statistics
    assert kept.trimmed is None
    assert [reading.is_whole for reading in kept.provenance.plans] == [True]
    assert kept.provenance.tokens == plan.size

    calls.clear()
    stop_at = 2 * len(plan)  # when there is nothing more to do
    with pytest.raises(CollectionInterrupted) as caught:
        collect(model, plan, passes=2, progress=False)
    assert torch.equal(caught.value.statistics.trimmed.total, kept.count)


def test_ctrl_c_between_the_passes_keeps_the_first(opt, heeding, monkeypatch):
    batches, around = batches_of(BY_NAME["opt"], 2), collection.TrimmedHistogram.around

    def pressing(histogram):
        os.kill(os.getpid(), signal.SIGINT)
        return around(histogram)

    monkeypatch.setattr(collection.TrimmedHistogram, "around", pressing)
    with pytest.raises(CollectionInterrupted) as caught:
        collect(opt, batches, passes=2, progress=False)
    assert caught.value.statistics.trimmed is None
    assert caught.value.statistics.provenance.tokens == sum(batch.size for batch in batches)


def test_collecting_in_a_thread_needs_no_signals(opt):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(collect(opt, batches_of(BY_NAME["opt"], 1), progress=False))
    )
    thread.start()
    thread.join()
    assert results[0].provenance.tokens == 20


def test_what_another_thread_feeds_the_model_is_not_counted(opt):
    batches, errors = batches_of(BY_NAME["opt"], 1), []

    def feed():
        try:
            opt(batches[0].inputs)
        except ModelError as error:
            errors.append(str(error))

    def meanwhile(z, hook):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=feed)
            thread.start()
            thread.join()

    with opt.hooks([(Site.Z.hook_name(1), meanwhile)]):
        statistics = collect(opt, batches, progress=False)
    assert (statistics.count == batches[0].size).all()
    assert len(errors) == 1
    assert "in another thread" in errors[0]


def test_numbers_that_overflow_name_the_neuron(opt):
    run = opt.run_with_hooks

    def overflowing(*args, fwd_hooks=(), **options):
        def plant(z, hook):
            z = z.clone()
            z[0, 3, 4, 5] = float("inf")
            return z

        return run(*args, fwd_hooks=[(Site.Z.hook_name(2), plant), *fwd_hooks], **options)

    opt.run_with_hooks = overflowing
    with pytest.raises(NonFiniteError, match=r"L2\.H4\.D5"):
        collect(opt, [torch.randint(3, 61, (2, 8))], progress=False)


def test_wrong_batches_are_one_clear_error(opt):
    with pytest.raises(CorpusError, match="an empty list"):
        collect(opt, [], progress=False)
    tokens = torch.zeros(2, 5, dtype=torch.long)
    nothing = Batch.causal(tokens, torch.zeros(2, 5, dtype=torch.bool))
    for passes in (1, 2):
        with pytest.raises(CorpusError, match="hold no real position"):
            collect(opt, [nothing], passes=passes, progress=False)
    wrong = Batch(tokens, torch.ones(2, 4, dtype=torch.bool), tokens, torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(MismatchError, match=r"has \(2, 5\) positions, the batch says \(2, 4\)"):
        collect(opt, [wrong], progress=False)


def test_statistics_survive_a_file(opt, tmp_path):
    statistics = collect(opt, batches_of(BY_NAME["opt"]), passes=2, positions=True, progress=False)
    statistics.save(tmp_path / "s.safetensors")
    again = ActivationStatistics.load(tmp_path / "s.safetensors")
    assert again.provenance == statistics.provenance
    for part in ("mean", "variance", "minimum", "count", "position_mean"):
        assert torch.equal(getattr(again, part), getattr(statistics, part))
    for one, other in ((again.histogram, statistics.histogram), (again.trimmed.inside, statistics.trimmed.inside)):
        assert torch.equal(one.counts(), other.counts())
    assert repr(again) == repr(statistics)
    assert "two passes" in repr(again)


def test_statistics_of_another_kind_are_refused(opt, tmp_path):
    from ablation_lens.files import save_tensors

    save_tensors(tmp_path / "x", "activation statistics", {}, {})
    with pytest.raises(FileFormatError, match="not complete"):
        ActivationStatistics.load(tmp_path / "x")


def test_merging_refuses_what_does_not_belong_together(opt, saved, tmp_path):
    batches = batches_of(BY_NAME["opt"])
    statistics = collect(opt, batches, progress=False)
    folder = tmp_path / "other"
    other_weights = BY_NAME["opt"].model()
    torch.nn.init.normal_(other_weights.model.decoder.layers[0].fc1.weight)
    other_weights.save_pretrained(folder)
    half = load_model(saved("opt"), dtype="bfloat16")
    for other, message in (
        (collect(load_model(folder), batches, progress=False), "not the same model"),
        (collect(half, batches, progress=False), "dtype: float32 against bfloat16"),
        (collect(opt, batches, include_bos=False, progress=False), "include_bos is True and False"),
        (collect(opt, batches, passes=2, progress=False), "a second pass"),
        (collect(opt, batches, bins=128, progress=False), "128"),
    ):
        with pytest.raises(MismatchError, match=message):
            statistics.merge(other)
    mlp = collect(opt, batches, site=Site.MLP, progress=False)
    with pytest.raises(MismatchError, match="site is 'z' and 'mlp'"):
        statistics.merge(mlp)


def test_merged_statistics_equal_one_collection_whatever_the_batches(opt):
    batches = batches_of(BY_NAME["opt"], 6)
    whole = collect(opt, batches, positions=True, progress=False)
    parts = [collect(opt, batches[start : start + 2], positions=True, progress=False) for start in (4, 0, 2)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert torch.equal(merged.histogram.counts(), whole.histogram.counts())
    assert torch.equal(merged.histogram.exponent, whole.histogram.exponent)
    assert torch.allclose(merged.mean, whole.mean, atol=1e-12)
    assert torch.allclose(merged.position_mean, whole.position_mean, atol=1e-12)
    assert merged.provenance.tokens == whole.provenance.tokens


def test_shards_of_a_plan_merged_in_any_order_are_recognised_as_the_plan():
    model = load_model("tiny-opt")
    plan = task_for(model).batches(split="collect", tokens=900, batch_size=1)
    assert len(plan) >= 4
    whole = collect(model, plan, progress=False)
    shards = [collect(model, plan.part(*ends), progress=False) for ends in ((2, 3), (0, 2), (3, None))]
    assert [reading.is_whole for shard in shards for reading in shard.provenance.plans] == [False] * 3
    merged = shards[0].merge(shards[1]).merge(shards[2])
    assert merged.provenance == whole.provenance
    assert torch.equal(merged.histogram.counts(), whole.histogram.counts())
    # A batch that was read twice must not pass for one that was read once.
    twice = merged.merge(shards[0])
    assert len(twice.provenance.plans) == 2
    assert twice.provenance.tokens == whole.provenance.tokens + shards[0].provenance.tokens
    with pytest.raises(MismatchError, match="no batches 3 to 3 are among"):
        plan.part(3, 3)


def test_statistics_know_the_rows_that_they_are_of(opt, tmp_path):
    rows = torch.arange(5, 29).view(4, 6)
    all_at_once = collect(opt, [Batch.causal(rows)], site=["z", "mlp"], progress=False)
    for statistics in all_at_once.values():
        assert statistics.rows.tolist() == row_digests(Batch.causal(rows), "causal-lm").flatten().sort().values.tolist()
    statistics = all_at_once["z"]
    parts = [collect(opt, [Batch.causal(part)], passes=1, progress=False) for part in (rows[2:], rows[:3])]
    assert torch.equal(parts[0].merge(parts[1]).rows, statistics.rows)
    assert torch.equal(collect(opt, [Batch.causal(rows)] * 2, passes=2, progress=False).rows, statistics.rows)
    statistics.save(tmp_path / "statistics.safetensors")
    assert torch.equal(ActivationStatistics.load(tmp_path / "statistics.safetensors").rows, statistics.rows)


def test_a_row_of_which_nothing_was_counted_is_not_among_them(opt):
    tokens = torch.tensor([[2, 0, 0], [2, 7, 9]])
    batch = Batch.causal(tokens, torch.tensor([[1, 0, 0], [1, 1, 1]]))
    batch = replace(batch, special=tokens == 2)
    assert len(collect(opt, [batch], progress=False).rows) == 2
    assert collect(opt, [batch], include_bos=False, progress=False).rows.tolist() == [row_digests(batch, "")[1].item()]


def test_the_table_has_a_row_per_neuron(opt):
    statistics = collect(opt, batches_of(BY_NAME["opt"], 8), progress=False)
    table = statistics.table()
    assert len(table) == 3 * 6 * 6
    assert table.index[7] == "L0.H1.D1"
    assert table.loc["L2.H5.D3", "mean"] == statistics.mean[2, 5, 3].item()
    assert table.loc["L2.H5.D3", "peak"] == statistics.center("peak")[2, 5, 3].item()
    assert set(table["shape"]) <= {
        "constant",
        "unresolved",
        "multi-modal",
        "off-zero",
        "skewed",
        "laplace-like",
        "flat",
        "gaussian-like",
    }


# ---------------------------------------------------------------------- several sites in one pass

SITES = ("z", Site.MLP, "k", "resid_post")


def as_bits(statistics):
    """Everything that statistics hold, to be compared bit for bit."""
    header = [statistics.provenance, statistics.trimmed is None, statistics.positions is None]
    return header, Parts(statistics.histogram, statistics.moments, statistics.trimmed, statistics.positions).tensors()


def same_bits(one, other):
    (one_header, ones), (other_header, others) = as_bits(one), as_bits(other)
    return (
        one_header == other_header
        and ones.keys() == others.keys()
        and all(torch.equal(ones[name], others[name]) for name in ones)
    )


@pytest.mark.parametrize("name", ["mistral", "roberta"])
def test_several_sites_in_one_pass_are_what_each_gives_alone_bit_for_bit(saved, name):
    model, batches = load_model(saved(name)), batches_of(BY_NAME[name], 2)
    options = {"passes": 2, "positions": True, "bins": 64, "progress": False}
    together = collect(model, batches, site=SITES, **options)
    assert list(together) == [Site.of(site) for site in SITES]
    for site, statistics in together.items():
        alone = collect(model, batches, site=site, **options)
        assert same_bits(statistics, alone)


def test_the_comparison_sees_a_batch_more(opt):
    one, two = (collect(opt, batches_of(BY_NAME["opt"], count), progress=False) for count in (1, 2))
    assert same_bits(one, one)
    assert not same_bits(one, two)


def test_a_list_of_one_site_is_a_dictionary_and_one_of_none_is_refused(opt):
    batches = batches_of(BY_NAME["opt"], 1)
    assert list(collect(opt, batches, site=["mlp", Site.MLP], progress=False)) == [Site.MLP]
    with pytest.raises(MismatchError, match="no site"):
        collect(opt, batches, site=[], progress=False)
    with pytest.raises(MismatchError, match="did you mean"):
        collect(opt, batches, site=["z", "mpl"], progress=False)


def test_ctrl_c_hands_over_every_site_with_the_same_batches(opt, heeding):
    batches = batches_of(BY_NAME["opt"], 4)
    with pytest.raises(CollectionInterrupted) as caught:
        collect(opt, interrupting(batches, after=1), site=SITES, progress=False)
    for site in SITES:
        expected = collect(opt, batches[:2], site=site, progress=False)
        assert same_bits(caught.value.statistics[Site.of(site)], expected)
