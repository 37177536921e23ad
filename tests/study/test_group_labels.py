"""What tells two groups of one model apart is said in words."""

import copy

import pytest

from ablation_lens.study.group_labels import label_groups

GROUP = {
    "model": {"name": "tiny-opt", "dtype": "float32", "weights": "55cc70ccb9d4b8b6"},
    "evaluate": {"name": "stdlib", "size_obtained": 10000, "unit": "tokens"},
    "collect": {"name": "stdlib", "size_obtained": 50000, "unit": "tokens"},
    "count": "all",
    "context": 256,
    "mask_seed": 42,
    "batch_size": 32,
    "facts": {"site": "z", "bins": 256, "include_bos": True, "shared_input": None, "generator": None, "device": "cpu"},
    "versions": {"ablation_lens": "0.1.0", "transformer_lens": "3.9.0", "transformers": "5.23.0", "torch": "2.13.0"},
}


def changed(*path, to):
    group = copy.deepcopy(GROUP)
    place = group
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return group


def test_a_model_alone_is_called_by_its_name():
    assert label_groups({"g": GROUP, "h": changed("model", "name", to="tiny-vit")}) == {
        "g": "tiny-opt",
        "h": "tiny-vit",
    }


@pytest.mark.parametrize(
    ("path", "to", "ours", "theirs"),
    [
        (("model", "dtype"), "bfloat16", "float32", "bfloat16"),
        (("facts", "site"), "mlp", "z", "mlp"),
        (("evaluate", "size_obtained"), 3000, "10,000 tokens", "3,000 tokens"),
        (("count",), "skip-common", "all predictions", "skip-common"),
        (("context",), 64, "context 256", "context 64"),
        (("collect", "size_obtained"), 20000, "statistics of 50,000 tokens", "statistics of 20,000 tokens"),
        (("facts", "bins"), 64, "256 bins", "64 bins"),
        (("mask_seed",), 7, "masks of seed 42", "masks of seed 7"),
        (("batch_size",), 8, "batches of 32", "batches of 8"),
        (("facts", "include_bos"), False, "with BOS", "without BOS"),
        (("facts", "shared_input"), 0, "an input per seed", "one input (seed 0)"),
        (("facts", "device"), "cuda", "cpu", "cuda"),
        (("versions", "transformer_lens"), "4.3.0", "transformer-lens 3.9.0", "transformer-lens 4.3.0"),
    ],
)
def test_what_differs_is_said_and_nothing_else(path, to, ours, theirs):
    labels = label_groups({"g": GROUP, "h": changed(*path, to=to)})
    assert labels == {"g": f"tiny-opt on stdlib ({ours})", "h": f"tiny-opt on stdlib ({theirs})"}


def test_another_corpus_says_enough():
    labels = label_groups({"g": GROUP, "h": changed("evaluate", "name", to="pile")})
    assert labels == {"g": "tiny-opt on stdlib", "h": "tiny-opt on pile"}


def test_as_many_differences_as_are_needed():
    third = changed("model", "dtype", to="bfloat16")
    third["context"] = 64
    labels = label_groups({"g": GROUP, "h": changed("context", to=64), "i": third})
    assert list(labels.values()) == [
        "tiny-opt on stdlib (float32, context 256)",
        "tiny-opt on stdlib (float32, context 64)",
        "tiny-opt on stdlib (bfloat16, context 64)",
    ]


def test_what_nobody_has_words_for_is_said_by_its_place():
    labels = label_groups(
        {"g": GROUP, "h": changed("facts", "new_setting", to=3), "i": changed("facts", "new_setting", to=5)}
    )
    assert list(labels.values())[1:] == [
        "tiny-opt on stdlib (facts new_setting 3)",
        "tiny-opt on stdlib (facts new_setting 5)",
    ]


def test_other_documents_of_one_name_are_told_apart():
    one, two = (changed("evaluate", "digest", to=digest) for digest in ("aaaaaaaa", "bbbbbbbb"))
    assert list(label_groups({"g": one, "h": two}).values()) == [
        "tiny-opt on stdlib (documents aaaaaa)",
        "tiny-opt on stdlib (documents bbbbbb)",
    ]


def test_groups_that_differ_in_nothing_have_their_digest():
    labels = label_groups({"abcdefgh": GROUP, "ijklmnop": GROUP})
    assert labels == {"abcdefgh": "tiny-opt on stdlib (abcdef)", "ijklmnop": "tiny-opt on stdlib (ijklmn)"}
