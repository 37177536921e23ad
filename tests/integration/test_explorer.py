"""What the explorer shows of a loaded model."""

import base64
import json
import re
import zlib

import pytest

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.explorer import explore
from ablation_lens.explorer.files import explore_files
from ablation_lens.explorer.view import STRIKING
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


def blob_of(html, name):
    found = re.search(rf'id="{name}">([^<]*)</script>', html)
    return None if found is None else json.loads(zlib.decompress(base64.b64decode(found[1])))


def test_a_model_at_hand_gives_examples_whole_texts_and_output_tokens():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=2000)
    made = explore(model, plan, progress=False)
    shown = payload_of(made)["examples"]["neurons"]
    assert len(shown) == STRIKING
    texts = blob_of(made.html, "whole-texts")
    for name, contexts in shown.items():
        for context in contexts:
            values = texts["values"][name][context["document"]]
            assert values[context["position"]] == pytest.approx(context["value"], rel=1e-3, abs=1e-6)
            assert len(values) == len(texts["documents"][context["document"]])
    words = [texts["vocabulary"][str(token)] for token in texts["documents"][context["document"]]]
    assert "".join(context["text"]) in "".join(words)
    outputs = blob_of(made.html, "output-tokens")
    assert len(outputs["neurons"]) == 512
    assert outputs["vocabulary"][str(outputs["neurons"]["L3.H1.D7"][0][0][0])]
    none = explore(model, plan, examples=0, progress=False)
    assert payload_of(none)["examples"] is None
    assert blob_of(none.html, "whole-texts") is None


def test_statistics_and_their_model_are_explored_as_the_model_is():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=2000)
    statistics = al.collect(model, plan, progress=False)
    assert explore(statistics, plan, model=model, progress=False).html == explore(model, plan, progress=False).html
    with pytest.raises(MismatchError, match="cannot explore"):
        explore(statistics, plan, model=al.load_model("tiny-mistral"), progress=False)
    with pytest.raises(MismatchError, match="two models"):
        explore(model, plan, model=model, progress=False)
    with pytest.raises(MismatchError, match="give the batches"):
        explore(statistics, model=model, examples=3, progress=False)


def test_batches_that_can_be_read_once_are_explored_without_examples():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=1000)
    made = explore(model, iter(plan), progress=False)
    assert payload_of(made)["examples"] is None
    assert blob_of(made.html, "output-tokens") is not None


def test_a_file_of_what_ships_with_the_package_has_examples_by_default(tmp_path):
    model = al.load_model("tiny-opt")
    al.collect(model, al.task_for(model).batches(split="collect", tokens=2000), progress=False).save(tmp_path / "s")
    explore_files(tmp_path / "s", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert '"examples":{"neurons":{"L' in html
    assert blob_of(html, "whole-texts")["documents"]
    explore_files(tmp_path / "s", tmp_path / "page.html", examples=0)
    assert '"examples":null' in (tmp_path / "page.html").read_text()


def test_a_file_that_names_a_model_or_a_path_opens_neither_and_the_page_says_so(tmp_path):
    model = al.load_model("tiny-opt")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(f"text number {number} about something else" for number in range(40)))
    plan = al.task_for(model, texts).batches(split="collect", tokens=100)
    al.collect(model, plan, progress=False).save(tmp_path / "path")
    explore_files(tmp_path / "path", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert '"without":"No examples: ' in html
    assert "what a file names is not opened" in html
    explore_files(tmp_path / "path", tmp_path / "page.html", corpus=str(texts))
    assert '"examples":{"neurons":{"L' in (tmp_path / "page.html").read_text()
