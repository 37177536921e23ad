"""Ablations: what they accept, what their hooks do, and that nothing stays behind."""

import itertools
import warnings

import pytest
import torch

import ablation_lens as al
from ablation_lens import Ablation, Site, load_model, random_neurons, whole_heads
from ablation_lens.errors import FileFormatError, MismatchError, NonFiniteError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.models.load import transformer_lens_major
from tests.tiny_models import BY_NAME, FAMILIES, run

SHAPE = (3, 6, 6)
"""Of all tiny models but Mistral, whose heads have 10 dims."""


@pytest.fixture(params=FAMILIES, ids=lambda tiny: tiny.name)
def loaded(request, saved):
    tiny = request.param
    return (load_model(saved(tiny.name)), *tiny.inputs())


@pytest.fixture
def opt(saved):
    return load_model(saved("opt"))


def torch_hooks(model):
    return {
        (name, kind, key)
        for name, module in model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        for key in getattr(module, kind)
    }


def lens_hooks(model):
    return [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]


def z_of(model, inputs, mask=None, hooks=(), site=Site.Z):
    """[layer batch pos head dim], as hooks after the given ones see it."""
    seen = []
    look = [(name, lambda z, hook: seen.append(z.detach().clone())) for name in site.hook_names(model.cfg)]
    run(model, inputs, mask, [*hooks, *look])
    return torch.stack(seen)


def some(model, site=Site.Z, positions=None):
    shape = site.shape(model.cfg)
    values = torch.randn(shape) if positions is None else torch.randn(shape[0], positions, *shape[1:])
    return Ablation(random_neurons(shape, 0.5, seed=0), values, site=site)


def length(inputs, mask, model):
    return inputs.shape[1] if mask is not None else model.cfg.n_ctx


# ---------------------------------------------------------------------- construction


def test_what_does_not_fit_is_refused_on_construction():
    mask, values = torch.ones(SHAPE, dtype=torch.bool), torch.zeros(SHAPE)
    for wrong in (mask.int(), mask.float(), mask[0], mask[None]):
        with pytest.raises(MismatchError, match="boolean tensor"):
            Ablation(wrong, values)
    for wrong in (values[0], values[:2], torch.zeros(3, 6, 7), torch.zeros(3, 6, 6, 5), torch.zeros(1, 3, 9, 6, 6)):
        with pytest.raises(MismatchError, match="do not fit"):
            Ablation(mask, wrong)
    with pytest.raises(MismatchError, match="floating-point"):
        Ablation(mask, values.long())
    with pytest.raises(MismatchError, match="floating-point"):
        Ablation(mask, values.to(torch.float8_e4m3fn))
    for wrong in (torch.nan, torch.inf):
        bad = torch.zeros(3, 9, 6, 6)
        bad[1, 4, 2, 3] = wrong
        with pytest.raises(NonFiniteError, match=r"L1\.H2\.D3"):
            Ablation(mask, bad)
        with pytest.raises(NonFiniteError, match=r"L1\.H2\.D3"):
            Ablation(mask, bad[:, 4])
    for wrong in ((), "last", 1.5, [True], (2**40,), slice(3, 0, -1), slice("a", None), torch.ones(3).bool()):
        with pytest.raises(MismatchError, match="positions"):
            Ablation(mask, values, positions=wrong)


def test_names_are_taken_for_a_mask_and_strings_for_a_site(opt):
    stats = al.collect(opt, [torch.arange(3, 30)[None]], site="mlp", progress=False)
    assert stats.site is Site.MLP
    assert stats.table().index[41] == "L1.M1"
    named = stats.ablation(["L1.M3", "L2"], "mean")
    mask = al.named_neurons(["L1.H0.D3", "L2"], stats.shape, site="mlp")
    for ablation in (named, stats.ablation(mask, "mean"), Ablation(["L1.M3", "L2"], stats.mean, site="mlp")):
        assert torch.equal(ablation.mask, mask)
        assert ablation.site is Site.MLP
    with pytest.raises(MismatchError, match="did you mean"):
        Ablation(mask, stats.mean, site="mpl")


