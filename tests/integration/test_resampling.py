"""Random inputs are what they say, the values are the model's own, and nothing random is shared or left behind."""

import copy
import hashlib
import pickle
import random
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError, ModelError, NonFiniteError
from ablation_lens.measure import random_inputs
from ablation_lens.measure.random_inputs import ALPHANUMERIC, random_pixels, random_text
from ablation_lens.measure.resampling import KINDS, METHODS, Resampled, methods_for, resample
from ablation_lens.models.load import incremental_logits
from ablation_lens.sites import Site

ZOO = ("tiny-opt", "tiny-mistral", "tiny-roberta", "tiny-vit")
PAIRS = [(name, kind) for name in ZOO for kind in KINDS if (kind == "pixels") == (name == "tiny-vit")]


@pytest.fixture(scope="module")
def zoo():
    return {name: al.load_model(name) for name in ZOO}


@pytest.fixture(scope="module")
def resampled(zoo):
    """Every kind on every model it applies to, for two seeds."""
    return {
        (name, kind, seed): resample(zoo[name], kind, seed=seed, generator=zoo["tiny-opt"] if masked(name) else None)
        for name, kind in PAIRS
        for seed in (42, 123)
    }


def masked(name):
    return name == "tiny-roberta"


def specials(model):
    """Ids that are special, by the tokenizer's file rather than by what it declares."""
    return {token for token, added in model.hf_tokenizer.added_tokens_decoder.items() if added.special}


@pytest.fixture
def bare(saved):
    """Random-weight causal models without a tokenizer."""

    def load(name, **options):
        return al.load_model(saved(name), **options)

    return load


# --- the inputs --------------------------------------------------------------------------------------------


def test_the_methods_are_named_after_the_kinds(zoo):
    assert al.resampling.METHODS == METHODS
    assert METHODS == ("resample-characters", "resample-tokens", "resample-generated", "resample-pixels")
    assert [methods_for(zoo[name]) for name in ZOO] == [METHODS[:3]] * 3 + [METHODS[3:]]


@pytest.mark.parametrize(
    ("seed", "text"),
    [
        (42, "3yRaStQaaHoJYxZI0aUGuIP6p9ggzzfKcAcvvKnQ1SYGSKc4VfHmIUQr62Lk"),
        (123, "KWPIxigyHbKbxe88Yi3xfSJjuLTbZZmsYn53qhRu6ulyotJjXjsA9RYEnlIB"),
        (456, "qJ2Nodok7KemLmAyROVhrVpe75noTufPxEwS90FEH8DWiu0BnCBHi5P2PTH6"),
    ],
)
def test_the_papers_seeds_draw_these_characters_everywhere(zoo, seed, text):
    for name in ("tiny-opt", "tiny-roberta"):
        assert resample(zoo[name], "characters", seed=seed, positions=80).text.startswith(text)


def test_the_papers_seeds_draw_these_pixels_everywhere():
    seen = []
    model = SimpleNamespace(
        cfg=SimpleNamespace(n_ctx=5),
        image_size=(3, 4),
        n_channels=3,
        image_processor=lambda image, **_: seen.append(image) or {"pixel_values": np.zeros((1, 3, 3, 4))},
    )
    random_pixels(model, random.Random("pixels 42"))
    assert (seen[0].size, seen[0].mode) == ((4, 3), "RGB")
    assert hashlib.sha256(seen[0].tobytes()).hexdigest()[:16] == "a28becc3b354f5fa"


def test_text_fills_the_context_between_the_tokenizers_own_special_tokens(zoo, resampled):
    for (name, kind, _), result in resampled.items():
        if kind == "pixels":
            continue
        model = zoo[name]
        ids = result.inputs[0].tolist()
        assert tuple(result.inputs.shape) == (1, 256)
        around = model.hf_tokenizer("a")["input_ids"]
        assert (ids[0], ids[-1] if masked(name) else None) == (around[0], around[-1] if masked(name) else None)
        inner = ids[1:-1] if masked(name) else ids[1:]
        assert not specials(model) & set(inner)
        assert result.text == model.hf_tokenizer.decode(inner)
        assert result.generator == ({"tiny-roberta": "tiny-opt"}.get(name, name) if kind == "generated" else None)
        assert (result.model, result.site) == (model.record, Site.Z)


