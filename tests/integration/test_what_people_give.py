"""What people hold in their hands is taken, or is one sentence: by name of the wish or the mistake."""

import warnings
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import ablation_lens as al
from ablation_lens.errors import AblationLensError, CorpusError, MismatchError, ModelError
from ablation_lens.tasks.given import TruncationWarning

TEXTS = ["The cat sat on the mat, and then it sat.", "A dog ran home to eat.", "One more text."]


@pytest.fixture(scope="module")
def opt():
    return al.load_model("tiny-opt", device="cpu")


@pytest.fixture(scope="module")
def roberta():
    return al.load_model("tiny-roberta", device="cpu")


@pytest.fixture(scope="module")
def vit():
    return al.load_model("tiny-vit", device="cpu")


@pytest.fixture
def ids():
    return torch.randint(5, 100, (3, 9), generator=torch.Generator().manual_seed(0))


def measured(model, given):
    """Positions collected and predictions scored, of something that can be read twice."""
    return al.collect(model, given, progress=False).provenance.tokens, al.evaluate(model, given).predictions


def test_texts_are_read_with_the_models_own_special_tokens_and_padding(opt):
    alone = [len(opt.hf_tokenizer(text)["input_ids"]) for text in TEXTS]
    assert measured(opt, TEXTS) == (sum(alone), sum(alone) - 3)
    assert measured(opt, TEXTS[0]) == (alone[0], alone[0] - 1)


TEXT_WISHES = {
    "tuple": tuple,
    "numpy array": np.array,
    "Dataset": lambda texts: datasets.Dataset.from_dict({"number": [1, 2, 3], "text": texts}),
    "IterableDataset": lambda texts: datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset(),
    "Dataset with blank rows": lambda texts: datasets.Dataset.from_dict({"text": [texts[0], "", *texts[1:], " "]}),
    "DataLoader": lambda texts: DataLoader(texts, batch_size=2),
    "rows of a Dataset": lambda texts: datasets.Dataset.from_dict({"text": texts, "number": [1, 2, 3]})[:3],
    "dict of the only texts": lambda texts: {"sentence": np.array(texts), "number": [1, 2, 3]},
    "list of dicts": lambda texts: [{"text": text, "title": "x"} for text in texts],
    "DataLoader of a Dataset": lambda texts: DataLoader(
        datasets.Dataset.from_dict({"text": texts, "number": [1, 2, 3]}), batch_size=2
    ),
    "list of arrays": lambda texts: [np.array(texts[:2]), np.array(texts[2:])],
}


@pytest.mark.parametrize("wish", TEXT_WISHES)
def test_texts_in_any_hand_score_alike(opt, wish):
    assert measured(opt, TEXT_WISHES[wish](TEXTS)) == measured(opt, TEXTS)


def test_the_score_of_texts_does_not_depend_on_how_they_were_held(opt):
    scores = [al.evaluate(opt, TEXT_WISHES[wish](TEXTS)) for wish in TEXT_WISHES]
    plain = al.evaluate(opt, TEXTS)
    assert plain.documents == (0, 1, 2)
    for score in scores:
        assert torch.allclose(score.loss, plain.loss, atol=1e-5)


