import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.study.paper import PRESETS
from ablation_lens.study.study import Study

SEEDS = range(10)


def study(**changes):
    return Study(**{"models": ["tiny-vit"], **changes})


def described(cells):
    return [(cell.method and cell.method.label, cell.fraction, cell.seed) for cell in cells]


def test_the_defaults_are_the_papers():
    default = study()
    assert default.fractions == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert default.seeds == (42, 123, 456)
    assert len(default.cells("causal-lm")) == 1 + 9 * 3 * 3 + 3


def test_the_cells_are_the_whole_grid_each_once():
    cells = described(study(methods=["zero", "resample-tokens"], seeds=[1, 2]).cells("causal-lm"))
    partial = [tenth / 10 for tenth in range(1, 10)]
    expected = {(None, 0.0, None), ("zero", 1.0, None)}
    expected |= set(itertools.product(["zero", "resample-tokens"], partial, [1, 2]))
    expected |= {("resample-tokens", 1.0, 1), ("resample-tokens", 1.0, 2)}
    assert set(cells) == expected
    assert len(cells) == len(expected)
    assert cells[0] == (None, 0.0, None)


def test_a_shared_input_at_100_percent_is_one_cell():
    cells = study(methods=["resample-tokens"], fractions=[1.0], seeds=SEEDS, shared_input=True).cells("causal-lm")
    assert described(cells) == [(None, 0.0, None), ("resample-tokens", 1.0, None)]


def test_methods_that_do_not_suit_a_task_have_no_cells_there():
    mixed = study(methods=["resample-tokens", "resample-pixels", "peak"], fractions=[0.5], seeds=[1])
    names = {
        task: {cell.method.name for cell in mixed.cells(task) if cell.method}
        for task in ("causal-lm", "image-classification")
    }
    assert names == {
        "causal-lm": {"resample-tokens", "peak"},
        "image-classification": {"resample-pixels", "peak"},
    }


def test_the_same_thing_twice_is_once():
    given = study(models=["a", "a"], methods=["peak bins=64", "peak  bins=64"], fractions=[1, 1.0, 0.5], seeds=[1, 1])
    assert (given.models, given.methods, given.fractions, given.seeds) == (
        ("a",),
        ("peak bins=64",),
        (1.0, 0.5),
        (1,),
    )
    assert all(type(fraction) is float for fraction in given.fractions)


def test_numbers_are_what_they_say_however_they_were_come_by():
    given = study(fractions=[0.3, 3 * 0.1, *(np.arange(1, 4) * 0.1)], seeds=list(np.arange(2)))
    assert given.fractions == (0.3, 0.1, 0.2)
    assert given.seeds == (0, 1)
    assert all(type(seed) is int for seed in given.seeds)
    sizes = study(evaluate_tokens=np.int64(500), mask_seed=np.int64(7), bins=np.int64(64))
    assert sizes.to_dict() == study(evaluate_tokens=500, mask_seed=7, bins=64).to_dict()
    assert json.loads(json.dumps(sizes.to_dict()))["bins"] == 64


def test_a_single_setting_is_a_list_of_one():
    single = Study(models="tiny-opt", methods="zero", fractions=0.5, seeds=1)
    listed = Study(models=["tiny-opt"], methods=["zero"], fractions=[0.5], seeds=[1])
    assert single == listed
    model = SimpleNamespace(cfg=None, run_with_hooks=None)
    assert Study(models=model).models == (model,)
    assert single.to_dict() == listed.to_dict()


def test_studies_of_tensors_can_be_compared():
    one, same, other = (
        study(models=["tiny-opt"], batches={"collect": torch.tensor([[5, 6]]), "evaluate": [torch.tensor([[7, last]])]})
        for last in (8, 8, 9)
    )
    assert one == same
    assert one != other
    assert one != "study"


@pytest.mark.parametrize("folder", [None, 5])
def test_a_folder_that_is_none(folder):
    with pytest.raises(MismatchError, match="runs/mine"):
        study().run(folder)


