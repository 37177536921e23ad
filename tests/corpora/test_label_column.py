"""Texts with a label: which column holds it, which cells are labels, and what is refused."""

import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from ablation_lens.corpora import Corpus, TextDocument, open_corpus, own_corpus
from ablation_lens.errors import CorpusError


def rows_file(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def labels(corpus: Corpus) -> list[str | None]:
    return [document.label for document in corpus if isinstance(document, TextDocument)]


def test_a_cell_of_text_number_or_truth_value_is_a_label(tmp_path: Path) -> None:
    cells = ["code", "3", 3, 3.0, 2.5, -1, True, False, " padded "]
    path = rows_file(tmp_path, *({"text": f"text {number}", "kind": cell} for number, cell in enumerate(cells)))
    assert labels(open_corpus(path, label_column="kind")) == [
        *("code", "3", "3", "3", "2.5", "-1", "true", "false", " padded "),
    ]
    assert labels(open_corpus(path)) == [None] * len(cells)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "row rows.jsonl:2 in .*rows.jsonl is missing, expected a text, a number or a truth value"),
        (["code"], "rows.jsonl:2 in .* is a list, expected a text"),
        ({"a": 1}, "is a dict, expected"),
        (float("nan"), "is nan, expected a text, a number"),
        (float("-inf"), "is -inf, expected"),
        (" ", "is blank"),
        ("x" * 1001, "has 1,001 characters, and a label has 1,000 at most"),
        (10**400, "a number of 1,329 bits"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_a_row_without_a_label_is_named(tmp_path: Path, cell: object, message: str) -> None:
    path = rows_file(tmp_path, {"text": "one", "kind": "code"}, {"text": "two", "kind": cell})
    with pytest.raises(CorpusError, match=message):
        list(open_corpus(path, label_column="kind"))


def test_a_row_whose_field_is_not_there_is_named_unless_it_is_blank(tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"text": "one", "kind": "code"}, {"kind": None}, {"text": " "}, {"text": "two"})
    with pytest.raises(CorpusError, match=r"the label 'kind' of row rows\.jsonl:4 in .* is missing"):
        list(open_corpus(path, label_column="kind"))


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"text": "one", "kind": "code"})
    with pytest.raises(CorpusError, match=r"no column 'knid'; its columns are 'text' \(text\), 'kind' \(text\)"):
        open_corpus(path, label_column="knid")
    plain = tmp_path / "plain.txt"
    plain.write_text("A text.")
    for opened in (lambda: open_corpus(plain, label_column="kind"), lambda: own_corpus(["a"], label_column="kind")):
        with pytest.raises(CorpusError, match="label_column='kind' does not apply"):
            opened()


def test_parquet_and_data_sets_have_labels_too(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "kind": datasets.Value("string"),
            "number": datasets.Value("float64"),  # as pandas makes of whole numbers where one is missing
            "flag": datasets.Value("bool"),
            "class": datasets.ClassLabel(names=["code", "prose"]),
        }
    )
    columns = {
        "text": ["one", "two", "three"],
        "kind": ["a", "b", "a"],
        "number": [1.0, 2.0, 10.0],
        "flag": [True, False, True],
        "class": [1, 0, 1],
    }
    held = datasets.Dataset.from_dict(columns, features=features)
    held.to_parquet(tmp_path / "rows.parquet")
    expected = {
        "kind": ["a", "b", "a"],
        "number": ["1", "2", "10"],
        "flag": ["true", "false", "true"],
        "class": ["prose", "code", "prose"],
    }
    for column, words in expected.items():
        assert labels(open_corpus(tmp_path / "rows.parquet", label_column=column)) == words
        assert labels(own_corpus(held, label_column=column)) == words
        assert labels(own_corpus(held.to_iterable_dataset(), label_column=column)) == words
    unlabelled = datasets.Dataset.from_dict(columns | {"class": [1, -1, 0]}, features=features)
    with pytest.raises(CorpusError, match=r"'class' of row row 1 in .* is missing"):
        list(own_corpus(unlabelled, label_column="class"))


def test_labels_move_no_text_into_another_split(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "kind": str(number % 3)} for number in range(30)]
    for split in ("collect", "evaluate"):
        path = rows_file(tmp_path, *rows)
        plain, with_labels = (open_corpus(path, split=split, label_column=column) for column in (None, "kind"))
        one, other = iter(plain), iter(with_labels)
        assert [document.id for document in one] == [document.id for document in other]
        assert one.digest == other.digest


def test_a_text_with_two_labels_is_a_document_of_each_in_one_split(tmp_path: Path) -> None:
    path = rows_file(tmp_path, *({"text": text, "kind": kind} for text in ("one", "two") for kind in ("a", "b")))
    corpus = open_corpus(path, label_column="kind")
    found = list(corpus)
    assert [(document.text, document.label) for document in found if isinstance(document, TextDocument)] == [
        *(("one", "a"), ("one", "b"), ("two", "a"), ("two", "b")),
    ]
    for split in corpus.splits:
        try:
            inside = [document.id for document in corpus.restricted_to(split)]
        except CorpusError:
            continue
        assert {f"rows.jsonl:{row}" for row in (1, 2)} <= set(inside) or "rows.jsonl:2" not in inside
        assert len(inside) % 2 == 0


def test_the_label_column_of_images_may_be_called_anything() -> None:
    images = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 90, 200)]
    held = datasets.Dataset.from_dict({"image": images, "animal": ["dog", "cat", "dog"]})
    held = held.cast_column("image", datasets.Image())
    names = {0: "cat", 1: "dog"}
    corpus = own_corpus(held, id2label=names, label_column="animal")
    assert [document.label for document in corpus] == [1, 0, 1]
    with pytest.raises(CorpusError, match="say which it is with label_column=NAME"):
        own_corpus(held, id2label=names)
    with pytest.raises(CorpusError, match="no column 'beast'"):
        own_corpus(held, id2label=names, label_column="beast")
    with pytest.raises(CorpusError, match="needs the model's id2label"):
        own_corpus(held, label_column="animal")