def test_texts_that_are_cut_are_told_once_on_the_users_line(opt):
    for run in (al.collect, al.evaluate):
        with pytest.warns(TruncationWarning, match="2 of 5 texts are longer than the 256 tokens") as told:
            run(opt, [*TEXTS, "cat " * 400, "dog " * 500])
        assert [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize("hold", [lambda texts: DataLoader(texts, batch_size=2), lambda texts: [texts[:1], texts[1:]]])
def test_rows_of_a_score_are_in_the_order_the_texts_were_given_in(opt, hold):
    texts = ["import os", *TEXTS]  # the shortest first: batches begin with the longest
    plain, score = al.evaluate(opt, texts), al.evaluate(opt, hold(texts))
    assert score.documents == plain.documents
    assert torch.allclose(score.loss, plain.loss, atol=1e-5)


def test_documents_of_two_plans_are_not_one_because_of_their_numbers(opt):
    first, second = (al.task_for(opt, texts).every_text() for texts in (TEXTS, ["import os", "return self.name"]))
    score = al.evaluate(opt, [*first, *second])
    assert score.documents == (0, 1, 2, 3, 4)
    apart = torch.cat([al.evaluate(opt, plan).loss for plan in (first, second)])
    assert torch.allclose(score.loss, apart, atol=1e-5)


TOKEN_WISHES = {
    "tensor": lambda ids: ids,
    "Batch": al.Batch.causal,
    "list of Batch": lambda ids: [al.Batch.causal(ids)],
    "list of tensors": lambda ids: list(ids.split(1)),
    "list of rows": list,
    "list of lists": lambda ids: ids.tolist(),
    "int32 array": lambda ids: ids.numpy().astype(np.int32),
    "uint16 memory map": lambda ids: ids.numpy().astype(np.uint16),
    "dict": lambda ids: {"input_ids": ids},
    "dict of lists": lambda ids: {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()},
    "dict with labels": lambda ids: {"input_ids": ids, "labels": ids},
    "list of dicts of rows": lambda ids: [{"input_ids": row, "labels": row} for row in ids],
    "tokenized Dataset": lambda ids: datasets.Dataset.from_dict({"input_ids": ids.tolist()}),
    "tokenized Dataset of tensors": lambda ids: datasets.Dataset.from_dict({"input_ids": ids.tolist()}).with_format(
        "torch"
    ),
    "DataLoader of dicts": lambda ids: DataLoader([{"input_ids": row} for row in ids], batch_size=2),
    "DataLoader of single tensors": lambda ids: DataLoader(TensorDataset(ids), batch_size=2),
}


@pytest.mark.parametrize("wish", TOKEN_WISHES)
def test_token_ids_in_any_hand_score_alike(opt, ids, wish):
    given = TOKEN_WISHES[wish](ids)
    assert measured(opt, given) == (27, 24)
    assert al.evaluate(opt, given).loss.sum() == pytest.approx(float(al.evaluate(opt, ids).loss.sum()), rel=1e-5)


def test_a_single_row_is_taken_as_one_row(opt, ids):
    for row in (ids[0], ids[0].tolist(), {"input_ids": ids[0].tolist(), "labels": ids[0].tolist()}, range(5, 14)):
        assert measured(opt, row) == (9, 8)


def test_an_iterator_is_read_once(opt, ids):
    assert al.collect(opt, iter([ids, ids]), progress=False).provenance.tokens == 54
    assert al.evaluate(opt, (text for text in TEXTS)).documents == (0, 1, 2)
    used = iter([ids])
    al.evaluate(opt, used)
    generator = (rows for rows in [ids])
    al.evaluate(opt, generator)
    for again in (used, generator):
        with pytest.raises(CorpusError, match=r"read .*before"):
            al.evaluate(opt, again)


def test_two_passes_over_an_iterator_are_refused(opt, ids):
    with pytest.raises(MismatchError, match="used up"):
        al.collect(opt, iter([ids]), passes=2, progress=False)


def test_an_explorer_with_examples_keeps_what_an_iterator_gives(opt, ids):
    with_examples = al.explore(opt, iter([ids]), examples=1, progress=False).html
    assert with_examples == al.explore(opt, [ids], examples=1, progress=False).html


def test_an_explorer_takes_texts(opt):
    assert al.explore(opt, TEXTS, examples=1, progress=False).neurons == 512


def test_what_a_tokenizer_returns_is_taken_with_and_without_tensors(opt):
    whole = measured(opt, TEXTS)
    assert measured(opt, opt.hf_tokenizer(TEXTS, padding=True, return_tensors="pt")) == whole
    assert measured(opt, opt.hf_tokenizer(TEXTS)) == whole  # lists of different lengths, with masks of the same
    assert measured(opt, [opt.hf_tokenizer(text) for text in TEXTS]) == whole


def test_causal_labels_are_shifted_here_and_minus_100_is_ignored(opt, ids):
    labels = ids.clone()
    labels[:, :4] = -100  # the prompt; its last token predicts the first answer token
    score = al.evaluate(opt, {"input_ids": ids, "labels": labels})
    reference = opt(ids).log_softmax(-1)[:, 3:-1].gather(-1, ids[:, 4:, None])[..., 0]
    assert score.predictions == 15
    assert torch.allclose(score.loss, -reference.sum(1).double(), atol=1e-4)


def test_masked_labels_stand_at_their_own_positions(roberta, ids):
    labels = torch.full_like(ids, -100)
    labels[:, 4] = 77
    score = al.evaluate(roberta, {"input_ids": ids, "labels": labels})
    reference = roberta(ids).log_softmax(-1)[:, 4, 77]
    assert score.predictions == 3
    assert torch.allclose(score.loss, -reference.double(), atol=1e-4)


def test_texts_for_a_masked_model_are_masked_as_its_task_masks_them(roberta):
    plan = al.task_for(roberta, TEXTS).batches(split="all")
    assert al.evaluate(roberta, TEXTS).cross_entropy == al.evaluate(roberta, plan).cross_entropy


def test_images_have_a_label_each(vit):
    pixels = torch.randn(4, 3, 32, 32)
    whole = al.evaluate(vit, {"pixel_values": pixels, "labels": [1, 2, 3, 4]})
    assert torch.allclose(
        whole.loss,
        torch.nn.functional.cross_entropy(vit(pixels), torch.tensor([1, 2, 3, 4]), reduction="none").double(),
    )
    assert al.evaluate(vit, {"pixel_values": pixels, "labels": np.array([1, 2, 3, -100])}).predictions == 3
    rows = [{"pixel_values": image.numpy(), "label": number} for number, image in enumerate(pixels, 1)]
    assert torch.equal(al.evaluate(vit, rows).loss, whole.loss)
    assert al.collect(vit, pixels, progress=False).provenance.tokens == 4 * 65


def test_padding_may_hold_what_has_no_embedding(opt, ids):
    padded, mask = torch.cat([ids, torch.full((3, 2), -100)], 1), torch.ones(3, 11)
    mask[:, 9:] = 0
    assert measured(opt, {"input_ids": padded, "attention_mask": mask}) == (27, 24)


def test_a_model_without_a_tokenizer_reads_token_ids_and_no_texts(opt, ids):
    bare = SimpleNamespace(cfg=opt.cfg, run_with_hooks=opt.run_with_hooks)
    assert al.collect(bare, ids, progress=False).provenance.tokens == 27
    with pytest.raises(ModelError, match="no tokenizer"):
        al.collect(bare, TEXTS, progress=False)
    with pytest.raises(ModelError, match="give statistics="):  # it has ids already; what lacks is what centers are from
        al.compare_centers(bare, ids, progress=False)


MISTAKES = {
    "a name of a corpus": ("stdlib", r"task_for\(model, 'stdlib'\)"),
    "an address on the hub": ("NeelNanda/pile-10k", r"task_for\(model, 'NeelNanda/pile-10k'\)"),
    "nothing": (None, "None"),
    "a number": (5, "5"),
    "a type": (dict, "a type"),
    "bytes": (b"text", "give texts"),
    "an empty list": ([], "empty list"),
    "blank texts": (["", " "], "blank"),
    "an empty DataLoader": (DataLoader([]), "nothing"),
    "an empty tensor": (torch.zeros(0, 5, dtype=torch.int64), "not empty"),
    "a scalar": (torch.tensor(5), "token ids are"),
    "a set": (set(TEXTS), "no order"),
    "a DataFrame": (pd.DataFrame({"text": TEXTS}), r"list\(frame"),
    "all splits of a data set": (
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}),
        "'train'",
    ),
    "texts among tensors": ([TEXTS[0], torch.tensor([[5, 6]])], "texts alone"),
    "tensors among texts": (iter([torch.tensor([[5, 6]]), TEXTS[0]]), "between batches"),
    "a dict without input_ids": ({"ids": [[5, 6, 7]]}, "without 'input_ids'"),
    "rows of different lengths without a mask": ({"input_ids": [[5, 6, 7], [8]]}, "different lengths"),
    "ids beyond the embedding": (torch.tensor([[5, 99_999]]), "99999"),
    "ids below zero": (torch.tensor([[5, -1]]), "-1"),
    "ids that are not whole": (torch.rand(2, 5), "float32"),
    "a mask instead of ids": (torch.rand(2, 5) > 0.5, "bool"),
    "a row longer than the context": (torch.full((1, 400), 7), "context of 256"),
    "a DataLoader of tuples": (DataLoader(TensorDataset(torch.ones(2, 3), torch.ones(2, 3))), "what is what"),
    "a DataLoader that turned rows into columns": (
        DataLoader([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9, 4]}], batch_size=2),
        "one for each position",
    ),
    "a mask of another shape": ({"input_ids": [[5, 6, 7]], "attention_mask": [[1, 1]]}, "attention_mask"),
    "a mask of other numbers": ({"input_ids": [[5, 6, 7]], "attention_mask": [[1, 1, 7]]}, "0 and 1"),
    "labels of another shape": ({"input_ids": [[5, 6, 7]], "labels": [[5, 6]]}, "labels have the shape"),
    "labels that were shifted already": ({"input_ids": [[5, 6, 7]], "labels": [[6, 7, -100]]}, "moved by one"),
    "labels beyond the vocabulary": ({"input_ids": [[5, 6]], "labels": [[5, 9999]]}, "labels hold 9999"),
    "positions of one's own": ({"input_ids": [[5, 6]], "position_ids": [[3, 4]]}, "position_ids"),
    "pixels for a model of text": (torch.zeros(1, 3, 32, 32), "'input_ids'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(opt, mistake):
    given, told = MISTAKES[mistake]
    with pytest.raises(AblationLensError, match=told) as error:
        al.evaluate(opt, given)
    assert "\n" not in str(error.value)


def test_ids_of_three_axes_are_not_taken_for_images(opt):
    with pytest.raises(MismatchError, match=r"input_ids have the shape \(2, 3, 4\)"):
        al.evaluate(opt, torch.ones(2, 3, 4, dtype=torch.int64))


def test_a_file_in_the_place_of_a_text_is_asked_about(opt, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS))
    for given in (str(path), path):
        with pytest.raises(MismatchError, match=r"al\.task_for\(model, "):
            al.collect(opt, given, progress=False)