def test_the_context_is_the_papers_or_what_was_asked_for(zoo):
    long = {"n_ctx": 2048, "d_vocab": 2048}
    for kind, task, length in (("causal", "causal-lm", 1000), ("masked", "masked-lm", 512)):
        model = SimpleNamespace(cfg=SimpleNamespace(**long), task=task, hf_tokenizer=zoo["tiny-roberta"].hf_tokenizer)
        for what in ("characters", "tokens"):
            assert random_text(model, what, random.Random(0))[0].shape == (1, length), kind
    for positions in (3, 17, 256):
        result = resample(zoo["tiny-roberta"], "characters", seed=1, positions=positions)
        assert (result.inputs.shape[1], result.values.shape[1]) == (positions, positions)


def chi_square(counts, cells):
    expected = sum(counts.values()) / cells
    return sum((counts[cell] - expected) ** 2 / expected for cell in range(cells)), cells - 1


def test_characters_tokens_and_pixels_are_uniform(zoo):
    letters, tokens, values = Counter(), Counter(), Counter()
    ordinary = sorted(set(range(2048)) - specials(zoo["tiny-opt"]))
    number = {token: place for place, token in enumerate(ordinary)}
    for seed in range(80):
        _, text = random_text(zoo["tiny-opt"], "characters", random.Random(seed))
        letters.update(ALPHANUMERIC.index(letter) for letter in text)
        ids, _ = random_text(zoo["tiny-opt"], "tokens", random.Random(seed))
        tokens.update(number[token] for token in ids[0, 1:].tolist())
    for seed in range(10):
        pixels = random_pixels(zoo["tiny-vit"], random.Random(seed))
        values.update(((pixels * 0.5 + 0.5) * 255).round().long().flatten().tolist())
    for counts, cells in ((letters, 62), (tokens, len(ordinary)), (values, 256)):
        statistic, freedom = chi_square(counts, cells)
        assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5  # mean and spread of χ²


def test_pixels_are_whole_numbers_of_the_models_own_size_prepared_as_real_images_are(zoo, resampled):
    vit = zoo["tiny-vit"]
    inputs = resampled["tiny-vit", "pixels", 42].inputs
    assert tuple(inputs.shape) == (1, 3, 32, 32)
    exact = (inputs[0] * 0.5 + 0.5) * 255
    whole = exact.round()
    assert (exact - whole).abs().max() < 1e-3
    image = Image.fromarray(whole.permute(1, 2, 0).numpy().astype(np.uint8))
    assert torch.equal(torch.as_tensor(vit.image_processor(image, return_tensors="pt")["pixel_values"]), inputs)


def test_a_processor_that_enlarges_real_images_does_not_smooth_the_noise(zoo):
    vit = zoo["tiny-vit"]
    enlarging = copy.deepcopy(vit.image_processor)
    enlarging.size = type(enlarging.size)(height=40, width=40)
    model = SimpleNamespace(cfg=vit.cfg, image_size=(32, 32), n_channels=3, image_processor=enlarging)
    assert torch.equal(random_pixels(model, random.Random(1)), random_pixels(vit, random.Random(1)))


def test_only_letters_and_digits(resampled):
    text = resampled["tiny-opt", "characters", 42].text
    assert text.isascii()
    assert text.isalnum()


def test_a_text_that_spells_special_tokens_brings_none_in(zoo, monkeypatch):
    author = SimpleNamespace(
        hf_tokenizer=SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids))), cfg=zoo["tiny-opt"].cfg
    )
    story = b"the cat </s> sat <mask> on <pad><s> the mat "
    monkeypatch.setattr(random_inputs, "_sampled", lambda *_: iter(story * 999))
    roberta = zoo["tiny-roberta"]
    ids, text = random_text(roberta, "generated", random.Random(0), 100, author)
    assert set(roberta.hf_tokenizer(story.decode())["input_ids"]) & specials(roberta) >= {0, 1, 2, 4}
    assert not set(ids[0, 1:-1].tolist()) & specials(roberta)
    assert ids.shape == (1, 100)
    assert text.startswith("the cat  sat")


def test_a_tokenizer_without_words_for_it_is_one_clear_error(zoo):
    from tests.tiny_tokenizers import word_tokenizer

    model = SimpleNamespace(cfg=SimpleNamespace(n_ctx=32, d_vocab=25), hf_tokenizer=word_tokenizer())
    with pytest.raises(ModelError, match=r"made 0 tokens of .* characters, where 31 are needed; use kind 'tokens'"):
        random_text(model, "characters", random.Random(0))
    ids, _ = random_text(model, "tokens", random.Random(0))
    assert ids[0, 0] == 0
    assert set(ids[0, 1:].tolist()) <= set(range(5, 25))


