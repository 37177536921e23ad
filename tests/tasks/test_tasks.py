"""Batch plans: fixed, hashed, padded little, scored where they should be."""

import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ablation_lens.corpora import CorpusSizeWarning, open_corpus
from ablation_lens.errors import AblationLensError, CorpusError, MismatchError, ModelError
from ablation_lens.tasks.plans import Batch, cut_batches
from ablation_lens.tasks.tasks import CausalLM, MaskedLM, task_for
from tests.tiny_tokenizers import SPECIALS, WORDS, word_tokenizer

LENGTHS = [1, 2, 3, 5, 8, 13, 21, 34, 4, 4, 4, 9, 40]


@pytest.fixture
def corpus(tmp_path):
    """Thirteen documents of known lengths; the last is longer than the context."""
    lines = [
        " ".join(WORDS[(7 * row + 3 * place + place * place) % len(WORDS)] for place in range(length))
        for row, length in enumerate(LENGTHS)
    ]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines))
    return open_corpus(path, block="line")


def causal(corpus, context=36, **template):
    return CausalLM(corpus=corpus, tokenizer=word_tokenizer(**template), max_context=context)


def masked(corpus, context=36):
    tokenizer = word_tokenizer(after=("</s>",))
    ordinary = tuple(range(len(SPECIALS), len(tokenizer)))
    return MaskedLM(corpus=corpus, tokenizer=tokenizer, max_context=context, ordinary_ids=ordinary)


def test_every_next_token_is_scored_once_and_nothing_else(corpus):
    plan = causal(corpus).batches(split="all", batch_size=4)
    seen = []
    for batch in plan:
        for row, number in enumerate(batch.documents):
            item = plan.items[number]
            length = item.length
            assert batch.inputs[row, :length].tolist() == list(item.tokens)
            assert batch.valid[row].tolist() == [True] * length + [False] * (batch.inputs.shape[1] - length)
            assert batch.scored[row].tolist() == [True] * (length - 1) + [False] * (batch.inputs.shape[1] - length + 1)
            assert batch.labels[row, : length - 1].tolist() == list(item.tokens[1:])
            assert batch.inputs[row, length:].tolist() == [1] * (batch.inputs.shape[1] - length)  # <pad>, on the right
            seen.append(number)
    assert sorted(seen) == list(range(len(plan.items)))
    assert plan.size == sum(min(length + 1, 36) for length in LENGTHS)  # BOS before each; the longest truncated
    assert plan.predictions == plan.size - len(LENGTHS)


def test_special_tokens_follow_the_tokenizer_and_are_marked(corpus):
    plan = causal(corpus, before=("</s>",)).batches(split="all")  # as OPT's: one </s> in front, nothing after
    assert {item.tokens[0] for item in plan.items} == {2}
    assert all(2 not in item.tokens[1:] for item in plan.items)  # no second one
    batch = next(iter(plan))
    assert batch.special.tolist() == [[True] + [False] * (batch.inputs.shape[1] - 1)] * len(batch.documents)