def test_an_ablation_is_frozen_and_reads_well():
    mask = torch.zeros(5, 16, 256, dtype=torch.bool)
    mask[:4, :8] = True
    values = torch.zeros(mask.shape)
    ablation = Ablation(mask, values, center="peak")
    assert repr(ablation) == "Ablation(8 192 of 20 480 neurons in 4 layers → peak)"
    assert repr(ablation.at(3, 1, 3)) == "Ablation(8 192 of 20 480 neurons in 4 layers → peak at 2 positions)"
    assert repr(Ablation(mask, values[:, None])) == (
        "Ablation(8 192 of 20 480 neurons in 4 layers → values by position)"
    )
    assert repr(Ablation(whole_heads(SHAPE, ["L0.H0"]), torch.ones(SHAPE))) == (
        "Ablation(6 of 108 neurons in 1 layer → given values)"
    )
    with pytest.raises(AttributeError):
        ablation.mask = ~mask


# ---------------------------------------------------------------------- what the hooks do


@pytest.mark.parametrize("site", [Site.Z, Site.MLP, Site.K])
def test_ablated_neurons_get_their_value_and_the_others_what_the_model_computes(loaded, site):
    model, inputs, mask = loaded
    ablation = some(model, site)
    only_layer_1 = torch.zeros_like(ablation.mask)
    only_layer_1[1] = ablation.mask[1]
    ablation = Ablation(only_layer_1, ablation.values, site=site)
    before = z_of(model, inputs, mask, site=site).flatten(3)
    after = z_of(model, inputs, mask, ablation.hooks(), site=site).flatten(3)
    chosen = only_layer_1[1].flatten()
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][..., ~chosen], before[1][..., ~chosen])
    assert torch.equal(after[1][..., chosen], ablation.values[1].flatten()[chosen].expand_as(after[1][..., chosen]))
    assert not torch.allclose(after[2], before[2], atol=1e-3)  # which is what an ablation is for


def test_hooks_are_given_for_layers_with_an_ablated_neuron_only():
    mask = whole_heads(SHAPE, ["L0.H3", "L2.H1"])
    names = [name for name, _ in Ablation(mask, torch.zeros(SHAPE)).hooks()]
    assert names == ["blocks.0.attn.hook_z", "blocks.2.attn.hook_z"]
    assert [name for name, _ in Ablation(mask, torch.zeros(SHAPE), site=Site.MLP).hooks()] == [
        "blocks.0.mlp.hook_post",
        "blocks.2.mlp.hook_post",
    ]
    assert Ablation(torch.zeros_like(mask), torch.zeros(SHAPE)).hooks() == []


def test_nothing_ablated_is_the_model_bit_for_bit_and_everything_is_every_z_replaced(loaded):
    model, inputs, mask = loaded
    shape = Site.Z.shape(model.cfg)
    values = torch.randn(shape)
    none, everything = (Ablation(random_neurons(shape, fraction, 0), values) for fraction in (0.0, 1.0))
    assert torch.equal(run(model, inputs, mask, none.hooks()), run(model, inputs, mask))
    with none.applied_to(model):
        assert torch.equal(run(model, inputs, mask), run(model, inputs, mask, none.hooks()))
    z = z_of(model, inputs, mask, everything.hooks())
    assert torch.equal(z, values[:, None, None].expand_as(z))


