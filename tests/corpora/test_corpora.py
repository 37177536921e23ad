"""What every corpus promises: splits, order, records, names, errors."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablation_lens import corpora
from ablation_lens.corpora import CorpusSizeWarning, ImageDocument, embedded, open_corpus
from ablation_lens.corpora.documents import Corpus, Source, text_entry
from ablation_lens.errors import CorpusError
from ablation_lens.records import CorpusRecord


def corpus_of(texts: list[str], name: str = "mine") -> Corpus:
    return Corpus(name, Source(name, "text", lambda: (text_entry(text, str(n)) for n, text in enumerate(texts))))


def splits_of(corpus: Corpus) -> dict[str, list[corpora.Document]]:
    found: dict[str, list[corpora.Document]] = {}
    for split in corpus.splits:
        try:
            found[split] = list(corpus.restricted_to(split))
        except CorpusError:
            found[split] = []
    return found


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=30)
)
def test_splits_are_disjoint_exhaustive_and_keep_the_order(texts: list[str]) -> None:
    corpus = corpus_of(texts + texts[:3])
    everything = list(corpus)
    parts = splits_of(corpus)
    assert len(everything) == len(texts) + len(texts[:3]) == sum(map(len, parts.values()))
    place = {document.id: place for place, document in enumerate(everything)}
    for documents in parts.values():
        assert documents == sorted(documents, key=lambda document: place[document.id])
    contents = [{document.text for document in documents} for documents in parts.values()]
    assert contents[0].isdisjoint(contents[1])  # so copies of one text lie on the same side
    assert list(corpus) == everything


@pytest.mark.parametrize("name", ["stdlib", "digits", "stdlib-code", "journeys"])
def test_embedded_splits_have_their_shares(name: str) -> None:
    corpus = open_corpus(name)
    parts = splits_of(corpus)
    assert list(parts) == ["train", "collect", "evaluate"]
    total = sum(map(len, parts.values()))
    assert total == len(list(corpus))
    for split, share in corpus.source.shares.items():
        assert abs(len(parts[split]) / total - share) < 0.04


def test_embedded_corpora_are_those_of_the_embedded_module() -> None:
    stdlib = open_corpus("stdlib")
    assert [document.text for document in stdlib] == embedded.stdlib_documents()
    digits = list(open_corpus("digits"))
    for document, (pixels, digit) in zip(digits, embedded.digits_images(), strict=True):
        assert isinstance(document, ImageDocument)
        assert document.label == digit
        assert document.image.mode == "RGB"
        assert document.image.size == (8, 8)
        assert document.image.getpixel((5, 2)) == (pixels[2, 5],) * 3


def test_code_has_no_docstrings_and_no_comments(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '''"""Module."""\n# why\ndef f(x):\n    """Function."""\nclass C:\n    \'Class.\'\n    y = "kept"\n'''
    )
    assert embedded.code_of(path) == "def f(x):\n    pass\n\nclass C:\n    y = 'kept'"
    path.write_text("def broken(:")
    assert embedded.code_of(path) == ""


def test_an_inverted_digit_lies_in_the_split_of_its_original() -> None:
    for split in ("train", "collect", "evaluate"):
        plain, inverted = (list(open_corpus(name, split=split)) for name in ("digits", "digits-inverted"))
        assert [document.id.split("/")[1] for document in plain] == [one.id.split("/")[1] for one in inverted]
        for one, other in zip(plain, inverted, strict=True):
            assert isinstance(one, ImageDocument)
            assert isinstance(other, ImageDocument)
            assert one.label == other.label
            assert one.image.getpixel((5, 2))[0] + other.image.getpixel((5, 2))[0] == 255


def test_digits_refuse_a_model_of_other_classes() -> None:
    with pytest.raises(CorpusError, match="the model has 1000 labels"):
        open_corpus("digits", id2label={n: f"class {n}" for n in range(1000)})
    swapped = {n: str(9 - n) for n in range(10)}
    document = next(iter(open_corpus("digits", id2label=swapped)))
    assert isinstance(document, ImageDocument)
    assert document.label == 9  # the first image is a nought, which this model calls 9


def test_a_reading_records_what_it_handed_out() -> None:
    corpus = open_corpus("stdlib", split="evaluate")
    reading = iter(corpus)
    first = [next(reading) for _ in range(5)]
    record = reading.record(size_requested=1000, size_obtained=900, unit="tokens")
    assert record.documents == 5
    assert record.digest == embedded.digest(document.text for document in first)
    assert (record.name, record.source, record.split, record.kind) == ("stdlib", "embedded: stdlib", "evaluate", "text")
    assert record.python == ".".join(map(str, sys.version_info[:3]))
    assert CorpusRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    again = iter(corpus)
    assert [next(again) for _ in range(5)] == first
    assert again.record(size_requested=1000, size_obtained=900, unit="tokens") == record
    next(again)
    assert again.digest != record.digest


def record_of(corpus: Corpus, **changes: object) -> CorpusRecord:
    reading = iter(corpus)
    size = len(list(reading))
    record = reading.record(size_requested=size, size_obtained=size, unit="documents")
    return CorpusRecord.from_dict({**record.to_dict(), **changes})


def test_records_differ_when_the_documents_do() -> None:
    record = record_of(corpus_of(["One.", "Two."]))
    assert record.differences(record_of(corpus_of(["One.", "Two."], "elsewhere"))) == []
    assert record.digest != record_of(corpus_of(["Two.", "One."])).digest
    assert record.digest != record_of(corpus_of(["One.T", "wo."])).digest
    other = record_of(corpus_of(["One.", "Two!"]), python="3.99.0")
    differences = record.differences(other)
    assert [line.split(":")[0] for line in differences] == ["digest", "python"]
    assert differences[1] == "python: None against 3.99.0"


def test_a_short_corpus_warns_with_both_sizes() -> None:
    record = record_of(corpus_of(["One.", "Two."]), size_requested=5)
    with pytest.warns(CorpusSizeWarning, match="all of mine amounts to 2 documents; 5 were asked for, so 2 were used"):
        corpora.warn_when_short(record)
    for requested in (None, 2, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            corpora.warn_when_short(record_of(corpus_of(["One.", "Two."]), size_requested=requested))


def test_nothing_is_read_ahead() -> None:
    read: list[int] = []

    def entries():
        for number in range(1000):
            read.append(number)
            yield text_entry(f"Document {number}.", str(number))

    reading = iter(Corpus("endless", Source("endless", "text", entries)))
    assert read == []
    next(reading), next(reading)
    assert read == [0, 1]


def test_an_empty_split_says_where_the_documents_went() -> None:
    corpus = corpus_of(["One."])
    empty = next(split for split, documents in splits_of(corpus).items() if not documents)
    with pytest.raises(CorpusError, match=rf"the {empty} split of mine has no documents: 1 fell into other splits"):
        list(corpus.restricted_to(empty))
    with pytest.raises(CorpusError, match=r"mine has no documents \(2 were empty"):
        list(corpus_of(["", " \n"]))


def test_splits_by_another_name_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"stdlib has no split 'test'; choose train, collect, evaluate, or 'all'"):
        open_corpus("stdlib", split="test")
    with pytest.raises(CorpusError, match=r"mine has no split 'train'; choose collect, evaluate"):
        corpus_of(["One."]).restricted_to("train")


def test_a_mistyped_name_gets_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes.txt").write_text("Boil water.")
    with pytest.raises(CorpusError, match=r"'stdlb' is neither .* did you mean 'stdlib' or 'stdlib-code'\?"):
        open_corpus("stdlb")
    with pytest.raises(CorpusError, match=r"did you mean 'recipes\.txt'\?"):
        open_corpus("recipe.txt")
    with pytest.raises(CorpusError, match=rf"did you mean '{tmp_path}/recipes\.txt'\?"):
        open_corpus(tmp_path / "recipies.txt")
    with pytest.raises(CorpusError, match=r"owner/name.*named corpora are stdlib, digits, pile"):
        open_corpus("nothing-like-it")


def test_a_named_corpus_wins_over_a_path_unless_it_is_written_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stdlib").mkdir()
    (tmp_path / "stdlib" / "a.txt").write_text("Mine.")
    assert open_corpus("stdlib").source.location == "embedded: stdlib"
    for path in ("./stdlib", Path("stdlib")):
        assert [document.text for document in open_corpus(path)] == ["Mine."]


def test_named_corpora_say_what_they_hold_before_anything_is_fetched() -> None:
    for name, kind in (("pile", "image"), ("imagenet-1k", "text"), ("digits", "text"), ("stdlib", "image")):
        with pytest.raises(CorpusError, match=rf"{name} holds .*, expected"):
            open_corpus(name, kind=kind)
    assert list(corpora.describe()) == list(corpora.names())


SCRIPT = """
import json, sys
from ablation_lens.corpora import open_corpus
reading = iter(open_corpus(sys.argv[1], split="collect"))
ids = [document.id for document in reading]
print(json.dumps([ids, reading.digest, sorted({"torch", "datasets", "sklearn", "transformers"} & set(sys.modules))]))
"""


def test_order_and_splits_do_not_depend_on_the_process(tmp_path: Path) -> None:
    # Two folders of the same files, made in opposite orders, read under different hash seeds and locales.
    names = [f"{folder}/{number}.txt" for folder in ("b", "a", "ä") for number in range(12)]
    results = []
    for seed, order, utf8 in (("1", names, "0"), ("2", names[::-1], "1")):
        root = tmp_path / seed
        for name in order:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"The text of {name}.")
        locale = {"LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}
        environment = {**os.environ, **locale, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT, str(root)]
        results.append(json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout))
    assert results[0] == results[1]
    ids, _, heavy = results[0]
    assert 5 < len(ids) < 31
    assert ids == sorted(ids, key=str.encode)
    assert heavy == []  # texts need no heavy package
