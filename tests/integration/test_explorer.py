"""What the explorer shows of a loaded model."""

import ablation_lens as al
from ablation_lens.explorer import explore
from ablation_lens.measure.contexts import gather_contexts, striking_neurons
from tests.pages import payload_of


def test_images_are_embedded_once():
    model = al.load_model("tiny-vit")
    plan = al.task_for(model).batches(split="collect", images=6)
    made = explore(model, plan, examples=2, progress=False)
    shown = payload_of(made)["examples"]
    assert len(shown["neurons"]) == 2
    documents = {context["document"] for contexts_ in shown["neurons"].values() for context in contexts_}
    assert set(shown["images"]) == documents
    assert {context["side"] for contexts_ in shown["neurons"].values() for context in contexts_} == {8}
    assert all(image.startswith("data:image/png;base64,") for image in shown["images"].values())


def test_a_part_of_a_plan_shows_its_pictures_and_says_what_was_read():
    model = al.load_model("tiny-vit")
    plan = al.task_for(model).batches(split="collect", images=6, batch_size=2)
    payload = payload_of(explore(model, plan.part(1, 3), examples=1, progress=False))
    (found,) = payload["examples"]["neurons"].values()
    assert {context["document"] for context in found} == set(payload["examples"]["images"])
    assert {int(context["document"]) for context in found} <= {
        number for batch in plan.batches[1:3] for number in batch
    }
    assert ["read", "only batches 1 to 2 of 0 to 2"] in payload["datasets"][0]["provenance"]
    whole = payload_of(explore(model, plan, progress=False))
    assert "read" not in dict(whole["datasets"][0]["provenance"])


def test_a_models_examples_are_those_of_the_examples_function():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=2000)
    collected = al.collect(model, plan, progress=False)
    name = striking_neurons(collected, 1)[0]
    shown = payload_of(explore(model, plan, examples=1, progress=False))["examples"]["neurons"]
    assert list(shown) == [name]
    expected = gather_contexts(model, plan, collected, [name])[name]
    assert [context["value"] for context in shown[name]] == [example.value for example in expected]
    assert ["".join(context["text"]) for context in shown[name]] == [
        model.hf_tokenizer.decode(list(example.tokens)) for example in expected
    ]