def test_documents_without_a_prediction_are_left_out(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("cat\nthe cat sat\n")
    bare = causal(open_corpus(path, block="line"), before=())
    plan = bare.batches(split="all")
    assert [item.length for item in plan.items] == [3]
    path.write_text("cat\n")
    with pytest.raises(CorpusError, match="long enough to be scored"):
        bare.batches(split="all")


def test_a_size_in_tokens_is_met_exactly(corpus):
    for size in (2, 3, 10, 50, 77):
        plan = causal(corpus).batches(split="all", tokens=size)
        assert size - 1 <= plan.size <= size  # a single token left over could not be scored
        assert plan.corpus.size_obtained == plan.size


def test_asking_for_more_than_there_is_warns_with_the_number_and_records_it(corpus):
    with pytest.warns(CorpusSizeWarning, match=r"amounts to 156 tokens; 1000 were asked for"):
        plan = causal(corpus).batches(split="all", tokens=1000)
    assert (plan.corpus.size_requested, plan.corpus.size_obtained) == (1000, 156)


def test_batches_hold_documents_of_similar_length():
    generator = random.Random(1)
    lengths = [generator.randint(2, 256) for _ in range(300)]
    batches = cut_batches(lengths, 16)
    assert sorted(number for batch in batches for number in batch) == list(range(300))
    padded = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    assert padded / sum(lengths) < 1.06  # in corpus order it is about 1.85
    assert max(lengths) == lengths[batches[0][0]]


def test_fifteen_percent_is_masked_80_10_10_never_at_special_positions(tmp_path):
    generator = random.Random(3)
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(" ".join(generator.choice(WORDS) for _ in range(100)) for _ in range(400)))
    task = masked(open_corpus(path, block="line"), context=102)
    plan = task.batches(split="all")
    fates = {"mask": 0, "kept": 0, "random": 0}
    for item in plan.items:
        assert len(item.scored) == 15
        assert not set(item.scored) & set(item.special)
        assert item.special == (0, 101)
        for place, (before, after) in enumerate(zip(item.tokens, item.inputs, strict=True)):
            if place not in item.scored:
                assert before == after
            else:
                assert after == 4 or after >= len(SPECIALS)  # <mask>, or an ordinary word
                fates["mask" if after == 4 else "kept" if after == before else "random"] += 1
    total = sum(fates.values())
    # a random word is the same word once in 20 times
    expected = {"mask": 0.8, "kept": 0.1 + 0.1 / len(WORDS), "random": 0.1 - 0.1 / len(WORDS)}
    for fate, share in expected.items():
        assert abs(fates[fate] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_masks_belong_to_the_document_and_the_seed(corpus):
    task = masked(corpus)
    one, again, other = (task.batches(split="all", seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.digest == again.digest != other.digest
    few = task.batches(split="all", tokens=one.items[0].length + one.items[1].length, seed=1)
    assert few.items[:2] == one.items[:2]  # independent of how many documents follow
    labels = next(iter(one))
    assert (labels.labels[labels.scored] >= len(SPECIALS)).all()


def test_skip_common_leaves_out_the_corpus_commonest_tokens(tmp_path):
    words = [f"w{index:03d}" for index in range(80)]
    tokenizer = word_tokenizer(before=())
    tokenizer.add_tokens(words)
    generator = random.Random(5)
    weighted = [word for index, word in enumerate(words) for _ in range(90 - index)]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(" ".join(generator.choices(weighted, k=30)) for _ in range(400)))
    task = CausalLM(corpus=open_corpus(path, block="line"), tokenizer=tokenizer, max_context=64)
    counted: dict[int, int] = {}
    for item in task.batches(split="collect").items:
        for token in item.tokens:
            counted[token] = counted.get(token, 0) + 1
    common = set(sorted(counted, key=lambda token: (-counted[token], token))[:50])
    everything, rest = (task.batches(split="evaluate", count=count) for count in ("all", "skip-common"))
    assert everything.digest != rest.digest
    for item, whole in zip(rest.items, everything.items, strict=True):
        assert item.tokens == whole.tokens
        assert item.scored == tuple(place for place in whole.scored if whole.tokens[place + 1] not in common)
    assert 0 < rest.predictions < everything.predictions


def test_special_tokens_take_no_place_among_the_common_ones(tmp_path):
    common, rare = [f"w{index:03d}" for index in range(50)], [f"r{index:03d}" for index in range(50)]
    tokenizer = word_tokenizer(before=("<s>",), after=("</s>",))
    tokenizer.add_tokens([*common, *rare])
    generator = random.Random(5)
    path = tmp_path / "lines.txt"
    lines = [generator.sample(common, 50) + generator.sample(rare, 5) for _ in range(40)]
    path.write_text("\n".join(map(" ".join, lines)))
    task = CausalLM(corpus=open_corpus(path, block="line"), tokenizer=tokenizer, max_context=64)
    for item in task.batches(split="evaluate", count="skip-common").items:
        # Each of the fifty is as common as <s> and </s>, which are skipped beside them.
        assert [item.tokens[place + 1] for place in item.scored] == list(item.tokens[51:56])


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from ablation_lens.corpora import open_corpus
from tests.tasks.test_tasks import causal, masked
corpus = open_corpus({path!r}, block="line")
print(*(task(corpus).batches(split="all", batch_size=4).digest for task in (causal, masked)))
"""


def test_a_stored_digest_of_a_plan_does_not_change(corpus, request):
    """The same on every run, machine, Python hash seed and version of transformer-lens."""
    stored = ["aa58c60758006c1d", "e65a0717561e06e1"]
    assert [task(corpus).batches(split="all", batch_size=4).digest for task in (causal, masked)] == stored
    program = PROGRAM.format(root=str(request.config.rootpath), path=corpus.source.location)
    result = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": "12345", "PATH": ""}, capture_output=True, text=True
    )
    assert result.stdout.split() == stored, result.stderr


def test_impossible_requests_are_one_clear_error(corpus):
    task = causal(corpus)
    for wrong, message in (
        ({"tokens": 1}, "too few"),
        ({"tokens": -5}, "too few"),
        ({"images": 5}, "measured in tokens"),
        ({"count": "some"}, "'skip-common'"),
        ({"split": "test"}, "no split 'test'"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(CorpusError, match=message):
            task.batches(**{"split": "all", **wrong})


def images_task(tmp_path, sizes=((20, 10), (8, 8), (12, 40))):
    import transformers

    for index, size in enumerate(sizes):
        folder = tmp_path / "images" / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * index, 99, 30)).save(folder / f"{index}.png")
    model = SimpleNamespace(
        task="image-classification",
        image_processor=transformers.ViTImageProcessorPil(size={"height": 12, "width": 12}),
        id2label={0: "cat", 1: "dog"},
        cfg=SimpleNamespace(n_ctx=10),
    )
    return task_for(model, str(tmp_path / "images")), model


def test_images_are_planned_with_their_labels_and_197_or_so_positions(tmp_path):
    task, _ = images_task(tmp_path)
    plan = task.batches(split="all", batch_size=2)
    assert (plan.size, plan.predictions, len(plan)) == (3, 3, 2)
    batch = next(iter(plan))
    assert batch.inputs.shape == (2, 3, 12, 12)
    assert batch.valid.shape == (2, 10)
    assert batch.valid.all()
    assert batch.special.sum().item() == 2  # CLS
    assert [plan.items[number].label for number in batch.documents] == batch.labels.tolist()
    assert plan.digest == images_task(tmp_path)[0].batches(split="all", batch_size=2).digest
    args, kwargs = batch.arguments()
    assert args[0] is batch.inputs
    assert kwargs == {}
    with pytest.raises(CorpusError, match="skip-common"):
        task.batches(split="all", count="skip-common")


def test_a_label_the_model_does_not_know_is_refused(tmp_path):
    _, model = images_task(tmp_path)
    model.id2label = {0: "tench", 1: "shark"}
    with pytest.raises(CorpusError):
        task_for(model, str(tmp_path / "images")).batches(split="all")
    with pytest.raises(CorpusError, match="needs a corpus"):
        task_for(model)


def test_task_for_takes_the_papers_context_within_the_models(corpus):
    tokenizer = word_tokenizer()
    model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=2048))
    assert task_for(model, corpus).context == 1000
    assert task_for(model, corpus, context=300).context == 300
    model.cfg.n_ctx = 128
    assert task_for(model, corpus).context == 128
    masked_model = SimpleNamespace(task="masked-lm", tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=4000, d_vocab=99))
    assert task_for(masked_model, corpus).context == 512
    assert task_for(masked_model, corpus).ordinary_ids == tuple(range(5, 5 + len(WORDS)))
    masked_model.cfg.d_vocab = 20  # a token without a row in the embedding must never be put in
    assert task_for(masked_model, corpus).ordinary_ids == tuple(range(5, 20))


def test_models_that_cannot_read_a_corpus_say_so():
    with pytest.raises(ModelError, match=r"Batch\.causal"):
        task_for(SimpleNamespace(tokenizer=None, cfg=SimpleNamespace(n_ctx=8)))
    # The second is somebody's own, hooked without us.
    for model in (SimpleNamespace(cfg=None, image_processor=None), SimpleNamespace(cfg=None)):
        model.task = "image-classification"
        with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
            task_for(model)
    with pytest.raises(ModelError, match="no id2label"):
        task_for(SimpleNamespace(cfg=None, task="image-classification", image_processor=object()))


def test_ones_own_batches_work_without_a_tokenizer():
    tokens = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]])
    batch = Batch.causal(tokens, valid=torch.tensor([[True] * 4, [True, True, False, False]]))
    assert batch.size == 6
    assert batch.labels.tolist() == [[6, 7, 8, 0], [5, 0, 0, 0]]
    assert batch.scored.sum().item() == 4
    _, kwargs = batch.arguments()
    assert kwargs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert Batch.causal(tokens).arguments()[1] == {}
    assert batch.to("cpu").documents == ()


def test_a_malformed_batch_is_refused():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    good = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(MismatchError, match="valid \\[batch pos\\]"):
        Batch(tokens, good[:1], tokens, good)
    with pytest.raises(MismatchError, match="boolean"):
        Batch(tokens, good.long(), tokens, good)


def test_a_plan_says_what_it_is(corpus):
    text = repr(masked(corpus).batches(split="all", tokens=50))
    assert "masked-lm" in text
    assert "50 tokens" in text
    json.dumps(masked(corpus).batches(split="all").corpus.to_dict())


# ---------------------------------------------------------------------- natural mistakes


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda task: task.batches(tokens="100"), "tokens='100'"),
        (lambda task: task.batches(tokens=99.5), "tokens=99.5"),
        (lambda task: task.batches(batch_size="8"), "batch_size='8'"),
        (lambda task: task.batches().part("a"), "start='a'"),
        (lambda task: task.batches()[1000], "no batch 1000"),
        (lambda task: task.batches()[::2], "step of 2"),
    ],
)
def test_a_size_or_place_that_is_none_is_one_sentence(corpus, ask, told):
    with pytest.raises(MismatchError, match=told):
        ask(causal(corpus))


def test_a_size_may_be_written_with_an_exponent(corpus):
    assert causal(corpus).batches(tokens=3e1) == causal(corpus).batches(tokens=30)


@pytest.mark.parametrize(("options", "told"), [({"colum": "x"}, "'column'"), ({"context": 0}, "context=0")])
def test_an_option_of_a_task_that_is_none_is_one_sentence(options, told):
    model = SimpleNamespace(tokenizer=word_tokenizer(), cfg=SimpleNamespace(n_ctx=8, d_vocab=25))
    with pytest.raises(AblationLensError, match=told):
        task_for(model, ["the cat sat"], **options)