def test_values_by_position_and_positions(loaded):
    model, inputs, mask = loaded
    places = length(inputs, mask, model)
    ablation = some(model, positions=places + 5)  # more than needed is not a problem
    before = z_of(model, inputs, mask)[0]
    after = z_of(model, inputs, mask, ablation.hooks())[0]
    expected = torch.where(ablation.mask[0], ablation.values[0, :places], before)
    assert torch.equal(after, expected)
    at_two = z_of(model, inputs, mask, ablation.at(5, 2).hooks())[0]
    elsewhere = [place for place in range(places) if place not in (2, 5)]
    assert torch.equal(at_two[:, [2, 5]], expected[:, [2, 5]])
    assert torch.equal(at_two[:, elsewhere], before[:, elsewhere])
    short = Ablation(ablation.mask, ablation.values[:, : places - 1])
    with pytest.raises(MismatchError, match="shorten"):
        run(model, inputs, mask, short.hooks())


@pytest.mark.parametrize("site", [Site.Z, Site.MLP, Site.K])
def test_positions_at_both_sites(opt, site):
    tokens, _ = BY_NAME["opt"].inputs()
    ablation = some(opt, site)
    before = z_of(opt, tokens, site=site)[0]
    after = z_of(opt, tokens, hooks=ablation.at(4, 99).hooks(), site=site)[0]
    assert torch.equal(after[:, :4], before[:, :4])
    assert torch.equal(after[:, 5:], before[:, 5:])
    replaced = z_of(opt, tokens, hooks=ablation.hooks(), site=site)[0]
    assert torch.equal(after[:, 4], replaced[:, 4])


def test_the_activation_keeps_its_dtype(saved):
    model = load_model(saved("opt"), dtype="bfloat16")
    tokens, mask = BY_NAME["opt"].inputs()
    values = torch.randn(SHAPE, dtype=torch.float64)  # as centers are
    ablation = Ablation(random_neurons(SHAPE, 1.0, 0), values)
    z = z_of(model, tokens, mask, ablation.hooks())
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, values.bfloat16()[:, None, None].expand_as(z))
    assert run(model, tokens, mask, ablation.hooks()).dtype == torch.bfloat16


def test_one_hook_serves_models_of_several_dtypes(opt):
    (_, hook), *_ = some(opt).hooks()
    for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.float64):
        assert hook(torch.randn(2, 3, 6, 6, dtype=dtype), hook=None).dtype == dtype


def test_an_activation_of_another_shape_is_one_clear_error():
    (_, hook), *_ = Ablation(random_neurons(SHAPE, 1.0, 0), torch.zeros(SHAPE)).hooks()
    with pytest.raises(MismatchError, match="batch, pos, head, d_head"):
        hook(torch.zeros(2, 3, 36), hook=None)


# ---------------------------------------------------------------------- applied_to


def test_applied_to_is_the_same_as_hooks_and_gone_afterwards(loaded):
    model, inputs, mask = loaded
    options = {} if mask is None else {"attention_mask": mask}
    before = run(model, inputs, mask)
    model.run_with_cache(inputs, **options)  # after which a bridge keeps some hooks of its own
    present = torch_hooks(model), lens_hooks(model)
    for ablation in (some(model), some(model).at(0, 1), some(model, positions=length(inputs, mask, model))):
        expected = run(model, inputs, mask, ablation.hooks())
        with ablation.applied_to(model) as same:
            assert same is model
            assert torch.equal(model(inputs, **options), expected)
            # TransformerLens' own tools work inside, and see what is ablated.
            logits, cache = model.run_with_cache(inputs, **options)
            assert torch.allclose(logits, expected, atol=1e-5)
            assert torch.equal(run(model, inputs, mask), expected)
            z = torch.stack([cache[name] for name in Site.Z.hook_names(model.cfg)])
            expected_z = z_of(model, inputs, mask, ablation.hooks())
            assert torch.allclose(z, expected_z, atol=1e-5)  # caching the pattern takes another path through attention
            ablated = ablation.mask[:, None, None].expand_as(z)[:, :, :2]
            assert torch.equal(z[:, :, :2][ablated], expected_z[:, :, :2][ablated])
            assert torch.equal(model(inputs, **options), expected)
        assert (torch_hooks(model), lens_hooks(model)) == present
        assert torch.equal(run(model, inputs, mask), before)