def test_ids_without_a_row_or_without_a_name_are_never_drawn(zoo):
    """A tokenizer may know more than the embedding holds, and an embedding is often padded."""
    tokenizer = zoo["tiny-opt"].hf_tokenizer
    for d_vocab, most in ((100, 99), (5000, 2047)):
        model = SimpleNamespace(cfg=SimpleNamespace(n_ctx=900, d_vocab=d_vocab), hf_tokenizer=tokenizer)
        drawn = {
            token for seed in range(9) for token in random_text(model, "tokens", random.Random(seed))[0][0].tolist()
        }
        assert most - 5 <= max(drawn) <= most


# --- generated text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["opt", "mistral", "llama", "gpt2"])
def test_incremental_logits_are_those_of_one_pass(bare, name):
    model = bare(name)
    tokens = torch.randint(3, 61, (1, 20))
    expected = model(tokens)[0]
    for pieces in ([20], [1] * 20, [7, 1, 1, 6, 5]):
        feed = incremental_logits(model)
        ends = np.cumsum(pieces)
        for piece, end in zip(tokens.split(pieces, dim=1), ends, strict=True):
            torch.testing.assert_close(feed(piece), expected[end - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-mistral"])
def test_generated_text_is_sampled_from_the_models_own_predictions_at_temperature_one(zoo, name):
    """Surprise minus entropy sums to zero under the sampled distribution, and to nothing near it under another."""
    model = zoo[name]
    forbidden = sorted(specials(model))
    written = [resample(model, "generated", seed=seed).inputs for seed in range(4)]

    def score(temperature):
        total = spread = 0.0
        for ids in written:
            logits = model(ids)[0, 1:-1].double() / temperature
            logits[:, forbidden] = -torch.inf
            logs = logits.log_softmax(-1)
            weights = logs.exp()
            surprise = -logs.masked_fill(weights == 0, 0)
            entropy = (weights * surprise).sum(-1)
            drawn = surprise.gather(1, ids[0, 2:, None])[:, 0]
            total += (drawn - entropy).sum().item()
            spread += (weights * (surprise - entropy[:, None]) ** 2).sum().item()
        return total / spread**0.5

    assert abs(score(1.0)) < 4
    assert score(0.7) > 6
    assert score(1.5) < -6


def test_special_tokens_are_not_generated_however_likely(zoo):
    opt = al.load_model("tiny-opt")
    wanted = specials(opt)

    def favour(module, args, logits):
        logits = logits.clone()
        logits[..., sorted(wanted)] += 1e4
        return logits

    handle = opt.unembed.register_forward_hook(favour)
    try:
        assert opt(torch.tensor([[2, 50]]))[0, -1].argmax().item() in wanted
        ids = resample(opt, "generated", seed=3, positions=60).inputs[0, 1:].tolist()
    finally:
        handle.remove()
    assert not wanted & set(ids)


def test_another_models_text_is_read_with_the_models_own_tokenizer(zoo, resampled):
    ours, theirs = (resampled[name, "generated", 42].text for name in ("tiny-roberta", "tiny-opt"))
    assert len(ours) > 300
    assert theirs.startswith(ours)  # one token fewer: RoBERTa has two special tokens
    by_other = resample(zoo["tiny-opt"], "generated", seed=42, generator=zoo["tiny-mistral"])
    assert by_other.generator == "tiny-mistral"
    # What a model samples is not always how a tokenizer would cut it, so the same text may take fewer tokens.
    assert by_other.text.startswith(resampled["tiny-mistral", "generated", 42].text[:500])


def test_a_text_longer_than_the_authors_context_goes_on(zoo):
    """… from the second half of it, after BOS."""
    opt = zoo["tiny-opt"]
    cfg = SimpleNamespace(n_ctx=16, d_vocab=2048, device="cpu")
    short = SimpleNamespace(cfg=cfg, hf_tokenizer=opt.hf_tokenizer)
    calls = []

    def full_pass(author):
        fed = []
        calls.append(fed)

        def feed(tokens):
            fed.extend(tokens[0].tolist())
            return opt(torch.tensor([fed]))[0, -1]

        return feed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_inputs, "incremental_logits", full_pass)
        text = list(islice(random_inputs._sampled(short, random.Random(5)), 60))
    assert not set(text) & specials(opt)
    assert all(len(fed) <= 16 for fed in calls)
    assert calls[0][:2] == [2, text[0]]
    assert calls[1][:9] == [2, *text[8:16]]  # BOS, then the eight tokens after the first eight
    assert len(calls) > 4


# --- the values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_values_are_the_models_activations_on_the_kept_input(zoo, resampled, name, kind):
    model, result = zoo[name], resampled[name, kind, 42]
    assert tuple(result.values.shape) == (4, result.inputs.shape[1] if kind != "pixels" else 65, 4, model.cfg.d_head)
    assert (result.values.dtype, result.values.device.type) == (torch.float32, "cpu")
    assert not result.values.requires_grad
    assert not result.values.is_inference()  # circuits differentiate through ablations
    _, cache = model.run_with_cache(result.inputs)
    for layer, hook_name in enumerate(Site.Z.hook_names(model.cfg)):
        torch.testing.assert_close(result.values[layer], cache[hook_name][0], rtol=1e-4, atol=1e-4)


def test_mlp_neurons_too(zoo):
    opt = zoo["tiny-opt"]
    result = resample(opt, "tokens", seed=1, site=Site.MLP, positions=30)
    _, cache = opt.run_with_cache(result.inputs)
    assert tuple(result.values.shape) == (4, 30, 1, opt.cfg.d_mlp)
    for layer, hook_name in enumerate(Site.MLP.hook_names(opt.cfg)):
        torch.testing.assert_close(result.values[layer, :, 0], cache[hook_name][0], rtol=1e-4, atol=1e-4)


def test_double_precision_is_kept_and_half_precision_widened(bare):
    for dtype, kept in (("float64", torch.float64), ("bfloat16", torch.float32)):
        result = resample(bare("opt", dtype=dtype), "tokens", seed=1)
        assert result.values.dtype == kept


def test_nan_is_refused_by_its_place(bare):
    model = bare("opt")
    with torch.no_grad():
        model.blocks[1].attn.b_V[2, 3] = torch.nan  # only this neuron of layer 1 …
    with pytest.raises(NonFiniteError, match=r"L1\.H2\.D3 is nan at position 0"):
        resample(model, "tokens", seed=1)
    with pytest.raises(NonFiniteError, match=r"logits of .* are not finite"):
        resample(model, "generated", seed=1)


def test_models_without_a_tokenizer_read_tokens_and_their_own_text(bare):
    for name in ("opt", "mistral"):
        model = bare(name)
        for kind in ("tokens", "generated"):
            result = resample(model, kind, seed=7)
            assert result.inputs.shape == (1, model.cfg.n_ctx)
            assert 0 <= result.inputs.min() <= result.inputs.max() < 61
            assert result.text is None
            assert result.extract(12) == " ".join(map(str, result.inputs[0].tolist()))[:11] + "…"
    with pytest.raises(ModelError, match="no tokenizer to read random characters"):
        resample(model, "characters", seed=7)
    with pytest.raises(ModelError, match="both models have a tokenizer"):
        resample(model, "generated", seed=7, generator=al.load_model("tiny-opt"))


# --- randomness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_seed_alone_decides_and_global_randomness_is_left_alone(zoo, resampled, name, kind):
    torch.manual_seed(987)
    random.seed(987)
    np.random.seed(987)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    generator = zoo["tiny-opt"] if masked(name) else None
    again = resample(zoo[name], kind, seed=42, generator=generator)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert (before[2] == after[2]).all()
    first = resampled[name, kind, 42]
    assert torch.equal(again.inputs, first.inputs)
    assert torch.equal(again.values, first.values)
    assert (again.text, again.digest) == (first.text, first.digest)


def test_seeds_and_kinds_differ(resampled):
    for name in ZOO:
        digests = [result.digest for key, result in resampled.items() if key[0] == name]
        assert len(set(digests)) == len(digests)
    tokens, generated = (resampled["tiny-opt", kind, 42].inputs[0, 1] for kind in ("tokens", "generated"))
    assert tokens != generated  # not two readings of one random stream


# --- files, extracts, errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_saving_keeps_everything(resampled, tmp_path, name, kind):
    result = resampled[name, kind, 123]
    result.save(tmp_path / "r.safetensors")
    read = Resampled.load(tmp_path / "r.safetensors")
    assert torch.equal(read.values, result.values)
    assert torch.equal(read.inputs, result.inputs)
    for field in ("kind", "seed", "text", "generator", "site", "model", "digest"):
        assert getattr(read, field) == getattr(result, field)
    assert read.inputs.dtype == result.inputs.dtype


def test_damaged_and_foreign_files_are_refused(resampled, tmp_path):
    path = tmp_path / "r.safetensors"
    resampled["tiny-opt", "tokens", 42].save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        Resampled.load(path)
    path.write_bytes(pickle.dumps(whole))
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        Resampled.load(path)
    from ablation_lens.files import save_tensors

    save_tensors(path, "resampled values", {"kind": "tokens"}, {"values": torch.zeros(1, 1, 1, 1)})
    with pytest.raises(FileFormatError, match="not a complete"):
        Resampled.load(path)
    save_tensors(path, "ablation", {}, {})
    with pytest.raises(FileFormatError, match="holds ablation"):
        Resampled.load(path)


def test_the_digest_is_of_the_exact_input(resampled):
    result = resampled["tiny-opt", "tokens", 42]
    other = result.inputs.clone()
    other[0, 100] += 1
    made = [
        Resampled("tokens", 42, result.values, inputs, None, None)
        for inputs in (result.inputs.clone(), other, result.inputs.int(), result.inputs[:, :255])
    ]
    assert [one.digest == result.digest for one in made] == [True, False, False, False]
    assert len(result.digest) == 16


def test_extracts_are_one_short_line(resampled):
    nasty = "a\n\tb\u202ec\x00 <script>" + "x" * 99
    made = Resampled("tokens", 1, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1), nasty, None)
    assert made.extract(18) == r"a b\u202ec\x00 <s…"
    assert made.extract(500) == r"a b\u202ec\x00 <script>" + "x" * 99
    assert all(len(result.extract()) <= 60 for result in resampled.values())
    assert resampled["tiny-vit", "pixels", 42].extract() == "32 × 32 random pixels in 3 channels"
    assert "seed 42" in repr(resampled["tiny-opt", "characters", 42])


