"""Whole texts: a neuron at every token of its examples' documents."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.measure.contexts import gather_contexts
from ablation_lens.measure.forward import capture
from ablation_lens.measure.whole_texts import read_texts
from ablation_lens.sites import parse_neuron


def test_values_are_those_of_the_model_at_every_token_of_padded_batches():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=1500)
    statistics = al.collect(model, plan, progress=False)
    names = ["L0.H1.D2", "L3.H3.D31"]
    found = gather_contexts(model, plan, statistics, names, k=2)
    texts = read_texts(model, plan, found)
    wanted = {(name, example.document) for name, contexts in found.items() for example in contexts}
    assert {(name, text.document) for text in texts for name in text.values} == wanted
    for text in texts:
        item = plan.items[text.document]
        assert text.tokens == item.inputs
        alone = capture(model, al.Batch.causal(torch.tensor([item.inputs])))
        for name, values in text.values.items():
            layer, head, dim = parse_neuron(name)
            assert list(values) == pytest.approx(alone[layer][0, :, head, dim].tolist(), abs=1e-5)
    for name, contexts in found.items():
        for example in contexts:
            (text,) = [text for text in texts if text.document == example.document]
            assert text.values[name][example.position] == pytest.approx(example.value, abs=1e-5)


def test_left_padding_is_not_part_of_a_text():
    model = al.load_model("tiny-opt")
    tokens = torch.tensor([[1, 1, 2, 7, 9], [2, 8, 4, 4, 6]])
    valid = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    batches = [al.Batch.causal(tokens, valid)]
    found = gather_contexts(model, batches, al.collect(model, batches, progress=False), ["L1.H1.D1"], k=2)
    assert [text.tokens for text in read_texts(model, batches, found)] == [(2, 7, 9), (2, 8, 4, 4, 6)]


def test_images_have_no_text():
    model = al.load_model("tiny-vit")
    plan = al.task_for(model).batches(split="collect", images=4)
    found = gather_contexts(model, plan, al.collect(model, plan, progress=False), ["L1.H1.D1"], k=1)
    assert read_texts(model, plan, found) == []
