"""The zoo: its folders load anywhere, say what they are worth, and can be made again."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from ablation_lens import zoo
from ablation_lens.corpora.embedded import digest
from ablation_lens.corpora.journeys import journey
from ablation_lens.errors import ModelError
from ablation_lens.zoo.train import data as corpora
from ablation_lens.zoo.train import training, warm_start
from ablation_lens.zoo.train.baselines import UNSEEN, CountModel
from ablation_lens.zoo.train.batches import (
    IGNORED,
    additive,
    augment,
    causal_batch,
    corrupt,
    packed_rows,
    paragraph_batch,
    repeated_rows,
    visible,
)
from ablation_lens.zoo.train.data import Images, Texts
from ablation_lens.zoo.train.held_out import measure, second_paragraph
from ablation_lens.zoo.train.optimizer import orthogonalise
from ablation_lens.zoo.train.recipes import RECIPES, Recipe, build_model
from ablation_lens.zoo.train.vocabulary import END, MASK, PAD, SPECIAL_TOKENS, START, frame, learn_vocabulary
from ablation_lens.zoo.train.warm_start import (
    NEIGHBOURS,
    information_embeddings,
    start_from_copies,
    start_from_neighbours,
)

TEXT_MODELS = ("tiny-opt", "tiny-mistral", "tiny-roberta", "tiny-llama")
AUTO_CLASSES = {
    "tiny-opt": AutoModelForCausalLM,
    "tiny-mistral": AutoModelForCausalLM,
    "tiny-roberta": AutoModelForMaskedLM,
    "tiny-vit": AutoModelForImageClassification,
    "tiny-llama": AutoModelForCausalLM,
}
WORDS = ["the", "module", "returns", "a", "list", "of", "names", "and", "raises", "an", "error", "when", "none", "is"]


@pytest.fixture(scope="module")
def few_texts() -> Texts:
    def document(seed: int) -> str:
        return " ".join(np.random.default_rng(seed).choice(WORDS, size=60))

    documents = [document(seed) for seed in range(24)]
    return Texts(documents[:20], documents[20:], digest(documents))


@pytest.fixture(scope="module")
def few_journeys() -> Texts:
    documents = [journey(number) for number in range(24)]
    return Texts(documents[:20], documents[20:], digest(documents))


@pytest.fixture(scope="module")
def few_images() -> Images:
    whole = corpora.images()
    return Images(whole.train[:60], whole.evaluate[:20], whole.digest)


@pytest.fixture
def small_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(training.RECIPES, name, replace(recipe, width=32, layers=2, batch=4))

    def plain_embeddings(documents: list[torch.Tensor], vocabulary: int, width: int) -> np.ndarray:
        return np.random.default_rng(0).normal(0, 0.07, (vocabulary, width))

    # The decomposition of a 2048 × 2048 matrix is most of a short training, and has a test of its own.
    monkeypatch.setattr(warm_start, "information_embeddings", plain_embeddings)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small run faster on one thread than on several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- training ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_recipes")
@pytest.mark.parametrize("name", ["tiny-vit", *(pytest.param(name, marks=pytest.mark.slow) for name in TEXT_MODELS)])
def test_a_few_steps_write_a_folder_that_loads(
    name: str, tmp_path: Path, few_texts: Texts, few_journeys: Texts, few_images: Images
):
    data = {"tiny-vit": few_images, "tiny-llama": few_journeys}.get(name, few_texts)
    before = torch.get_rng_state()
    record = training.train(name, tmp_path / "model", steps=2, data=data)
    assert torch.equal(before, torch.get_rng_state())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "training.json").read_text()) == record
    assert record["recipe"]["steps"] == 2
    assert record["corpus_digest"] == data.digest
    model = AUTO_CLASSES[name].from_pretrained(tmp_path / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "model").iterdir())
    measured = measure(tmp_path / "model", data)
    assert measured == record["held_out"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_recipes")
def test_the_seed_decides_the_weights(tmp_path: Path, few_images: Images):
    def weights(folder: str, seed: int) -> bytes:
        training.train("tiny-vit", tmp_path / folder, steps=2, seed=seed, data=few_images)
        return (tmp_path / folder / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1) != weights("c", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("small_recipes")
def test_training_learns(tmp_path: Path, few_texts: Texts):
    """Twenty words in random order: their frequencies are soon known, and nothing more can be."""
    record = training.train("tiny-opt", tmp_path / "model", steps=25, data=few_texts)
    assert record["held_out"]["model"]["cross_entropy"] < math.log(2048) / 2


@pytest.mark.slow
@pytest.mark.usefixtures("small_recipes")
@pytest.mark.parametrize("moment", ["while training", "while writing"])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_interruption_leaves_no_half_written_folder(
    moment: str, earlier: bool, tmp_path: Path, few_images: Images, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "model"
    if earlier:
        training.train("tiny-vit", out, steps=1, data=few_images)
    content = {path.name: path.read_bytes() for path in out.iterdir()} if earlier else None

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "augment" if moment == "while training" else "measure", interrupt)
    monkeypatch.setattr(corpora, "images", lambda: few_images)
    assert training.main(["tiny-vit", "--out", str(out), "--steps", "2"]) == 130
    left = {path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else None
    assert left == content
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if earlier else [])


@pytest.mark.slow
@pytest.mark.usefixtures("small_recipes")
def test_an_earlier_model_is_replaced_and_a_foreign_folder_refused(tmp_path: Path, few_images: Images):
    training.train("tiny-vit", tmp_path / "model", steps=1, data=few_images)
    again = training.train("tiny-vit", tmp_path / "model", steps=2, data=few_images)
    assert json.loads((tmp_path / "model" / "training.json").read_text()) == again
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work")
    with pytest.raises(ModelError, match="give --out a new folder"):
        training.train("tiny-vit", foreign, steps=1, data=few_images)
    assert (foreign / "chapter.txt").read_text() == "years of work"


@pytest.mark.usefixtures("small_recipes")
def test_errors_of_the_command_line_are_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert training.main(["tiny-opd", "--out", str(tmp_path / "x")]) == 2
    assert "Did you mean 'tiny-opt'" in " ".join(capsys.readouterr().err.split())
    assert training.main(["tiny-opt", "--out", str(tmp_path / "x"), "--steps", "0"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("small_recipes")
def test_a_log_gets_lines_instead_of_a_bar(tmp_path: Path, few_images: Images):
    with (tmp_path / "log").open("w") as log:
        training.train("tiny-vit", tmp_path / "model", steps=3, data=few_images, console=Console(file=log))
    assert "step 3 of 3: loss" in (tmp_path / "log").read_text()


# --- what is learned from ---------------------------------------------------------------------------------


def test_repeated_rows_ask_only_for_what_can_be_copied():
    ids, labels = repeated_rows(50, 64, START, torch.Generator().manual_seed(0))
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        assert row[0] == START
        period = next(p for p in range(8, 64) if row[1 + p :] == row[1 : 64 - p])
        assert label == [IGNORED] * (period + 2) + row[period + 2 :]
        assert min(row[1:]) >= len(SPECIAL_TOKENS)


def test_causal_rows_hold_documents_and_the_asked_share_of_repeats():
    documents = [torch.arange(100, 160), torch.arange(200, 300)]
    ids, labels = causal_batch(documents, END, 8, 64, 0.25, torch.Generator().manual_seed(3))
    assert ids.shape == labels.shape == (8, 64)
    assert (ids[:, 0] == END).all()
    for row, label in zip(ids[:6].tolist(), labels[:6].tolist(), strict=True):
        assert all(b == a + 1 or END in (a, b) for a, b in itertools.pairwise(row))
        assert label == [IGNORED if token == END else token for token in row]
    assert (labels[6:] == IGNORED).any(dim=1).all()


def test_rows_of_paragraphs_hide_the_first_one_and_ask_for_the_second():
    """Of eight rows, two hold the second paragraph alone, four hide the first one from it, two are plain."""
    documents = [torch.tensor([10, 11, 9, 20, 21]), torch.tensor([12, 9, 22, 23, 24, 25])]
    ids, mask, labels = paragraph_batch(documents, 9, 8, 0.5, 0.25, torch.Generator().manual_seed(0))
    seen = mask[:, 0] == 0
    for row in range(8):
        real = [token for token in ids[row].tolist() if token != PAD]
        border = real.index(9)
        assert real[0] == START
        assert ids[row, 1:border].tolist() == ([] if row < 2 else [10, 11] if border == 3 else [12])
        asked = real[border + 1 :] if row < 6 else real[1:]
        assert [token for token in labels[row].tolist() if token != IGNORED] == asked
        plain = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        hidden = plain.clone()
        hidden[border + 1 :, 1:border] = False
        assert torch.equal(seen[row], hidden if 2 <= row < 6 else plain)


def test_a_hidden_paragraph_cannot_be_told_from_what_it_hides_but_by_the_blank_line():
    """One layer, so that the blank line carries nothing but itself: the first paragraph makes no difference."""
    torch.manual_seed(0)
    model = build_model(replace(RECIPES["tiny-llama"], layers=1, width=32)).eval()
    first, second = torch.tensor([[0, 10, 11, 9, 20, 21]]), torch.tensor([[0, 30, 31, 9, 20, 21]])
    with torch.no_grad():
        ends = [
            model(input_ids=ids, attention_mask=additive(visible(ids[0], 9)[None])).logits[0, 4:]
            for ids in (first, second)
        ]
        assert not torch.allclose(*(model(input_ids=ids).logits[0, 4:] for ids in (first, second)), atol=1e-4)
    torch.testing.assert_close(*ends)


def test_packed_masked_rows_are_framed():
    rows = packed_rows([torch.arange(100, 130)], START, END, 4, 50, torch.Generator().manual_seed(0))
    for row in rows.tolist():
        assert row[0] == START
        assert all((a == END) == (b == START) for a, b in itertools.pairwise(row))


def test_corruption_is_fifteen_percent_split_eighty_ten_ten():
    ids = torch.full((200, 500), 700)
    ids[:, ::10] = torch.tensor([START, END, PAD, START, END]).repeat(10)
    corrupted, labels = corrupt(ids, torch.Generator().manual_seed(0))
    chosen = labels != IGNORED
    assert (ids[chosen] == 700).all()
    assert torch.equal(corrupted[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    assert chosen.sum() / (ids == 700).sum() == pytest.approx(0.15, abs=0.005)
    shown = corrupted[chosen]
    assert (shown == MASK).float().mean() == pytest.approx(0.8, abs=0.01)
    assert (shown == 700).float().mean() == pytest.approx(0.1, abs=0.01)
    assert shown.min() >= MASK


def test_augmented_images_stay_black_around_and_near_their_place():
    images = torch.full((64, 3, 32, 32), -1.0)
    images[:, :, 12:20, 12:20] = 1.0
    moved = augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved[:, :, 0].max() == moved[:, :, :, 0].max() == pytest.approx(-1.0)
    assert not torch.allclose(moved[0], moved[1], atol=0.1)
    light = (moved[:, 0] + 1).sum(dim=(1, 2))
    column = ((moved[:, 0] + 1) * torch.arange(32.0)).sum(dim=(1, 2)) / light
    assert (column - 15.5).abs().max() < 6


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 1000))
def test_orthogonalised_updates_keep_directions_and_level_their_sizes(rows: int, columns: int, seed: int):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    levelled = u.T @ orthogonalise(matrix, iterations=12).numpy() @ vh.T
    clear = s / s.max() > 0.05
    assert np.abs(levelled - np.diag(np.diag(levelled))).max() < 1e-6
    assert (np.abs(np.diag(levelled)[clear] - 1) < 0.4).all()


# --- where models start -------------------------------------------------------------------------


def test_first_layer_heads_start_on_the_neighbours():
    model = build_model(RECIPES["tiny-roberta"]).eval()
    model.resize_token_embeddings(256)
    start_from_neighbours(model, [torch.arange(len(SPECIAL_TOKENS), 256)])
    model.get_input_embeddings().weight.data.zero_()  # what positions alone decide
    model.set_attn_implementation("eager")
    with torch.no_grad():
        heads = model(input_ids=torch.full((1, 200), 7), output_attentions=True).attentions[0][0]
    for head, distance in enumerate(NEIGHBOURS):
        assert (heads[head, 5:190].argmax(-1) - torch.arange(5, 190) == distance).all()
        assert heads[head, 5:190].max(-1).values.mean() > 0.5


def test_heads_that_start_as_copies_hand_on_the_mean_of_what_they_see():
    model = build_model(replace(RECIPES["tiny-llama"], layers=2, width=32))
    start_from_copies(model, size=0.5)
    attention = model.model.layers[1].self_attn
    torch.nn.init.zeros_(attention.q_proj.weight)  # so that every position looks everywhere alike
    seen = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    angles = torch.ones(1, 5, 8), torch.zeros(1, 5, 8)
    with torch.no_grad():
        out = attention(seen, position_embeddings=angles, attention_mask=additive(torch.ones(1, 5, 5).tril().bool()))[0]
    means = seen.cumsum(1) / torch.arange(1, 6)[:, None]
    torch.testing.assert_close(out, 0.25 * means)


def test_tokens_in_like_company_start_with_like_embeddings():
    """Words 10–29 each stand between their own two neighbours; 30–49 are their synonyms."""
    generator = np.random.default_rng(0)
    documents = []
    for _ in range(40):
        words = generator.integers(10, 30, size=60)
        synonyms = words + 20 * generator.integers(0, 2, size=60)
        documents.append(torch.tensor(np.stack([words + 50, synonyms, words + 70], axis=1).ravel()))
    embeddings = information_embeddings(documents, 128, 40)
    embeddings[10:50] /= np.linalg.norm(embeddings[10:50], axis=1, keepdims=True)
    alike = embeddings[10:30] @ embeddings[30:50].T
    assert (alike.argmax(1) == np.arange(20)).all()
    assert embeddings[:10] == pytest.approx(0, abs=1e-9)  # never seen


# --- vocabulary -------------------------------------------------------------------------------------------


@given(st.text())
def test_tokens_give_the_text_back(few_vocabulary, text: str):
    assert few_vocabulary.decode(few_vocabulary.encode(text, add_special_tokens=False).ids) == text


@pytest.fixture(scope="module")
def few_vocabulary(few_texts: Texts):
    return learn_vocabulary(few_texts.train)


def test_a_blank_line_is_one_token_where_it_is_asked_for(few_journeys: Texts):
    tokenizer = learn_vocabulary(few_journeys.train, whole_blank_lines=True)
    for text in ("an end.\n\nThe next", "\n\n", "one \n\n two\n\nthree"):
        assert tokenizer.encode(text).tokens.count("ĊĊ") == text.count("\n\n")
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert "ĊĊ" not in learn_vocabulary(few_journeys.train).get_vocab()


@pytest.mark.parametrize(
    ("family", "expected"),
    [("opt", [END, "x"]), ("mistral", [START, "x"]), ("llama", [START, "x"]), ("roberta", [START, "x", END])],
)
def test_each_family_frames_a_text_its_own_way(few_vocabulary, family: str, expected: list):
    tokenizer = frame(few_vocabulary, family, 256)
    x = tokenizer.convert_tokens_to_ids("x")
    assert tokenizer("x").input_ids == [x if item == "x" else item for item in expected]
    assert tokenizer.pad_token_id == PAD == 1
    assert tokenizer.mask_token_id == (MASK if family == "roberta" else None)


# --- counting baselines -----------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(3, 7), min_size=1, max_size=20), min_size=1, max_size=6), st.integers(0, 99))
def test_every_counted_distribution_sums_to_one(documents: list[list[int]], seed: int):
    model = CountModel([np.array([0, *document]) for document in documents], 8, 0)
    contexts = np.random.default_rng(seed).integers(UNSEEN, 8, size=(2, 30))
    for table in (model.following(*contexts), model.between(*contexts)):
        assert (table > 0).all()
        np.testing.assert_allclose(table.sum(1), 1, rtol=1e-9)


def test_the_trigram_knows_what_followed_both_tokens():
    rows = [np.array([0, 3, 4, 5, 6, 4, 7]), np.array([0, 3, 4, 5, 6, 4, 7])]
    model = CountModel(rows, 8, 0)
    assert model.following(np.array([3, 6]), np.array([4, 4])).argmax(1).tolist() == [5, 7]
    assert model.between(np.array([4, 5]), np.array([6, 4])).argmax(1).tolist() == [5, 6]
    score = model.causal(rows)["3-gram"]
    assert score.tokens == 12
    assert score.top1 == 1.0


def test_kneser_ney_matches_a_hand_computed_bigram():
    """Counts 3→4 twice, 3→5 once, 4→3 twice; one pair seen once, two seen twice: discount 1 / (1 + 4)."""
    model = CountModel([np.array([0, 3, 4, 3, 4, 3, 5])], 6, 0)
    # Different left neighbours: of 3: {0, 4}, of 4: {3}, of 5: {3}; a hundredth goes to the uniform.
    lowest = 0.99 * np.array([0, 0, 0, 2, 1, 1]) / 4 + 0.01 / 6
    discount = 2 / (2 + 2 * 2)  # 0→3 and 3→5 once; 3→4 and 4→3 twice
    expected = (np.array([0, 0, 0, 0, 2 - discount, 1 - discount]) + 2 * discount * lowest) / 3
    np.testing.assert_allclose(model.bigram[3], expected, rtol=1e-12)


def test_a_shown_token_counts_as_evidence_in_the_masked_baselines():
    rows = [np.array([0, 3, 4, 2])] * 5
    model = CountModel(rows, 2048, 0)
    hidden = model.masked([(np.array([0, MASK, 4, 2]), np.array([IGNORED, 3, IGNORED, IGNORED]))])
    shown = model.masked([(np.array([0, 3, 4, 2]), np.array([IGNORED, 3, IGNORED, IGNORED]))])
    for kind in ("unigram", "3-gram", "two-sided 3-gram"):
        assert shown[kind].cross_entropy < hidden[kind].cross_entropy


# --- the shipped folders ----------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match="'tiny-mistral'"):
        zoo.folder("mistral")


def test_the_folders_are_small_and_complete():
    paths = [path for name in zoo.NAMES for path in zoo.folder(name).iterdir()]
    assert sum(path.stat().st_size for path in paths) <= 16_000_000
    assert {path.suffix for path in paths} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_shipped_model_has_the_sizes_it_should(name: str):
    config = AutoConfig.from_pretrained(zoo.folder(name))
    assert 4 <= config.num_hidden_layers <= 6
    assert config.num_attention_heads >= 4
    if name == "tiny-vit":
        assert config.id2label == {digit: str(digit) for digit in range(10)}
    else:
        assert AutoTokenizer.from_pretrained(zoo.folder(name)).model_max_length >= 256
    assert (config.model_type, name) != ("mistral", "tiny-mistral") or (
        config.num_key_value_heads < config.num_attention_heads
    )


def test_the_shipped_processor_needs_no_torchvision_and_takes_grey_images():
    processor = AutoImageProcessor.from_pretrained(zoo.folder("tiny-vit"))
    assert type(processor).__name__.endswith("Pil")
    from PIL import Image

    pixels = processor(Image.new("L", (8, 8), 255), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    assert (pixels == 1).all()


@pytest.mark.parametrize("name", zoo.NAMES)
def test_recorded_scores_come_again_and_beat_counting(name: str):
    """On a slice: the recorded figure lies within five standard errors of the slice's."""
    record = json.loads((zoo.folder(name) / "training.json").read_text())
    assert Recipe(**record["recipe"]) == RECIPES[name]
    data = corpora.images() if name == "tiny-vit" else corpora.texts(record["corpus"])
    same_corpus = data.digest == record["corpus_digest"]
    held_out = record["held_out"]
    if isinstance(data, Images):
        measured = measure(zoo.folder(name), Images(data.train[:50], data.evaluate, data.digest))["model"]
        assert held_out["model"]["top1"] >= 0.97
        assert not same_corpus or measured["top1"] == pytest.approx(
            held_out["model"]["top1"], abs=1 / len(data.evaluate)
        )
        return
    slice_of_it = Texts(data.train[:20], data.evaluate[:80], data.digest)
    measured = measure(zoo.folder(name), slice_of_it)["model"]
    error = math.sqrt(0.25 / measured["tokens"])
    # Tokens of one document are alike, so their errors are larger than independent ones.
    assert measured["top1"] == pytest.approx(held_out["model"]["top1"], abs=5 * error + 0.02)
    for kind in set(held_out) - {"model", "induction", "second paragraph"}:
        assert held_out["model"]["top1"] > held_out[kind]["top1"]
        assert held_out["model"]["cross_entropy"] < held_out[kind]["cross_entropy"]