def test_it_nests_and_the_inner_one_wins_where_they_overlap(loaded):
    model, inputs, mask = loaded
    places = length(inputs, mask, model)
    outer, inner = some(model), some(model, positions=places)
    inner = Ablation(random_neurons(inner.mask.shape, 0.5, seed=1), inner.values)
    before = z_of(model, inputs, mask)
    present = torch_hooks(model), lens_hooks(model)
    with outer.applied_to(model):
        alone = z_of(model, inputs, mask)
        with inner.applied_to(model):
            both = z_of(model, inputs, mask)
        assert torch.equal(z_of(model, inputs, mask), alone)
    assert torch.equal(alone, z_of(model, inputs, mask, outer.hooks()))
    expected = torch.where(
        inner.mask[0], inner.values[0, :places], torch.where(outer.mask[0], outer.values[0], before[0])
    )
    assert torch.equal(both[0], expected)
    assert (torch_hooks(model), lens_hooks(model)) == present
    assert torch.equal(z_of(model, inputs, mask), before)


def test_exceptions_leave_nothing_behind(loaded):
    model, inputs, mask = loaded
    before = run(model, inputs, mask)
    present = torch_hooks(model), lens_hooks(model)

    class OopsError(Exception):
        pass

    def fail(z, hook):
        raise OopsError

    for ablation in (some(model), some(model, positions=length(inputs, mask, model)), some(model).at(0)):
        with pytest.raises(OopsError), ablation.applied_to(model), some(model).at(1).applied_to(model):
            run(model, inputs, mask, [(Site.Z.hook_name(1), fail)])
        assert (torch_hooks(model), lens_hooks(model)) == present
        assert torch.equal(run(model, inputs, mask), before)
    # also when the values run out in the middle of the model
    with pytest.raises(MismatchError), some(model, positions=1).applied_to(model):
        run(model, inputs, mask)
    assert (torch_hooks(model), lens_hooks(model)) == present


# ---------------------------------------------------------------------- cached generation


@pytest.fixture(scope="module", params=["tiny-opt", "tiny-mistral"])
def causal(request):
    # With a tokenizer: without one transformer-lens 3's cached generation misplaces absolute positions by itself.
    return load_model(request.param)


def generate(model, tokens, cached, new=12):
    return model.generate(
        tokens,
        max_new_tokens=new,
        do_sample=False,
        use_past_kv_cache=cached,
        stop_at_eos=False,
        return_type="tokens",
        verbose=False,
    )[:, -new:].tolist()


def test_cached_generation_equals_uncached_with_values_by_position_and_with_positions(causal):
    tokens = torch.randint(5, 200, (2, 5))
    shape = Site.Z.shape(causal.cfg)
    values = torch.randn(shape[0], 17, *shape[1:])
    mask = random_neurons(shape, 0.5, seed=0)
    plain = generate(causal, tokens, cached=True)
    assert plain == generate(causal, tokens, cached=False)
    ablations = [
        Ablation(mask, values),
        Ablation(mask, values[:, 0]).at(6, 8, 9, 13),
        Ablation(mask, values).at(2, 7, 12),
        Ablation(mask & whole_heads(shape, [(3, head) for head in range(shape[1])]), values),  # the last layer only
    ]
    found = [plain]
    for ablation in ablations:
        with ablation.applied_to(causal):
            cached, uncached = generate(causal, tokens, cached=True), generate(causal, tokens, cached=False)
        assert cached == uncached
        assert cached not in found  # an ablation without effect would agree, too
        found.append(cached)
    assert generate(causal, tokens, cached=True) == plain


def test_positions_go_on_counting_where_a_sliding_window_has_dropped_the_first_ones(saved):
    model = load_model(saved("mistral"))  # with a window of 5
    tokens = torch.randint(3, 61, (2, 4))
    ablation = some(model, positions=16)
    with ablation.applied_to(model):
        assert generate(model, tokens, cached=True) == generate(model, tokens, cached=False)


