"""Metrics: one number and one weight per row, the same by every way, and equal to NumPy."""

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.measure import metrics
from ablation_lens.tasks.plans import Batch

TOKENS = torch.tensor([[2, 7, 9, 11], [2, 8, 4, 1]])
VALID = torch.tensor([[True, True, True, True], [True, True, True, False]])
ANSWERS, WRONG = [[5], [6, 9]], [[7, 8], [4]]


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def ablation(model):
    shape = al.Site.Z.shape(model.cfg)
    return al.Ablation(al.random_neurons(shape, 0.5, seed=1), torch.full(shape, 0.3))


@pytest.fixture
def prompts():
    return Batch.prompts(TOKENS, ANSWERS, WRONG, VALID)


def last_logits(model, ablation=None):
    """Logits in float64 after the last real token of each prompt, each run alone."""
    rows = []
    for tokens, valid in zip(TOKENS, VALID, strict=True):
        hooks = [] if ablation is None else ablation.hooks()
        rows.append(model.run_with_hooks(tokens[valid][None], fwd_hooks=hooks)[0, -1].double().numpy())
    return np.stack(rows)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def by_hand(name, logits, clean):
    p, q = softmax(clean), softmax(logits)
    found = {
        "cross_entropy": [-np.log(q[row, ANSWERS[row][0]]) for row in (0, 1)],
        "top1": [float(logits[row].argmax() == ANSWERS[row][0]) for row in (0, 1)],
        "top10": [float((logits[row] > logits[row, ANSWERS[row][0]]).sum() < 10) for row in (0, 1)],
        "probability": [q[row, ANSWERS[row]].sum() for row in (0, 1)],
        "probability_difference": [q[row, ANSWERS[row]].sum() - q[row, WRONG[row]].sum() for row in (0, 1)],
        "logit_difference": [logits[row, ANSWERS[row]].mean() - logits[row, WRONG[row]].mean() for row in (0, 1)],
        "rank": [1 + (logits[row] > logits[row, ANSWERS[row]].max()).sum() for row in (0, 1)],
        "kl": [(p[row] * np.log(p[row] / q[row])).sum() for row in (0, 1)],
    }
    return np.array(found[name], dtype=float)


@pytest.mark.parametrize("name", sorted(metrics.BUILT_IN))
def test_a_metric_equals_numpy_prompt_by_prompt(name, model, ablation, prompts):
    score = al.evaluate(model, [prompts], ablation, metrics=[name])
    expected = by_hand(name, last_logits(model, ablation), last_logits(model))
    assert np.abs(score.rows(name) - expected).max() <= 2e-5 * max(1.0, np.abs(expected).max())
    assert score[name] == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.parametrize("name", sorted(metrics.BUILT_IN))
def test_a_metric_that_is_called_gives_the_same_as_evaluate(name, model, ablation, prompts):
    arguments = prompts.arguments()
    logits = model.run_with_hooks(*arguments[0], fwd_hooks=ablation.hooks(), **arguments[1])
    rows = metrics.BUILT_IN[name](logits, prompts, clean=model(*arguments[0], **arguments[1]))
    score = al.evaluate(model, [prompts], ablation, metrics=[name])
    assert np.abs(score.rows(name) - rows.double().numpy()).max() <= 1e-4


def test_top10_counts_those_that_are_likelier_ties_and_all():
    """Against a stable sort in NumPy, in which the label comes before what is as likely."""
    generator = np.random.default_rng(0)
    logits = generator.integers(0, 6, (500, 30)).astype(np.float32)  # a fifth of all classes is as likely
    labels = generator.integers(0, 30, 500)
    expected = []
    for row, label in zip(logits, labels, strict=True):
        order = sorted(range(30), key=lambda each, row=row, label=label: (-row[each], each != label))
        expected.append(float(order.index(label) < 10))
    assert 0.1 < np.mean(expected) < 0.9
    batch = Batch.prompts(torch.zeros(500, 1, dtype=torch.long), labels.tolist())
    found = metrics.top10(torch.from_numpy(logits)[:, None], batch)
    assert found.tolist() == expected == (metrics.rank(torch.from_numpy(logits)[:, None], batch) <= 10).tolist()


def test_top10_of_ten_classes_is_always_one():
    vit = al.load_model("tiny-vit")
    plan = al.task_for(vit).batches(images=20)
    assert al.evaluate(vit, plan, metrics="top10")["top10"] == 1