def test_the_blank_line_of_the_shipped_llama_carries_the_plan():
    """What the second paragraph loses without the first, it gets back from what the blank line has gathered."""
    folder = zoo.folder("tiny-llama")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).float()
    rows = [torch.tensor(ids) for ids in tokenizer(list(corpora.texts("journeys").evaluate[:20])).input_ids]
    (blank_line,) = tokenizer("\n\n", add_special_tokens=False).input_ids
    seen, carried, nothing = second_paragraph(model, rows, blank_line).values()
    assert carried == pytest.approx(seen, abs=0.05)
    assert nothing > seen + 0.2


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "reference" / "zoo.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(page: str) -> dict[str, dict[str, str]]:
    """The zoo's page as it says it: model → what → cell, out of both tables."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    by_model = {row[0].strip("`"): dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows if len(row) == 3}
    numbers = [row for row in rows if len(row) == 1 + len(zoo.NAMES)]
    names = [cell.strip("`") for cell in numbers[0]]
    return {name: by_model[name] | {row[0]: row[names.index(name)] for row in numbers} for name in zoo.NAMES}


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_page_tells_the_recorded_figures(name: str, page: str, table: dict[str, dict[str, str]]):
    record, told = zoo.training_record(name), table[name]
    assert f"`{record['corpus_digest']}`" in page
    assert told["data"] == record["corpus"]
    assert told["parameters"] == f"{record['parameters']:,}"
    assert told["steps"] == f"{record['recipe']['steps']:,}"
    assert told["sequences or images per step"] == str(record["recipe"]["batch"])
    assert told["CPU minutes"] == f"{record['cpu_seconds'] / 60:.1f}"
    held_out = record["held_out"]
    assert told["scored tokens or images"] == f"{held_out['model']['tokens']:,}"
    for figure in held_out.get("second paragraph", {}).values():
        assert f"{figure:.3f}" in page
    titles = {"held-out top-1 / CE": "model"} | {
        kind: kind
        for kind in (
            "unigram",
            "3-gram",
            "two-sided 3-gram",
            "commonest digit",
            "logistic regression",
            "nearest neighbour",
        )
    }
    assert set(held_out) <= {*titles.values(), "induction", "second paragraph"}
    for title, kind in titles.items():
        score = held_out.get(kind)
        loss = f" / {score['cross_entropy']:.3f}" if score and "cross_entropy" in score else ""
        assert told[title].strip("*") == (f"{score['top1']:.1%}{loss}" if score else "–")
    copied = held_out.get("induction")
    assert told["induction"] == (f"{copied['second_half']:.1%}" if copied else "–")


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_page_tells_what_the_folder_holds(name: str, table: dict[str, dict[str, str]]):
    config, told = AutoConfig.from_pretrained(zoo.folder(name)), table[name]
    assert told["architecture"].startswith(f"`{config.architectures[0]}`")
    shape = f"{config.num_hidden_layers} × {config.num_attention_heads}, {config.hidden_size}"
    assert told["layers × heads, width"] == shape
    if name == "tiny-vit":
        assert told["context"] == f"{(config.image_size // config.patch_size) ** 2 + 1} positions"
    else:
        tokenizer = AutoTokenizer.from_pretrained(zoo.folder(name))
        assert told["context"] == f"{tokenizer.model_max_length} tokens"
    weights = (zoo.folder(name) / "model.safetensors").stat().st_size
    assert told["weights on disk (fp16)"] == f"{weights / 1e6:.1f} MB"