def test_what_does_not_apply_is_one_clear_error(zoo):
    for name, kind, options, message in (
        ("tiny-opt", "pixels", {}, "'pixels' does not apply to tiny-opt, a model for causal-lm; use characters or"),
        ("tiny-vit", "tokens", {}, "'tokens' does not apply to tiny-vit.*; use pixels"),
        ("tiny-opt", "resample-token", {}, "nearest is 'tokens'"),
        ("tiny-opt", "pixel", {}, "nearest is 'pixels'"),
        ("tiny-opt", None, {}, "None is not a kind of resampling"),
        ("tiny-opt", "tokens", {"seed": 4.2}, r"seed=4\.2"),
        ("tiny-opt", "tokens", {"seed": True}, "seed=True"),
        ("tiny-opt", "tokens", {"positions": 257}, "positions=257 .* takes 2 to 256"),
        ("tiny-roberta", "characters", {"positions": 2}, "positions=2 .* takes 3 to 256"),
        ("tiny-vit", "pixels", {"positions": 64}, "positions=64, but an image always has 65"),
        ("tiny-roberta", "generated", {}, r"tiny-roberta is not a causal model .*; pass generator=.*tiny-opt"),
        ("tiny-opt", "generated", {"generator": zoo["tiny-roberta"]}, "tiny-roberta is not a causal model"),
    ):
        with pytest.raises(MismatchError, match=message):
            resample(zoo[name], kind, **{"seed": 1, **options})


def test_an_image_model_without_its_processor_says_so(zoo):
    model = SimpleNamespace(cfg=zoo["tiny-vit"].cfg, task="image-classification", image_processor=None)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        resample(model, "pixels", seed=1)


@pytest.mark.parametrize("ids", [[], [5]], ids=["nothing", "something else"])
def test_a_tokenizer_whose_special_tokens_cannot_be_told_is_an_error(ids):
    """It would put them in the wrong places without a word."""

    def tokenizer(text, add_special_tokens=True, **_):
        return {"input_ids": [0, 7, 2] if add_special_tokens else ids}

    model = SimpleNamespace(cfg=SimpleNamespace(n_ctx=20, d_vocab=10), hf_tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"special tokens .* cannot be told"):
        random_text(model, "tokens", random.Random(1), 9)
