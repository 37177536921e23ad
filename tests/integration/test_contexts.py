"""Example contexts against a plain search over all values."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.corpora import CorpusWarning
from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.measure.contexts import WINDOW, collected_plan, gather_contexts
from ablation_lens.tasks.padding import PaddingWarning
from ablation_lens.tasks.plans import Batch

NEURON = (2, 1, 7)


@pytest.fixture(scope="module")
def collected():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=4000, batch_size=5)
    return model, plan, al.collect(model, plan, progress=False)


def test_examples_are_the_best_place_of_the_best_documents(collected):
    model, plan, statistics = collected
    found = gather_contexts(model, plan, statistics, [NEURON, "L0.H0.D0"], k=3)
    assert list(found) == ["L2.H1.D7", "L0.H0.D0"]
    values = {}
    for number, item in enumerate(plan.items):
        seen = []
        hook = (al.Site.Z.hook_name(2), lambda z, hook, seen=seen: seen.append(z[0, :, 1, 7]))
        model.run_with_hooks(torch.tensor([item.inputs]), fwd_hooks=[hook])
        values[number] = seen[0].double()
    peak = statistics.center("peak")[NEURON].item()
    measures = {"low": lambda v: v, "peak": lambda v: (v - peak).abs(), "high": lambda v: -v}
    for where, measure in measures.items():
        ranked = sorted((measure(v).min().item(), number) for number, v in values.items())[:3]
        chosen = [example for example in found["L2.H1.D7"] if example.where == where]
        assert len({example.document for example in chosen}) == 3
        for (badness, _), example in zip(ranked, chosen, strict=True):
            at = values[example.document][example.position]
            assert abs(example.value - at.item()) <= 1e-5
            assert abs(measure(at).item() - badness) <= 1e-5


def test_an_example_shows_its_context(collected):
    model, plan, statistics = collected
    for example in gather_contexts(model, plan, statistics, [NEURON])["L2.H1.D7"]:
        item = plan.items[example.document]
        assert example.id == item.id
        assert example.tokens[example.offset] == item.inputs[example.position]
        assert len(example.tokens) <= 2 * WINDOW + 1
        before, here, after = example.text(model.hf_tokenizer)
        assert before + here + after == model.hf_tokenizer.decode(list(example.tokens))


def test_examples_of_a_part_of_a_plan_name_the_plans_documents(collected):
    model, plan, statistics = collected
    found = gather_contexts(model, plan.part(1, 2), statistics, [NEURON])["L2.H1.D7"]
    assert {example.id for example in found} <= {plan.items[number].id for number in plan.batches[1]}
    assert all(
        example.tokens[example.offset] == plan.items[example.document].inputs[example.position] for example in found
    )


def test_documents_that_were_never_counted_give_no_examples():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=12_000)
    part = plan.part(0, 1)
    found = collected_plan(model, al.collect(model, part, progress=False))
    assert (found.plan.digest, found.start, found.stop) == (plan.digest, 0, 1)
    assert collected_plan(model, al.collect(model, plan, progress=False)).digest == plan.digest
    other = al.task_for(model).batches(split="collect", tokens=12_000, batch_size=3)
    # Numbers of batches of another plan say nothing about this one.
    assert collected_plan(model, al.collect(model, other.part(0, 1), progress=False)).digest == plan.digest


def test_documents_are_compared_though_only_some_are_looked_through(collected, tmp_path):
    model, _, _ = collected
    text = tmp_path / "mine.txt"
    paragraphs = [f"A text of some length, and its number is {number}." for number in range(60)]
    text.write_text("\n\n".join(paragraphs))
    statistics = al.collect(model, al.task_for(model, text).batches(split="all"), progress=False)
    with pytest.raises(CorpusError, match=r"over '.*mine\.txt', and what a file names is not opened"):
        collected_plan(model, statistics)
    assert collected_plan(model, statistics, text, most=200).size == 200
    text.write_text("\n\n".join([*paragraphs[:-1], "The last one is another."]))
    with pytest.warns(CorpusWarning, match=r"mine\.txt does not hold the documents"):
        collected_plan(model, statistics, text, most=200)


def test_documents_of_one_label_are_found_again(tmp_path):
    vit = al.load_model("tiny-vit")
    plan = al.task_for(vit).except_([3, 4]).batches(split="collect", images=30)
    assert collected_plan(vit, al.collect(vit, plan, progress=False)).digest == plan.digest
    model, path = al.load_model("tiny-opt"), tmp_path / "rows.jsonl"
    rows = [f'{{"text": "The number {number} is here.", "kind": {number % 3}}}' for number in range(60)]
    path.write_text("\n".join(rows))
    task = al.task_for(model, path, label_column="kind").only(2)
    statistics = al.collect(model, task.batches(split="collect"), progress=False)
    for corpus in (path, task.corpus):
        assert collected_plan(model, statistics, corpus).corpus.name.endswith("rows.jsonl, only 2")
    with pytest.raises(CorpusError, match=r"rows\.jsonl, only 2', and what a file names is not opened"):
        collected_plan(model, statistics)


def test_padding_and_left_out_positions_are_never_examples(collected):
    model, plan, _ = collected
    statistics = al.collect(model, plan, include_bos=False, progress=False)
    for example in gather_contexts(model, plan, statistics, [NEURON], k=50)["L2.H1.D7"]:
        assert 1 <= example.position < plan.items[example.document].length


def test_ones_own_batches_and_images_work(collected):
    model, _, statistics = collected
    tokens = torch.randint(5, 500, (3, 20))
    found = gather_contexts(model, [Batch.causal(tokens), Batch.causal(tokens + 1)], statistics, [NEURON], k=9)[
        "L2.H1.D7"
    ]
    assert {example.document for example in found} == set(range(6))
    assert found[0].id.startswith("row ")
    vit = al.load_model("tiny-vit")
    plan = al.task_for(vit).batches(split="collect", images=6)
    (one,) = gather_contexts(vit, plan, al.collect(vit, plan, progress=False), ["L1.H0.D0"], k=1).values()
    assert [example.tokens for example in one] == [()] * 3
    assert all(0 <= example.position < 65 for example in one)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_prompts_give_the_examples_of_each_alone(collected, side):
    model, _, statistics = collected
    prompts = ["The cat sat on the mat, and then some more was to come.", "Hello", "A dog ran."]
    alone = gather_contexts(model, [model.to_tokens(prompt) for prompt in prompts], statistics, [NEURON])
    with pytest.warns(PaddingWarning):
        padded = gather_contexts(model, [model.to_tokens(prompts, padding_side=side)], statistics, [NEURON])
    for one, other in zip(alone["L2.H1.D7"], padded["L2.H1.D7"], strict=True):
        assert (one.document, one.position, one.tokens, one.offset) == (
            other.document,
            other.position,
            other.tokens,
            other.offset,
        )
        assert abs(one.value - other.value) <= 1e-5


def test_wrong_requests_are_one_clear_error(collected):
    model, plan, statistics = collected
    for neurons, k, message in (
        (["L9.H0.D0"], 1, "does not exist"),
        (["neuron 3"], 1, r"L3\.H5\.D17"),
        ([NEURON], 0, "k=0"),
    ):
        with pytest.raises(MismatchError, match=message):
            gather_contexts(model, plan, statistics, neurons, k)
    with pytest.raises(MismatchError, match="not the same model"):
        gather_contexts(al.load_model("tiny-roberta"), plan, statistics, [NEURON])