def test_a_task_or_corpus_in_the_place_of_its_batches_says_the_call(opt):
    task = al.task_for(opt, TEXTS)
    for given in (task, task.corpus):
        with pytest.raises(MismatchError, match=r"batches\("):
            al.evaluate(opt, given)


def test_arguments_the_wrong_way_round_are_told(opt, ids):
    with pytest.raises(ModelError, match="not a model"):
        al.collect(ids, opt, progress=False)
    with pytest.raises(MismatchError, match="the model comes first"):
        al.evaluate(opt, opt)
    with pytest.raises(ModelError, match="not a model"):
        al.task_for("tiny-opt")


def test_what_a_masked_model_cannot_be_scored_on_can_be_collected(roberta, ids):
    assert al.collect(roberta, ids, progress=False).provenance.tokens == 27
    with pytest.raises(MismatchError, match="give labels"):
        al.evaluate(roberta, ids)


IMAGE_MISTAKES = {
    "images without labels": (torch.zeros(2, 3, 32, 32), "no labels"),
    "images of another size": ({"pixel_values": torch.zeros(2, 3, 28, 28), "labels": [1, 2]}, "28 × 28"),
    "raw bytes": ({"pixel_values": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "labels": [1, 2]}, "image_processor"),
    "a label too few": ({"pixel_values": torch.zeros(2, 3, 32, 32), "labels": [1]}, "one for each"),
    "a class that is not there": ({"pixel_values": torch.zeros(2, 3, 32, 32), "labels": [1, 10]}, "0 to 9"),
    "texts": (TEXTS, "a model of images"),
    "token ids": (torch.tensor([[5, 6]]), "'pixel_values'"),
}