def test_a_cache_outlives_no_generation(causal):
    """A forward pass begins at position 0 again, whatever was generated before it."""
    tokens = torch.randint(5, 200, (2, 5))
    shape = Site.Z.shape(causal.cfg)
    ablation = Ablation(random_neurons(shape, 0.5, seed=0), torch.randn(shape[0], 17, *shape[1:]))
    expected = causal.run_with_hooks(tokens, fwd_hooks=ablation.hooks())
    with ablation.applied_to(causal):
        generate(causal, tokens, cached=True)
        assert torch.equal(causal(tokens), expected)
        one = causal(tokens[:, :1])
    assert torch.allclose(one[:, 0], expected[:, 0], atol=1e-4)


def test_plain_hooks_do_not_guess_the_position_of_a_single_token(causal):
    shape = Site.Z.shape(causal.cfg)
    ablation = Ablation(random_neurons(shape, 0.5, seed=0), torch.randn(shape[0], 17, *shape[1:]))
    token = torch.tensor([[7]])
    for position_wise in (ablation, Ablation(ablation.mask, ablation.values[:, 0]).at(3)):
        with pytest.raises(MismatchError, match="applied_to"):
            causal.run_with_hooks(token, fwd_hooks=position_wise.hooks())
    z = z_of(causal, token, hooks=ablation.hooks(offset=11))
    assert torch.equal(z[:, 0, 0][ablation.mask], ablation.values[:, 11][ablation.mask])
    with pytest.raises(MismatchError, match="17 positions, and the input reaches 18"):
        causal.run_with_hooks(token, fwd_hooks=ablation.hooks(offset=17))


def test_values_that_run_out_while_generating_are_an_error(causal):
    shape = Site.Z.shape(causal.cfg)
    ablation = Ablation(random_neurons(shape, 0.5, seed=0), torch.randn(shape[0], 8, *shape[1:]))
    with ablation.applied_to(causal):
        for cached in (True, False):
            with pytest.raises(MismatchError, match="8 positions, and the input reaches 9"):
                generate(causal, torch.randint(5, 200, (1, 5)), cached)


def test_evaluate_scores_documents_of_one_token_beside_longer_ones(opt):
    """Evaluation keeps no cache, so a single position is the first."""
    ablation = some(opt, positions=12)
    batches = [al.Batch.causal(torch.tensor([[5]])), al.Batch.causal(torch.randint(3, 61, (2, 12)))]
    score = al.evaluate(opt, batches, ablation)
    assert score.predictions == 22
    assert torch.equal(score.loss[1:], al.evaluate(opt, batches[1:], ablation).loss)


# ---------------------------------------------------------------------- which model


def test_values_of_another_model_are_refused(opt, tmp_path):
    tokens = torch.randint(3, 61, (2, 9))
    statistics = al.collect(opt, [tokens], progress=False)
    ablation = statistics.ablation(random_neurons(SHAPE, 0.5, 0), "mean")
    assert ablation.source == opt.record
    assert repr(ablation) == "Ablation(54 of 108 neurons in 3 layers → mean)"

    other = BY_NAME["opt"].model()
    torch.nn.init.normal_(other.model.decoder.layers[0].fc1.weight)
    other.save_pretrained(tmp_path / "other")
    BY_NAME["opt"].model().save_pretrained(tmp_path / "again")
    other, again = load_model(tmp_path / "other"), load_model(tmp_path / "again")
    batch = al.Batch.causal(tokens)
    with pytest.raises(MismatchError, match="another model's"), ablation.applied_to(other):
        pass
    with pytest.raises(MismatchError, match="another model's"):
        ablation.bake(other)
    with pytest.raises(MismatchError, match="another model's"):
        al.evaluate(other, [batch], ablation)
    # The same weights under another path are the same model; values without a source are anybody's.
    assert torch.equal(al.evaluate(again, [batch], ablation).loss, al.evaluate(opt, [batch], ablation).loss)
    al.evaluate(other, [batch], Ablation(ablation.mask, ablation.values))