def test_the_cross_entropy_by_name_is_the_score_s_own(model, prompts):
    plan = al.task_for(model).batches(tokens=400)
    for batches in (plan, [prompts]):
        score = al.evaluate(model, batches, metrics=["cross_entropy", "top1"])
        assert (score["cross_entropy"], score["top1"]) == (score.cross_entropy, score.top1)
        assert score.metrics == ("top1", "cross_entropy")


def test_further_metrics_change_no_bit_of_the_first_two(model, prompts):
    def loudest(logits, batch):
        return logits.amax((1, 2))

    plain = al.evaluate(model, [prompts])
    score = al.evaluate(model, [prompts], metrics={"loudest": loudest, "kl": "kl"})
    assert torch.equal(score.loss, plain.loss)
    assert torch.equal(score.correct, plain.correct)
    assert score.metrics == ("top1", "cross_entropy", "loudest", "kl")


def test_kl_of_no_ablation_is_zero(model, prompts):
    assert al.evaluate(model, [prompts], metrics="kl")["kl"] == 0


def test_a_function_of_one_s_own_sees_the_layout_it_gave(model):
    """With padding on the left, as TransformerLens gives it, −1 is the last token of every prompt."""
    left = torch.tensor([[2, 7, 9, 11], [1, 2, 8, 4]])
    valid = torch.tensor([[True, True, True, True], [False, True, True, True]])
    batch = Batch.prompts(left, ANSWERS, WRONG, valid)

    def fifth(logits, batch):
        return logits[:, -1, 5]

    score = al.evaluate(model, [batch], metrics=fifth)
    assert np.abs(score.rows("fifth") - last_logits(model)[:, 5]).max() <= 1e-4


def test_a_function_may_give_weights(model, prompts):
    def weighed(logits, batch):
        return torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0])

    assert al.evaluate(model, [prompts], metrics=weighed)["weighed"] == (3 * 1 + 4) / 4


@pytest.mark.parametrize(
    "function",
    [lambda logits, batch: logits.mean(), lambda logits, batch: 0.5, lambda logits, batch: logits[:1, -1, 0], 7],
    ids=["a mean over the batch", "a Python number", "a row too few", "no function"],
)
def test_a_function_that_does_not_give_a_number_per_row(function, model, prompts):
    with pytest.raises(MismatchError, match=r"per row|function of"):
        al.evaluate(model, [prompts], metrics={"mine": function})


def test_a_misspelt_metric_is_told_the_nearest(model, prompts):
    with pytest.raises(al.AblationLensError, match="logit_difference"):
        al.evaluate(model, [prompts], metrics=["logit_diference"])


def test_a_difference_to_wrong_answers_needs_wrong_answers(model):
    with pytest.raises(MismatchError, match=r"Batch\.prompts"):
        al.evaluate(model, [Batch.prompts(TOKENS, [5, 6], valid=VALID)], metrics=["logit_difference"])


def test_a_metric_that_is_not_finite_is_named(model, prompts):
    with pytest.raises(NonFiniteError, match="mine"):
        al.evaluate(model, [prompts], metrics={"mine": lambda logits, batch: torch.tensor([torch.nan, 1.0])})


def test_memory_that_runs_out_changes_nothing(model, ablation, prompts):
    runs = 0

    def fails_for_two(value, hook):
        nonlocal runs
        runs += 1
        if len(value) > 1:
            raise torch.OutOfMemoryError

    class Hooks:
        def hooks(self):
            return [*ablation.hooks(), ("blocks.0.hook_resid_pre", fails_for_two)]

    names = ["kl", "logit_difference", "rank"]
    whole, split = (al.evaluate(model, [prompts], each, metrics=names) for each in (ablation, Hooks()))
    assert split.splits == 1
    for name in names:
        assert np.abs(whole.rows(name) - split.rows(name)).max() <= 1e-5


def test_intervals_are_paired(model, ablation):
    plan = al.task_for(model).batches(tokens=2000)
    clean, ablated = (al.evaluate(model, plan, each, metrics=["kl"]) for each in (None, ablation))
    alone, paired = ablated.interval("cross_entropy"), ablated.interval("cross_entropy", without=clean)
    assert alone.difference == pytest.approx(ablated.cross_entropy)
    assert paired.difference == pytest.approx(ablated.cross_entropy - clean.cross_entropy)
    assert paired.high - paired.low < alone.high - alone.low
    with pytest.raises(MismatchError, match="different documents"):
        ablated.interval("kl", without=al.evaluate(model, al.task_for(model).batches(tokens=400), metrics=["kl"]))