def test_fraction_0_is_the_baseline():
    assert described(study(fractions=[0]).cells("causal-lm")) == [(None, 0.0, None)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "at least one of models"),
        ({"models": {"tiny-vit"}}, "models is a set; give a list"),
        ({"models": torch.nn.Sequential(*[torch.nn.Linear(2, 2)] * 200)}, "^models is a Sequential; .{0,200}$"),
        ({"models": [torch.nn.Sequential(*[torch.nn.Linear(2, 2)] * 200)]}, "^model Sequential.{0,200}$"),
        ({"models": [5]}, "model 5 is not possible; give names"),
        ({"models": ["caf\udce9"]}, r"model 'caf\\udce9' is not possible; give names in UTF-8"),
        ({"corpora": {"text": "caf\udce9"}}, "corpora=.* in UTF-8"),
        ({"labels": "caf\udce9"}, "labels=.* in UTF-8"),
        ({"generator": "caf\udce9"}, "generator=.* in UTF-8"),
        ({"methods": ["none"]}, "'none' is what the baseline is called"),
        ({"methods": []}, "at least one of methods"),
        ({"methods": ["piek"]}, "did you mean 'peak'"),
        ({"methods": ["peak bins=1"]}, "bins=1; expected a whole number from 2 to 256"),
        ({"methods": ["peak bins=64"], "bins": 32}, "bins=64; expected a whole number from 2 to 32"),
        ({"methods": ["peak-smooth sigma=-1"]}, "sigma=-1; expected a finite number above zero"),
        ({"methods": [["peak"]]}, r"method \['peak'\] is not possible"),
        ({"fractions": [1.1]}, "fraction 1.1 is not possible; give numbers from 0 to 1"),
        ({"fractions": [-0.1]}, "fraction -0.1"),
        ({"fractions": [float("nan")]}, "fraction nan"),
        ({"fractions": ["0.5"]}, "fraction '0.5'"),
        ({"fractions": [[0.5]]}, r"fraction \[0.5\]"),
        ({"fractions": 1.5}, "fraction 1.5"),
        ({"fractions": None}, "fractions is None; give a list"),
        ({"seeds": True}, "seed True"),
        ({"seeds": [1.5]}, "seed 1.5 is not possible; give whole numbers"),
        ({"seeds": [True]}, "seed True"),
        ({"seeds": [2**70]}, "seed 1180591620717411303424"),
        ({"collect_tokens": -1}, "collect_tokens=-1 is not possible; give a positive whole number"),
        ({"evaluate_tokens": 0}, "evaluate_tokens=0"),
        ({"evaluate_images": 2.5}, "evaluate_images=2.5"),
        ({"context": -5}, "context=-5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"bins": 1}, "bins=1"),
        ({"bins": "many"}, "bins='many'"),
        ({"include_bos": "no"}, "include_bos='no'"),
        ({"shared_input": 1}, "shared_input=1"),
        ({"mask_seed": None}, "mask_seed=None"),
        ({"generator": 5}, "generator=5"),
        ({"labels": 5}, "labels=5"),
        ({"dtype": 16}, "dtype=16"),
        ({"dtype": {"tiny-vitt": "bfloat16"}}, "there is no model in dtype 'tiny-vitt'; did you mean 'tiny-vit'"),
        ({"methods": ["peak-smooth"], "bins": 8}, "peak-smooth: sigma=2.0 bins smooths a histogram of 8 away"),
        ({"corpora": "stdlib"}, "corpora='stdlib'"),
        ({"corpora": {"text": 5}}, "corpora="),
        ({"corpora": {"txet": "stdlib"}}, "not for txet"),
        ({"count": "skip"}, "did you mean 'skip-common'"),
        ({"site": "zz"}, "did you mean 'z'"),
    ],
)
def test_impossible_settings_are_one_sentence(changes, message):
    with pytest.raises(MismatchError, match=message) as caught:
        study(**changes)
    assert "\n" not in str(caught.value)


def test_presets_are_the_papers_models_and_the_zoo():
    paper = Study.preset("paper")
    assert paper.models == (
        "facebook/opt-1.3b",
        "mistralai/Mistral-7B-v0.1",
        "google/vit-base-patch16-224",
        "FacebookAI/roberta-large",
    )
    assert (paper.collect_tokens, paper.evaluate_tokens, paper.evaluate_images) == (100_000, 100_000, 1000)
    assert paper.corpora == {"text": "pile", "image": "imagenet-1k"}
    assert paper.seeds == (42, 123, 456)
    assert paper.dtype_of("facebook/opt-1.3b") == "float16"
    assert paper.dtype_of("google/vit-base-patch16-224") is None
    tiny = Study.preset("tiny")
    assert len(tiny.seeds) == 10
    assert len(tiny.models) == 4
    assert list(PRESETS) == ["paper", "tiny", "quick"]