def test_another_shape_is_refused(opt, saved):
    mistral = load_model(saved("mistral"))
    ablation = some(opt)
    for attempt in (lambda: ablation.applied_to(mistral).__enter__(), lambda: ablation.bake(mistral)):
        with pytest.raises(MismatchError, match=r"\(3, 6, 6\), the model has \(3, 6, 10\)"):
            attempt()
    with pytest.raises(MismatchError, match="mlp neurons"):
        Ablation(ablation.mask, ablation.values, site=Site.MLP).require_fits(opt)


def test_zero_on_weights_of_unknown_processing_is_spoken_of_once(opt):
    batch = al.Batch.causal(torch.randint(3, 61, (2, 9)))
    mask = random_neurons(SHAPE, 0.5, 0)
    zero = Ablation(mask, torch.zeros(SHAPE))
    al.evaluate(opt, [batch], zero)  # load_model knows: nothing to say
    del opt.record  # as a model of the user's own
    al.evaluate(opt, [batch], Ablation(mask, torch.ones(SHAPE)))  # not zero
    al.evaluate(opt, [batch], Ablation(mask, mask.float()))
    al.evaluate(opt, [batch], Ablation(torch.zeros_like(mask), torch.zeros(SHAPE)))  # nothing ablated
    only_where_ablated = Ablation(mask, (~mask).float())
    with pytest.warns(UserWarning, match="value biases"):
        al.evaluate(opt, [batch], only_where_ablated)
    with zero.applied_to(opt):  # warnings are errors here
        pass
    zero.bake(opt)


@pytest.mark.parametrize("way", ["applied_to", "bake", "evaluate"])
def test_the_warning_names_the_users_own_line(opt, way):
    del opt.record
    zero = Ablation(random_neurons(SHAPE, 0.5, 0), torch.zeros(SHAPE))

    def applied():
        if way == "evaluate":
            al.evaluate(opt, [al.Batch.causal(torch.randint(3, 61, (2, 9)))], zero)
        else:
            getattr(zero, way)(opt)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        applied()
    assert [warning.filename for warning in caught] == [__file__]


# ---------------------------------------------------------------------- files


def test_saved_and_loaded_is_the_same(opt, tmp_path):
    statistics = al.collect(opt, [torch.randint(3, 61, (2, 9))], progress=False)
    mask = random_neurons(SHAPE, 0.5, 0)
    originals = [
        statistics.ablation(mask, "peak"),
        Ablation(mask, torch.randn(3, 9, 6, 6).bfloat16(), opt.record).at(4, 2),
        Ablation(torch.zeros(3, 1, 40, dtype=torch.bool), torch.randn(3, 1, 40), site=Site.MLP),
    ]
    for original in originals:
        original.save(tmp_path / "a.safetensors")
        loaded = Ablation.load(tmp_path / "a.safetensors")
        assert torch.equal(loaded.mask, original.mask)
        assert torch.equal(loaded.values, original.values)
        assert loaded.values.dtype == original.values.dtype
        for field in ("source", "site", "positions", "center"):
            assert getattr(loaded, field) == getattr(original, field)
        assert repr(loaded) == repr(original)
    assert [path.name for path in tmp_path.glob("*.safetensors")].count("a.safetensors") == 1


