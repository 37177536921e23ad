"""Ablations of plain Hugging Face models: the same numbers as through TransformerLens, or one sentence."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers

import ablation_lens as al
from ablation_lens import zoo
from ablation_lens.errors import MismatchError
from ablation_lens.models.load import hook_model, transformer_lens_major
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.sites import Site
from ablation_lens.unhooked import find_readers
from tests.tiny_models import BY_NAME, TEXT, Tiny, run

TOLERANCE = 1e-4
"""Logits are of size 10, and the two sides attend by other kernels."""


def neo():
    kinds = {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4, "num_layers": 3}
    config = transformers.GPTNeoConfig(vocab_size=61, hidden_size=36, num_heads=6, max_position_embeddings=33, **kinds)
    return transformers.GPTNeoForCausalLM(config)


def gptj():
    config = transformers.GPTJConfig(vocab_size=61, n_embd=36, n_layer=3, n_head=6, rotary_dim=4, n_positions=33)
    return transformers.GPTJForCausalLM(config)


def neox():
    config = transformers.GPTNeoXConfig(**TEXT, intermediate_size=40, max_position_embeddings=33)
    return transformers.GPTNeoXForCausalLM(config)


def qwen3():
    config = transformers.Qwen3Config(
        **TEXT, intermediate_size=40, num_key_value_heads=3, head_dim=10, max_position_embeddings=33
    )
    return transformers.Qwen3ForCausalLM(config)


def gemma2():
    config = transformers.Gemma2Config(
        **TEXT, intermediate_size=40, num_key_value_heads=3, head_dim=10, max_position_embeddings=33
    )
    return transformers.Gemma2ForCausalLM(config)


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT, intermediate_size=40))


def attention_only(build):
    return Tiny(build.__name__, build, lambda model: [])


CAUSAL = [BY_NAME[name] for name in ("opt", "mistral", "llama", "gpt2")]
CAUSAL += [attention_only(build) for build in (neo, gptj, neox, qwen3)]
HOOKED = [*CAUSAL, Tiny("gemma2", gemma2, lambda model: [], majors=(4,)), BY_NAME["roberta"], BY_NAME["vit"]]
KNOWN = [tiny for tiny in HOOKED if transformer_lens_major() in tiny.majors]


def random_ablation(shape, source=None, site="z", seed=0, **options):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return al.Ablation(al.random_neurons(shape, 0.5, seed=seed), values, source, site=site, **options)


def theirs(model, inputs, mask=None, ablation=None):
    options = {} if mask is None else {"attention_mask": mask}
    with torch.no_grad():
        if ablation is None:
            return model(inputs, **options).logits
        with ablation.applied_to(model):
            return model(inputs, **options).logits


def torch_hooks(model):
    return [
        (name, kind)
        for name, module in model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks")
        if getattr(module, kind)
    ]


@pytest.fixture(scope="module")
def models():
    """Per family the plain model and a hooked one with its weights, made once."""
    made = {}

    def both(tiny):
        if tiny.name not in made:
            with torch.random.fork_rng():
                plain = tiny.model()
            made[tiny.name] = plain, hook_model(copy.deepcopy(plain))
        return made[tiny.name]

    return both


# ---------------------------------------------------------------------- the same as TransformerLens


@pytest.mark.parametrize("site", ["z", "mlp"])
@pytest.mark.parametrize("tiny", KNOWN, ids=lambda tiny: tiny.name)
def test_every_family_gives_the_logits_of_its_hooked_model(tiny, site, models):
    plain, hooked = models(tiny)
    inputs, mask = tiny.inputs()
    real = slice(None) if mask is None else mask.bool()
    shape = Site.of(site).shape(hooked.cfg)
    assert find_readers(plain, Site.of(site)).shape == shape
    ablation = random_ablation(shape, hooked.record, site)
    before, expected = theirs(plain, inputs, mask), run(hooked, inputs, mask, ablation.hooks())
    applied = theirs(plain, inputs, mask, ablation)
    handles = [module.register_forward_pre_hook(function) for module, function in ablation.pre_hooks(plain)]
    by_hooks = theirs(plain, inputs, mask)
    for handle in handles:
        handle.remove()
    assert torch.allclose(applied[real], expected[real], atol=TOLERANCE)
    assert torch.equal(by_hooks, applied)
    assert not torch.allclose(applied[real], before[real], atol=100 * TOLERANCE)
    assert torch.equal(theirs(plain, inputs, mask), before)
    assert torch_hooks(plain) == []


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_zoo_model_is_known_by_its_weights_whoever_loaded_it(name):
    hooked, folder = al.load_model(name, device="cpu"), zoo.folder(name)
    auto = {"tiny-roberta": "AutoModelForMaskedLM", "tiny-vit": "AutoModelForImageClassification"}
    plain = getattr(transformers, auto.get(name, "AutoModelForCausalLM")).from_pretrained(folder, dtype=torch.float32)
    values = torch.randn(5, *Site.Z.shape(hooked.cfg))
    statistics = ActivationStatistics.of_values(values, model=al.record_of(hooked))
    ablation = statistics.ablation(al.random_neurons(statistics.shape, 0.5, seed=1), "mean")
    if name == "tiny-vit":
        inputs = torch.randn(2, hooked.n_channels, *hooked.image_size)
    else:
        inputs = torch.randint(5, 60, (2, 9))
    expected = run(hooked, inputs, None, ablation.hooks())
    assert torch.allclose(theirs(plain, inputs, ablation=ablation), expected, atol=TOLERANCE)


def test_a_hook_on_a_neighbouring_layer_is_noticed(models):
    tiny = BY_NAME["gpt2"]
    plain, hooked = models(tiny)
    inputs, mask = tiny.inputs()
    ablation = random_ablation(Site.Z.shape(hooked.cfg))
    expected = run(hooked, inputs, mask, ablation.hooks())[mask.bool()]
    pairs = ablation.pre_hooks(plain)
    modules = [module for module, _ in pairs]
    handles = [
        module.register_forward_pre_hook(function)
        for module, (_, function) in zip(modules[1:] + modules[:1], pairs, strict=True)
    ]
    wrong = theirs(plain, inputs, mask)[mask.bool()]
    for handle in handles:
        handle.remove()
    assert not torch.allclose(wrong, expected, atol=100 * TOLERANCE)


def test_several_ablations_of_two_sites_and_the_later_one_wins(models):
    tiny = BY_NAME["llama"]
    plain, hooked = models(tiny)
    inputs, mask = tiny.inputs()
    z, mlp = (site.shape(hooked.cfg) for site in (Site.Z, Site.MLP))
    several = random_ablation(z) | random_ablation(mlp, site="mlp") | random_ablation(z, seed=3)
    expected = run(hooked, inputs, mask, several.hooks())[mask.bool()]
    assert torch.allclose(theirs(plain, inputs, mask, several)[mask.bool()], expected, atol=TOLERANCE)
    handles = [module.register_forward_pre_hook(function) for module, function in several.pre_hooks(plain)]
    assert torch.allclose(theirs(plain, inputs, mask)[mask.bool()], expected, atol=TOLERANCE)
    for handle in handles:
        handle.remove()


def test_values_follow_the_dtype_of_the_activation(models):
    plain, _ = models(BY_NAME["opt"])
    half = copy.deepcopy(plain).to(torch.bfloat16)
    seen = []
    ablation = al.Ablation.from_names("L1.H2", 0.75, model=half)
    reader = find_readers(half, Site.Z).modules[1]
    with ablation.applied_to(half):
        handle = reader.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        half(torch.tensor([[2, 7, 9]]))
        handle.remove()
    assert seen[0].dtype == torch.bfloat16
    assert (seen[0][..., 12:18] == 0.75).all()
    assert (seen[0][..., :12] != 0.75).all()


def test_names_need_no_other_model_than_the_plain_one(models):
    plain, hooked = models(BY_NAME["llama"])
    for site in ("z", "mlp"):
        own, other = (al.Ablation.from_names("L1", 0.0, model=model, site=site) for model in (plain, hooked))
        assert torch.equal(own.mask, other.mask)


# ---------------------------------------------------------------------- positions, padding, caches

WHERE = [(0, -1), (slice(1, 4),)]


@pytest.mark.parametrize("where", WHERE, ids=str)
@pytest.mark.parametrize("name", ["opt", "mistral"])
def test_padding_before_a_text_does_not_move_its_positions(name, where, models):
    tiny, site = BY_NAME[name], "mlp" if name == "opt" else "z"  # OPT gives its MLP all rows one after another
    plain, hooked = models(tiny)
    ablation = random_ablation(Site.of(site).shape(hooked.cfg), site=site).at(*where)
    inputs = torch.randint(3, 60, (3, 9))
    mask = torch.arange(9)[None] >= torch.tensor([[0], [4], [2]])
    together = theirs(plain, inputs, mask.long(), ablation)
    for row, real in enumerate(mask):
        alone = theirs(plain, inputs[row : row + 1, real], None, ablation)
        assert torch.allclose(together[row, real], alone[0], atol=TOLERANCE)
        assert not torch.allclose(alone, theirs(plain, inputs[row : row + 1, real]), atol=100 * TOLERANCE)


@pytest.mark.parametrize("name", ["opt", "mistral"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_key_value_cache_does_not_move_positions(name, padded, models):
    plain, hooked = models(BY_NAME[name])
    by_position = torch.randn(3, 12, *Site.Z.shape(hooked.cfg)[1:])
    everywhere = al.random_neurons(Site.Z.shape(hooked.cfg), 0.5, seed=2)
    ablation = al.Ablation(everywhere, by_position).at(0, 3, 5, 6)
    inputs = torch.randint(3, 60, (2, 9))
    mask = (torch.arange(9)[None] >= torch.tensor([[0], [2 * padded]])).long()
    whole = theirs(plain, inputs, mask, ablation)
    cache, pieces = None, []
    with torch.no_grad(), ablation.applied_to(plain):
        for start, stop in ((0, 4), (4, 5), (5, 9)):
            options = {"attention_mask": mask[:, :stop], "past_key_values": cache, "use_cache": True}
            result = plain(inputs[:, start:stop], **options)
            cache = result.past_key_values
            pieces.append(result.logits)
    assert torch.allclose(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], atol=TOLERANCE)


def test_generating_from_padded_prompts_is_the_same_with_and_without_a_cache(models):
    plain, _ = models(BY_NAME["llama"])
    ablation = al.Ablation.from_names(["L0", "L1.H3"], 0.5, model=plain).at(1, 5, 6)
    inputs = torch.randint(3, 60, (2, 5))
    mask = (torch.arange(5)[None] >= torch.tensor([[0], [2]])).long()
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    with ablation.applied_to(plain):
        cached, again = (plain.generate(inputs, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, again)
    assert not torch.equal(cached, plain.generate(inputs, **options))


def test_a_resolved_ablation_serves_the_batch_it_was_made_for(models):
    tiny = BY_NAME["opt"]
    plain, hooked = models(tiny)
    inputs = torch.randint(3, 60, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    batch = al.Batch.causal(inputs, mask)
    ablation = random_ablation(Site.MLP.shape(hooked.cfg), site="mlp").at(-1)
    expected = theirs(plain, inputs, mask, ablation)
    resolved = ablation.resolve(plain, batch)
    assert torch.allclose(theirs(plain, inputs, mask, resolved), expected, atol=TOLERANCE)
    handles = [module.register_forward_pre_hook(function) for module, function in resolved.pre_hooks(plain)]
    assert torch.allclose(theirs(plain, inputs, mask), expected, atol=TOLERANCE)
    for handle in handles:
        handle.remove()


def test_an_offset_says_where_a_piece_of_a_text_begins(models):
    plain, hooked = models(BY_NAME["mistral"])
    ablation = random_ablation(Site.Z.shape(hooked.cfg)).at(2)
    inputs = torch.randint(3, 60, (1, 4))
    expected = theirs(plain, inputs, None, ablation)
    handles = [module.register_forward_pre_hook(function) for module, function in ablation.pre_hooks(plain, offset=0)]
    assert torch.equal(theirs(plain, inputs), expected)
    for handle in handles:
        handle.remove()
    with pytest.raises(MismatchError, match=r"neither padding nor cache.*applied_to"):
        ablation.pre_hooks(plain)


def test_where_positions_cannot_be_told_nothing_is_computed(models):
    plain, _ = models(BY_NAME["opt"])
    ablation = al.Ablation.from_names("L0", 0.0, model=plain).at(1)
    tokens = torch.randint(3, 60, (2, 4))
    four = torch.zeros(2, 1, 4, 4)
    with ablation.applied_to(plain):
        with pytest.raises(MismatchError, match=r"give a mask \[batch pos\], and not one of shape \(2, 1, 4, 4\)"):
            plain(tokens, attention_mask=four)
        with pytest.raises(MismatchError, match="7 columns, where there are 0 cached positions and 4 new ones"):
            plain(tokens, attention_mask=torch.tensor([[0] + [1] * 6] * 2))
        with pytest.raises(MismatchError, match="a block was called by itself"):
            plain.model.decoder.layers[0](torch.randn(2, 4, 36))
        for inner in (plain.model, plain.model.decoder):  # what the head is put on is told everything
            inner(tokens)
    mlp = al.Ablation.from_names("L0", 0.0, model=plain, site="mlp").at(1)
    module, function = mlp.pre_hooks(plain, offset=0)[0]
    with pytest.raises(MismatchError, match="one after another"):
        function(module, (torch.randn(8, 40),))


def test_a_mask_is_seen_also_where_it_has_no_name(models):
    plain, _ = models(BY_NAME["mistral"])
    ablation = al.Ablation.from_names("L0", 0.5, model=plain).at(0)
    tokens, mask = torch.randint(3, 60, (1, 5)), torch.tensor([[0, 0, 1, 1, 1]])
    with torch.no_grad(), ablation.applied_to(plain):
        assert torch.equal(plain(tokens, mask).logits, plain(tokens, attention_mask=mask).logits)


def test_an_mlp_that_is_given_pieces_of_a_row_is_refused():
    config = transformers.BertConfig(**TEXT, intermediate_size=40, chunk_size_feed_forward=2)
    plain = transformers.BertForMaskedLM(config).eval()
    ablation = al.Ablation.from_names("L0", 0.0, model=plain, site="mlp")
    tokens = torch.randint(3, 60, (2, 6))
    whole = transformers.BertForMaskedLM(transformers.BertConfig(**TEXT, intermediate_size=40)).eval()
    whole.load_state_dict(plain.state_dict())
    assert torch.allclose(theirs(plain, tokens, None, ablation), theirs(whole, tokens, None, ablation), atol=1e-5)
    with ablation.at(3).applied_to(plain), pytest.raises(MismatchError, match="6 columns, and 2 came"):
        plain(tokens)


# ---------------------------------------------------------------------- what is refused, and what is left behind


def test_values_of_another_model_are_refused_and_can_be_put_there_on_purpose(models):
    plain, hooked = models(BY_NAME["llama"])
    ablation = random_ablation(Site.Z.shape(hooked.cfg), hooked.record)
    other = copy.deepcopy(plain)
    other.model.layers[2].mlp.down_proj.weight.data[0, 0] += 1
    for model in (other, copy.deepcopy(plain).double(), plain.model):
        with pytest.raises(MismatchError, match=r"values are another model's.*LlamaForCausalLM in float32"):
            ablation.applied_to(model)
        with pytest.raises(MismatchError, match="another model's"):
            ablation.pre_hooks(model)
        with replace(ablation, source=None).applied_to(model):
            pass
    trained = replace(ablation, source=replace(hooked.record, weights=None))
    with pytest.raises(MismatchError, match=r"changed after loading.*cannot be told"):
        trained.applied_to(plain)
    with pytest.raises(MismatchError, match="weights were folded"):
        replace(ablation, source=replace(hooked.record, processing="folded")).applied_to(plain)


def test_hooks_are_gone_whatever_happens_within(models):
    plain, hooked = models(BY_NAME["opt"])
    ablation = random_ablation(Site.Z.shape(hooked.cfg)) | random_ablation(Site.MLP.shape(hooked.cfg), site="mlp")
    with pytest.raises(ZeroDivisionError), ablation.applied_to(plain):
        raise ZeroDivisionError
    assert torch_hooks(plain) == []
    with ablation.at(0).applied_to(plain):
        with pytest.raises(IndexError):
            plain(torch.tensor([[10**6]]))  # not in the vocabulary
        plain(torch.tensor([[3, 4]]))
    assert torch_hooks(plain) == []


def test_a_projection_that_is_not_called_is_not_passed_over(models):
    plain = copy.deepcopy(models(BY_NAME["llama"])[0])
    mlp = plain.model.layers[1].mlp
    mlp.forward = lambda x: F.linear(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight)
    everywhere = al.Ablation.from_names(["L0", "L1"], 0.0, model=plain, site="mlp")
    with everywhere.applied_to(plain), pytest.raises(MismatchError, match="Linear that reads the neurons of layer 1"):
        plain(torch.tensor([[2, 7, 9]]))
    with al.Ablation.from_names("L0", 0.0, model=plain, site="mlp").applied_to(plain):
        plain(torch.tensor([[2, 7, 9]]))


def test_in_training_only_layers_that_are_dropped_on_purpose_may_be_missed(models):
    plain = copy.deepcopy(models(BY_NAME["llama"])[0]).train()
    block = plain.model.layers[1]
    block.forward = lambda hidden, **options: hidden
    ablation = al.Ablation.from_names(["L0", "L1"], 0.0, model=plain)
    with ablation.applied_to(plain), pytest.raises(MismatchError, match=r"neurons of layer 1.*compiled"):
        plain(torch.tensor([[2, 7, 9]]))
    plain.config.layerdrop = 0.5
    with ablation.applied_to(plain):
        plain(torch.tensor([[2, 7, 9]]))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # the new name is not in older ones
def test_gradient_checkpointing_gives_the_same_gradients_or_is_named(models):
    plain, tokens, gradients = models(BY_NAME["llama"])[0], torch.tensor([[2, 7, 9]]), []
    for checkpointing in (False, True):
        model = copy.deepcopy(plain).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ablation = al.Ablation.from_names("L1.H2", 0.5, model=model)
        with ablation.applied_to(model):
            model(tokens).logits.sum().backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    assert torch.allclose(*gradients)
    with ablation.at(1).applied_to(model), pytest.raises(MismatchError, match="without gradient checkpointing"):
        model(tokens).logits.sum().backward()


def test_a_compiled_model_is_refused_before_it_runs(models):
    plain, _ = models(BY_NAME["llama"])
    compiled = torch.compile(plain, backend="eager")
    ablation = al.Ablation.from_names("L0", 0.0, model=plain)
    for call in (ablation.applied_to, ablation.pre_hooks):
        with pytest.raises(MismatchError, match=r"torch.compile.*model\._orig_mod"):
            call(compiled)


def test_another_shape_is_refused(models):
    plain, _ = models(BY_NAME["opt"])
    with pytest.raises(MismatchError, match=r"shape \(3, 6, 7\), the model has \(3, 6, 6\)"):
        al.Ablation(torch.ones(3, 6, 7, dtype=torch.bool), 0.0).pre_hooks(plain)


def test_values_that_are_asked_for_every_batch_are_refused(models):
    plain, _ = models(BY_NAME["opt"])
    ablation = al.Ablation(torch.ones(3, 6, 6, dtype=torch.bool), lambda model, batch, site: torch.zeros(3, 6, 6))
    for call in (ablation.pre_hooks, ablation.applied_to):
        with pytest.raises(MismatchError, match="asked for every batch"):
            call(plain)


def test_a_hooked_model_is_told_where_to_go(models):
    _, hooked = models(BY_NAME["opt"])
    with pytest.raises(MismatchError, match="expected a model of transformers that nobody hooked"):
        al.Ablation.from_names("L0", 0.0, model=hooked).pre_hooks(hooked)


def mixtral():
    config = transformers.MixtralConfig(**TEXT, intermediate_size=40, num_local_experts=3, num_key_value_heads=3)
    return transformers.MixtralForCausalLM(config)


def albert():
    config = transformers.AlbertConfig(**TEXT, embedding_size=12, intermediate_size=40)
    return transformers.AlbertForMaskedLM(config)


def t5():
    config = transformers.T5Config(vocab_size=61, d_model=36, num_layers=2, num_heads=6, d_kv=6, d_ff=40)
    return transformers.T5ForConditionalGeneration(config)


def bert_decoder():
    config = transformers.BertConfig(**TEXT, intermediate_size=40, is_decoder=True, add_cross_attention=True)
    return transformers.BertLMHeadModel(config)


def two_towers():
    both = torch.nn.ModuleDict({"one": BY_NAME["opt"].model(), "two": BY_NAME["llama"].model()})
    both.config = both["one"].config
    return both


def unlike_heads():
    model = BY_NAME["llama"].model()
    model.model.layers[1].self_attn.o_proj = torch.nn.Linear(30, 36)
    return model


def renamed():
    model = BY_NAME["llama"].model()
    attention = model.model.layers[1].self_attn
    attention.out = attention.o_proj
    del attention.o_proj
    return model


@pytest.mark.parametrize(
    ("build", "site", "words"),
    [
        (mixtral, "mlp", "down projection of an MLP to 36 dims.*found none"),
        (albert, "z", "1 blocks at albert.*its config says 3 layers"),
        (t5, "z", "an encoder and a decoder"),
        (bert_decoder, "z", r"found 2 \(attention.output.dense, crossattention.output.dense\)"),
        (two_towers, "z", "2 stacks of blocks.*one.model.decoder.layers, two.model.layers; expected one"),
        (unlike_heads, "z", "are 30, 36 in a layer"),
        (renamed, "z", r"model.layers.1 has to have one attention output projection.*found none"),
        (BY_NAME["opt"].build, "attn_out", "at z and mlp, and not at 'attn_out'.*hook_model"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_not_found_for_sure_is_refused_in_one_sentence(build, site, words):
    with pytest.raises(MismatchError, match=words) as refused:
        al.Ablation.from_names("L0", 0.0, model=build(), site=site)
    assert str(refused.value).count(". ") <= 1


def test_attention_of_a_mixture_of_experts_is_found():
    plain = mixtral()
    with al.Ablation.from_names("L1.H0", 0.0, model=plain).applied_to(plain):
        plain(torch.tensor([[2, 7, 9]]))