def test_a_preset_with_other_models_keeps_the_dtypes_of_those_that_are_left():
    assert Study.preset("paper", models=["tiny-opt", "facebook/opt-1.3b"]).dtype == {"facebook/opt-1.3b": "float16"}
    assert Study.preset("paper", models=["tiny-opt"]).dtype is None
    assert Study.preset("paper", models="facebook/opt-1.3b").dtype == {"facebook/opt-1.3b": "float16"}
    assert Study.preset("paper", models="facebook/opt-1.3b-mine").dtype is None
    with pytest.raises(MismatchError, match="model 5 is not possible"):
        Study.preset("paper", models=5)


def test_a_preset_with_another_corpus_keeps_the_rest():
    assert Study.preset("paper", corpora={"text": "wikitext"}).corpora == {
        "text": "wikitext",
        "image": "imagenet-1k",
    }
    assert Study.preset("paper").with_corpora({"image": "digits"}).corpora == {"text": "pile", "image": "digits"}


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(MismatchError, match="there is no preset 'tinny'; did you mean 'tiny'"):
        Study.preset("tinny")


def written(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_a_toml_file_says_what_python_says(tmp_path):
    path = written(
        tmp_path,
        """
        models = ["tiny-opt", "tiny-vit"]
        methods = ["peak bins=64", "zero"]
        fractions = [0.5, 1]
        seeds = [7]
        evaluate_tokens = 5_000
        [corpora]
        text = "stdlib"
        [dtype]
        tiny-opt = "bfloat16"
        """,
    )
    assert Study.from_toml(path) == Study(
        models=["tiny-opt", "tiny-vit"],
        methods=["peak bins=64", "zero"],
        fractions=[0.5, 1.0],
        seeds=[7],
        evaluate_tokens=5000,
        corpora={"text": "stdlib"},
        dtype={"tiny-opt": "bfloat16"},
    )


def test_a_toml_file_starts_from_a_preset_and_options_go_over_both(tmp_path):
    path = written(tmp_path, 'preset = "quick"\nseeds = [7]\nevaluate_tokens = 100\n')
    read = Study.from_toml(path, evaluate_tokens=200)
    assert read == Study.preset("quick", seeds=[7], evaluate_tokens=200)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = [", "is not TOML"),
        ('modles = ["tiny-opt"]', "did you mean 'models'"),
        ("seeds = [1]", "names no models"),
        ('preset = "papre"', "did you mean 'paper'"),
        ("preset = 5", "there is no preset 5"),
        ("preset = []", r"there is no preset \[\]"),
        ('models = ["tiny-opt"]\nfractions = [2]', "fraction 2"),
        ('models = ["tiny-opt"]\nfractions = [[0.5]]', "fraction"),
        ('models = ["tiny-opt"]\nseeds = [2026-01-01]', "seed"),
        ('models = {a = "tiny-opt"}', "models is a dict; give a list"),
        ('preset = "tiny"\ncorpora = "stdlib"', "corpora='stdlib'"),
        (f"seeds = {'[' * 100_000}", "is not TOML"),
        (f"seeds = [{'9' * 5000}]", "is not TOML"),
        (f'models = ["tiny-opt"]\ndtype{".a" * 20_000} = 1', "tables in tables"),
        ('"\\u001b]0;x\\u0007" = 1', r"there is no setting .* '\\x1b\]0;x\\x07'"),
        ('models = ["tiny-opt"]\nfractions = [1e400]', "fraction inf"),
        ('models = ["tiny-opt"]\ncontext = 1979-05-27T00:00:00Z', "context=datetime"),
        ("#" * 2**21, "has 2,097,152 bytes; at most 1,048,576 were expected"),
    ],
)
def test_a_wrong_toml_file_is_one_sentence(tmp_path, text, message):
    with pytest.raises(AblationLensError, match=message) as caught:
        Study.from_toml(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_toml_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(AblationLensError, match="is a folder; a file was expected"):
        Study.from_toml(tmp_path)
    with pytest.raises(AblationLensError, match=r"there is no file .*nope"):
        Study.from_toml(tmp_path / "nope.toml")
    (tmp_path / "latin.toml").write_bytes(b'models = ["caf\xe9"]')
    with pytest.raises(AblationLensError, match=r"latin\.toml cannot be read"):
        Study.from_toml(tmp_path / "latin.toml")


def test_the_settings_are_plain_values_that_make_the_same_study():
    given = Study.preset("paper")
    assert Study(**json.loads(json.dumps(given.to_dict()))) == given