def test_files_that_are_no_whole_ablation_are_one_clear_error(opt, tmp_path):
    path = tmp_path / "a.safetensors"
    some(opt).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(FileFormatError, match="whole safetensors"):
        Ablation.load(path)
    path.write_bytes(whole[:-5] + b"\x00\x00\x80\x7f\x01")  # the last values changed
    with pytest.raises(FileFormatError, match="changed or damaged"):
        Ablation.load(path)
    with pytest.raises(FileFormatError, match="no file"):
        Ablation.load(tmp_path / "nowhere.safetensors")
    path.write_bytes(whole)
    al.collect(opt, [torch.randint(3, 61, (2, 9))], progress=False).save(tmp_path / "statistics.safetensors")
    with pytest.raises(FileFormatError, match="statistics"):
        Ablation.load(tmp_path / "statistics.safetensors")


@pytest.mark.parametrize(
    ("changed", "held"),
    [
        ({"site": "elsewhere"}, {}),
        ({"site": 1}, {}),
        ({"source": []}, {}),
        ({"source": {"name": "x"}}, {}),
        ({"source.n_heads": 0}, {}),
        ({"source.d_model": -1}, {}),
        ({"source.checksum": 5}, {}),
        ({"positions": ["x"]}, {}),
        ({"positions": []}, {}),
        ({"span": [0, 1, 0]}, {}),
        ({"span": [0, "x", 1]}, {}),
        ({"span": [0, 3, 1], "positions": [1]}, {}),
        ({"positions": [True]}, {}),
        ({"positions": [10**30]}, {}),
        ({"positions": {}}, {}),
        ({"center": ["x" * 10_000]}, {}),
        ({"more": 1}, {}),
        ({}, {"mask": lambda tensors: tensors["mask"].float()}),
        ({}, {"mask": lambda tensors: tensors["mask"][..., 0]}),
        ({}, {"values": lambda tensors: tensors["values"] * torch.inf}),
        ({}, {"values": lambda tensors: tensors["values"][:1]}),
        ({}, {"values": lambda tensors: tensors["values"].to(torch.float8_e4m3fn)}),
        ({}, {"values": lambda tensors: tensors["values"][:, None, None]}),
        ({}, {"values": None}),
    ],
    ids=itertools.count(),
)
def test_a_forged_file_whose_checksum_is_right_is_one_clear_error(opt, tmp_path, changed, held):
    path = tmp_path / "a.safetensors"
    Ablation(random_neurons(SHAPE, 0.5, 0), torch.zeros(SHAPE), opt.record).save(path)
    header, tensors = load_tensors(path, "ablation", newest=3)
    for name, value in changed.items():
        inner, _, field = name.rpartition(".")
        (header[inner] if inner else header)[field] = value
    for name, change in held.items():
        tensors[name] = change and change(tensors)
    save_tensors(path, "ablation", header, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(FileFormatError, match=r"a\.safetensors is not a complete ablation") as caught:
        Ablation.load(path)
    assert len(str(caught.value)) < 700


# ---------------------------------------------------------------------- a user's own model


@pytest.mark.skipif(transformer_lens_major() >= 4, reason="transformer-lens 4 has no HookedTransformer")
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_a_hooked_transformer_built_from_a_config_works_without_load_model_and_tokenizer():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(n_layers=2, d_model=16, n_ctx=12, d_head=4, n_heads=4, d_vocab=30, act_fn="gelu")
    model = HookedTransformer(config)
    tokens = torch.randint(0, 30, (3, 10))
    statistics = al.collect(model, [tokens], progress=False)
    assert statistics.provenance.model.processing == "unknown"
    ablation = statistics.ablation(random_neurons(statistics.shape, 0.5, 0), "peak")
    hooked = model.run_with_hooks(tokens, fwd_hooks=ablation.hooks())
    with ablation.applied_to(model):
        assert torch.equal(model(tokens), hooked)
    baked = ablation.bake(model)
    assert torch.allclose(baked(tokens), hooked, atol=1e-4)
    score, baked_score = (
        al.evaluate(*args)
        for args in ((model, [al.Batch.causal(tokens)], ablation), (baked, [al.Batch.causal(tokens)]))
    )
    assert score.top1 == baked_score.top1
    assert abs(score.cross_entropy - baked_score.cross_entropy) <= 1e-5