@pytest.mark.parametrize("mistake", IMAGE_MISTAKES)
def test_a_mistake_with_images_is_one_sentence(vit, mistake):
    given, told = IMAGE_MISTAKES[mistake]
    with pytest.raises(AblationLensError, match=told):
        al.evaluate(vit, given)


def test_a_plan_of_another_models_task_is_refused(opt, vit):
    with pytest.raises(MismatchError, match="a model of text"):
        al.evaluate(opt, al.task_for(vit).batches(images=4))
    with pytest.raises(MismatchError, match="a model of images"):
        al.evaluate(vit, al.task_for(opt, TEXTS).batches(split="all"))


# ---------------------------------------------------------------------- corpora of one's own

MANY = [f"Number {number} is one of the numbers that are counted here." for number in range(40)]


@pytest.mark.parametrize("hold", [list, lambda texts: datasets.Dataset.from_dict({"number": range(40), "text": texts})])
def test_a_corpus_of_ones_own_has_disjoint_splits_and_a_digest(opt, hold):
    task = al.task_for(opt, hold(MANY))
    plans = [task.batches(split=split) for split in ("collect", "evaluate")]
    parts = [{item.tokens for item in plan.items} for plan in plans]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert sum(map(len, parts)) == 40
    assert plans[0].corpus.digest != plans[1].corpus.digest
    assert al.task_for(opt, hold(MANY)).batches(split="collect").corpus == plans[0].corpus


def test_which_column_holds_the_texts_can_be_said(opt):
    data = datasets.Dataset.from_dict({"question": MANY, "answer": MANY[::-1]})
    with pytest.raises(CorpusError, match="column=NAME"):
        al.task_for(opt, data)
    assert al.task_for(opt, data, column="answer").batches(split="all").items[0].id == "row 0"


def test_images_of_a_data_set_are_read_with_their_labels(vit):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": list(map(Image.fromarray, images)), "label": range(6)}, features)
    assert al.evaluate(vit, data).predictions == 6
    assert len(al.task_for(vit, data).batches(split="all").items) == 6


def test_images_of_a_data_set_that_are_paths_are_refused(vit, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "one.png")], "label": [1]}, features)
    with pytest.raises(CorpusError, match="give the folder"):
        al.evaluate(vit, data)


@pytest.mark.parametrize(
    ("given", "told"),
    [([], "empty list"), (["a", 5], "holds a int"), (5, "a int"), (pd.DataFrame(), r"list\(frame"), ({}, "a dict")],
)
def test_what_is_no_corpus_is_one_sentence(opt, given, told):
    with pytest.raises(CorpusError, match=told):
        al.task_for(opt, given)


def test_nothing_warns_where_nothing_is_wrong(opt, ids):
    array = ids.numpy()
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(opt, array)
