"""`task.only` and `task.except_`: the documents of some labels, in the same splits and order."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ablation_lens as al
from ablation_lens.corpora import open_corpus
from ablation_lens.corpora.choice import LabelChoice
from ablation_lens.errors import AblationLensError, CorpusError, MismatchError
from ablation_lens.experiments.scores import Scores
from ablation_lens.tasks.tasks import CausalLM, ImageClassification, task_for
from tests.tiny_tokenizers import word_tokenizer

WORDS = ("the", "cat", "sat", "on", "mat", "dog")


@pytest.fixture(scope="module")
def digits():
    return task_for(al.load_model("tiny-vit"))


def labelled(tmp_path, kinds=("code", "prose", 3), count=60):
    """Sixty texts of words, their kinds in turn."""
    rows = [
        {"text": " ".join(WORDS[(number >> shift) % 6] for shift in range(8)) + f" {number}", "kind": kind}
        for number, kind in zip(range(count), kinds * count, strict=False)
    ]
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def causal(path, **options):
    return CausalLM(corpus=open_corpus(path, **options), tokenizer=word_tokenizer(), max_context=20)


def ids(task, split):
    return [item.id for item in task.batches(split=split).items]


@pytest.mark.parametrize("split", ["train", "collect", "evaluate", "all"])
def test_only_and_except_part_every_split_and_keep_its_order(digits, split):
    whole = digits.batches(split=split)
    threes, others = (each.batches(split=split) for each in (digits.only(label=3), digits.except_(label=3)))
    assert [item.id for item in threes.items] == [item.id for item in whole.items if item.label == 3]
    assert [item.id for item in others.items] == [item.id for item in whole.items if item.label != 3]
    assert threes.size + others.size == whole.size


@pytest.mark.parametrize("split", ["collect", "evaluate"])
def test_labelled_texts_are_parted_likewise(tmp_path, split):
    task = causal(labelled(tmp_path), label_column="kind")
    whole = ids(task, split)
    parts = [ids(task.only(label), split) for label in ("code", "prose", 3)]
    assert sorted(each for part in parts for each in part) == sorted(whole)
    assert [each for each in whole if each not in parts[0]] == ids(task.except_("code"), split)
    assert all(int(each.split(":")[1]) % 3 == 1 for each in parts[0])  # the first of every three lines


def test_the_size_counts_what_is_kept(digits, tmp_path):
    assert digits.only(3).batches(split="collect", images=20).size == 20
    task = causal(labelled(tmp_path), label_column="kind").only("code")
    assert task.batches(split="all", tokens=30).size == 30


def test_a_class_goes_by_id_or_name_and_several_together():
    names = dict(enumerate(("crane, bird", "tench, Tinca tinca", "crane", "2")))
    task = ImageClassification(
        corpus=open_corpus("digits"), image_processor=None, positions=1, n_labels=4, id2label=names
    )
    for label in (1, "tench", "Tinca tinca", np.int64(1), [1], np.array([1]), ("tench", 1)):
        assert task.only(label).corpus.full_name == "digits, only tench"
    assert task.only(["2", 0]).corpus.choice.words == {3: "2", 0: "crane, bird"}  # a class is called 2
    assert task.except_({0, 2}).corpus.full_name == "digits, except crane, bird, crane"


def test_only_of_except_is_one_choice(digits):
    both = digits.only([3, 5]).except_(5)
    assert both.batches() == digits.only(3).batches()
    assert digits.except_(1).except_(2).batches().digest == digits.except_([2, 1]).batches().digest
    assert digits.except_(1).only([1, 2]).corpus.full_name == "digits, only 2"
    with pytest.raises(CorpusError, match="nothing is both 'only 3' and 'except 3'"):
        digits.only(3).except_(3)


CHOICES = st.builds(LabelChoice, st.dictionaries(st.integers(0, 5), st.just("a word"), min_size=1), st.booleans())


@settings(max_examples=200)
@given(CHOICES, CHOICES, CHOICES)
def test_choices_after_each_other_admit_what_each_admits_in_any_order(one, two, three):
    def admitted(*choices):
        try:
            made = choices[0]
            for choice in choices[1:]:
                made = made.narrowed(choice)
        except CorpusError:
            return set()
        return {label for label in (*range(7), None) if made.admits(label)}

    expected = {label for label in (*range(7), None) if all(each.admits(label) for each in (one, two, three))}
    assert admitted(one, two, three) == admitted(three, one, two) == expected


def test_plans_tell_in_words_and_by_digest_what_they_are_of(digits):
    plans = [each.batches() for each in (digits, digits.only(3), digits.except_(3), digits.only(4))]
    assert len({plan.digest for plan in plans}) == len({plan.corpus.digest for plan in plans}) == 4
    assert [plan.corpus.name for plan in plans] == ["digits", "digits, only 3", "digits, except 3", "digits, only 4"]
    assert plans[2].corpus.settings == (*plans[0].corpus.settings, ("except", "3"))
    assert "digits, only 3/evaluate" in repr(plans[1])
    many = digits.only(range(9)).batches().corpus
    assert many.name == "digits, only 0, 1, 2, 3, 4, 5, 6, 7, … (9 labels)"
    assert many.settings[-9:] == tuple(("only", str(digit)) for digit in range(9))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (10, "10 is not a class of this model; give a name, or an id from 0 to 9"),
        (-1, "-1 is not a class"),
        (True, "True is not a class"),
        (None, "None is not a class"),
        (2.5, "2.5 is not a class"),
        ("eight", "'eight' is not one of the model's 10 classes; give one of '0', '1', .*, '9'"),
        ([], "an empty list names no label"),
        ([3, "x"], "'x' is not one of"),
    ],
)
def test_what_is_not_a_class_is_refused_at_once(digits, label, message):
    for chosen in (digits.only, digits.except_):
        with pytest.raises(CorpusError, match=message):
            chosen(label)


@pytest.mark.parametrize("label", ["coed", ["code", "coed"]])
def test_a_misspelt_label_is_refused_though_nothing_else_would_show_it(tmp_path, label):
    task = causal(labelled(tmp_path), label_column="kind")
    for chosen in (task.only(label), task.except_(label), task.only("code").except_("coed")):
        for size in (None, 20):  # also where the documents that are asked for come first
            with pytest.raises(CorpusError, match=r"no document of .* has the label 'coed'; did you mean 'code'"):
                chosen.batches(split="all", tokens=size)


def test_a_label_that_other_splits_have_is_not_misspelt(tmp_path):
    lines = labelled(tmp_path).read_text().splitlines()
    path = tmp_path / "one.jsonl"
    path.write_text("\n".join([lines[0], *(line for line in lines if "prose" in line)]))
    one = causal(path, label_column="kind").only("code")
    counts = []
    for split in ("collect", "evaluate"):
        try:
            counts.append(len(ids(one, split)))
        except CorpusError as error:
            counts.append(str(error))
    assert 1 in counts
    assert any("only code has no documents: 1 fell into other splits" in str(each) for each in counts)


def test_without_labels_the_way_out_is_said(tmp_path):
    path = labelled(tmp_path)
    with pytest.raises(
        CorpusError, match=r"has no labels that documents could be chosen by; give JSON lines.*label_col"
    ):
        causal(path).only("code")
    with pytest.raises(CorpusError, match="stdlib has no labels"):
        task_for(al.load_model("tiny-opt")).except_("code")


@pytest.mark.parametrize("label", [None, ["code", None], b"code", set, ""])
def test_what_is_not_a_label_of_texts_is_refused(tmp_path, label):
    with pytest.raises(AblationLensError, match=r"is not a label of texts|is blank"):
        causal(labelled(tmp_path), label_column="kind").only(label)


def test_a_foreign_label_is_shown_as_characters(tmp_path):
    evil = "\x1b[2J<script>\n" + "x" * 100
    task = causal(labelled(tmp_path, kinds=("code", evil)), label_column="kind")
    name = task.only(evil).batches(split="all").corpus.name
    assert name.endswith("only \\x1b[2J<script>\\n" + "x" * 26 + "…")
    with pytest.raises(CorpusError) as caught:
        task.only("none").batches()
    assert str(caught.value).isprintable()
    with pytest.raises(CorpusError) as caught:
        causal(labelled(tmp_path), label_column="kind").only(evil).batches()
    assert str(caught.value).isprintable()


def test_what_was_collected_on_one_digit_is_not_judged_on_it(digits):
    model = al.load_model("tiny-vit")
    stats = al.collect(model, digits.only(label=3).batches(split="evaluate"), progress=False)
    ablation = stats.ablation(al.whole_heads(stats.shape, ["L0.H0"]), "mean")
    with pytest.raises(MismatchError, match="rows"):
        Scores(model, digits.batches(), statistics=stats)
    assert al.evaluate(model, digits.except_(label=3).batches(), ablation).predictions > 0
    fine = Scores(model, digits.except_(label=3).batches(), statistics=stats)
    assert fine.of(ablation).top1 <= 1