def test_an_image_model_has_them_too():
    model = al.load_model("tiny-vit")
    plan = al.task_for(model).batches(images=16)
    score = al.evaluate(model, plan, metrics=["probability", "rank", "kl"])
    assert score["probability"] == pytest.approx(np.exp(-score.rows("cross_entropy")).mean(), rel=1e-5)
    assert (score["rank"] == 1) == (score.top1 == 1)
    assert score["kl"] == 0


class Scaled:
    """Hooks that are no ablation: they scale what one point holds."""

    def __init__(self, name):
        self.name = name

    def hooks(self):
        return [(self.name, lambda value, hook: value * 0.3)]


# What transformer-lens 4 says of the first.
@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale/hook_normalized")
@pytest.mark.parametrize("name", ["ln_final.hook_normalized", "blocks.2.hook_resid_post", "hook_embed"])
def test_hooks_of_one_s_own_are_obeyed_wherever_they_are(name, model, prompts):
    arguments = prompts.arguments()
    logits = model.run_with_hooks(*arguments[0], fwd_hooks=Scaled(name).hooks(), **arguments[1])
    score = al.evaluate(model, [prompts], Scaled(name), metrics=["logit_difference"])
    expected = metrics.logit_difference(logits, prompts).double().numpy()
    assert np.abs(score.rows("logit_difference") - expected).max() <= 1e-4


def test_hooks_of_one_s_own_are_refused_where_their_columns_are_others(model):
    batch = Batch.prompts(torch.tensor([[2, 7, 9], [1, 2, 8]]), [5, 6], valid=torch.tensor([[1, 1, 1], [0, 1, 1]]) > 0)
    with pytest.raises(MismatchError, match="pad on the right"):
        al.evaluate(model, [batch], Scaled("blocks.1.attn.hook_z"))


def test_kl_of_a_model_that_is_hooked_already_says_so(model, ablation, prompts):
    with ablation.applied_to(model), pytest.warns(UserWarning, match="hooks are on this model"):
        al.evaluate(model, [prompts], ablation, metrics=["kl"])


def test_a_metric_of_one_s_own_may_compare_with_the_clean_logits(model, ablation, prompts):
    moved = metrics.Metric(lambda logits, batch, clean: (logits - clean).abs().amax((1, 2)), clean=True, name="moved")
    assert al.evaluate(model, [prompts], ablation, metrics=moved)["moved"] > 0
    assert al.evaluate(model, [prompts], metrics=moved)["moved"] == 0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda logits: logits[:, 0, 0], "function\\(logits, batch\\)"),
        (lambda logits, batch: (torch.ones(2), torch.tensor([1.0, -1.0])), "weight"),
        (metrics.Metric(lambda predictions: predictions.logits.mean(), whole=False), "for each"),
    ],
)
def test_a_metric_that_is_not_one_is_told(function, said, model, prompts):
    with pytest.raises(MismatchError, match=said):
        al.evaluate(model, [prompts], metrics={"mine": function})


def test_an_error_in_a_metric_names_it(model, prompts):
    def broken(logits, batch):
        return logits[:, 99]

    with pytest.raises(IndexError) as raised:
        al.evaluate(model, [prompts], metrics=broken)
    assert "the metric broken" in raised.value.__notes__[0]


def test_an_edited_threshold_is_another_metric(model):
    """Accuracy-like metrics give 0 for nearly all logits: what they do tells them apart."""
    batch = Batch.causal(TOKENS)

    def above(limit):
        return metrics.Metric(lambda logits, batch: (logits[:, 0].softmax(-1).amax(-1) > limit).float())

    one, same, other = (metrics.identity_of(above(limit), batch, 1000) for limit in (0.9, 0.9, 0.02))
    assert one == same
    assert one != other


def test_one_document_has_no_interval(model):
    score = al.evaluate(model, [Batch.causal(TOKENS[:1])])
    interval = score.interval("cross_entropy")
    assert np.isnan(interval.low)
    assert not interval.excludes_zero
