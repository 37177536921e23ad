"""Class names to the model's ids."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablation_lens.corpora.labels import LabelMap, LabelTable, classes_in_order
from ablation_lens.errors import CorpusError

IMAGENET = {
    0: "tench, Tinca tinca",
    1: "goldfish, Carassius auratus",
    134: "crane",
    474: "cardigan",
    264: "Cardigan, Cardigan Welsh corgi",
    517: "crane",
    638: "maillot",
    639: "maillot, tank suit",
    986: "yellow lady's slipper, yellow lady-slipper, Cypripedium calceolus",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tench, Tinca tinca", 0),
        ("TENCH", 0),
        ("Tinca-tinca", 0),
        ("yellow_lady_slipper", 986),
        ("yellow_lady's_slipper", 986),
        ("maillot", 638),
        ("tank suit", 639),
        ("cardigan", 474),
        ("Cardigan Welsh corgi", 264),
        ("n01443537_goldfish", 1),
    ],
)
def test_names_and_synonyms(name: str, expected: int) -> None:
    assert LabelMap.match([name], IMAGENET) == LabelMap({name: expected}, "name")
    assert LabelMap.match([name], {str(key): label for key, label in IMAGENET.items()}).ids == {name: expected}


def test_a_name_of_two_classes_is_refused_with_both() -> None:
    with pytest.raises(CorpusError, match=r"1 of the 2 classes .* 'crane' fits the ids \[134, 517\]"):
        LabelMap.match(["crane", "tench"], IMAGENET)


def test_rules_are_not_mixed() -> None:
    # "1" beside names is not an id: somebody's class is called "1".
    with pytest.raises(CorpusError, match=r"1 of the 2 classes in my folder .*: '1' are not class names"):
        LabelMap.match(["1", "tench"], IMAGENET, "my folder")


def test_names_win_over_ids() -> None:
    assert LabelMap.match(["1", "2"], {0: "1", 1: "2", 2: "3"}) == LabelMap({"1": 0, "2": 1}, "name")


@pytest.mark.parametrize("name", ["3", "-1", "1.0", "²", "1000", "", "0x1"])
def test_what_is_no_id_of_the_model_is_refused(name: str) -> None:
    with pytest.raises(CorpusError, match="cannot be matched"):
        LabelMap.match([name], {0: "cat", 1: "dog", 2: "cow"})


def test_without_a_model_only_ids_are_labels() -> None:
    assert LabelMap.match(["7", "07"], None).ids == {"7": 7, "07": 7}
    with pytest.raises(CorpusError, match=r"names classes \('cat'\), and without the model's id2label"):
        LabelMap.match(["cat"], None)


LABELS = st.lists(
    st.text(min_size=1, max_size=4) | st.sampled_from(["0", "1", "crane", "Crane", "!"]), min_size=1, max_size=8
)


@given(LABELS)
def test_a_models_own_label_is_matched_to_it_unless_two_classes_share_it(labels: list[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            with pytest.raises(CorpusError, match="fits the ids"):
                LabelMap.match([label], dict(enumerate(labels)))
        else:
            assert LabelMap.match([label], dict(enumerate(labels))).ids == {label: labels.index(label)}


# All of ILSVRC-2012


def imagenet() -> tuple[list[str], dict[int, str]]:
    """1000 wnids whose ranks are right where they are checked, and a model's 1000 labels."""
    known = {0: "n01440764", 1: "n01443537", 207: "n02099601", 340: "n02391049", 817: "n04285008", 963: "n07873807"}
    known |= {999: "n15075141"}
    words = {
        0: "tench, Tinca tinca",
        1: "goldfish",
        207: "golden retriever",
        340: "zebra",
        817: "sports car, sport car",
    }
    words |= {963: "pizza, pizza pie", 999: "toilet tissue, toilet paper"}
    wnids, number = [], 0
    for rank in range(1000):
        number = int(known[rank][1:]) if rank in known else number + 1
        wnids.append(f"n{number:08}")
    assert wnids == sorted(set(wnids))
    return wnids, {rank: words.get(rank, "crane" if rank in (134, 517) else f"thing {rank}") for rank in range(1000)}


def test_the_complete_set_of_wnids_is_ranked() -> None:
    wnids, id2label = imagenet()
    found = LabelMap.match(reversed(wnids), id2label)
    assert found.rule == "wnid"
    assert found.ids == {wnid: rank for rank, wnid in enumerate(wnids)}


def test_ranks_are_not_used_unless_everything_fits() -> None:
    wnids, id2label = imagenet()
    shifted = {rank: id2label[(rank + 1) % 1000] for rank in id2label}
    for names, labels in ((wnids[:-1], id2label), (wnids, shifted), ([*wnids[1:], "n99999999"], id2label)):
        with pytest.raises(CorpusError, match=r"LOC_synset|ImageNet's own list|ImageNet wnids"):
            LabelMap.match(names, labels)


def test_imagenets_own_list_settles_the_two_cranes(tmp_path: Path) -> None:
    wnids, id2label = imagenet()
    (tmp_path / "list.txt").write_text("".join(f"{wnid} {id2label[rank]}\n" for rank, wnid in enumerate(wnids)))
    table = LabelTable.read(tmp_path / "list.txt")
    files = [PurePosixPath(f"val/{wnids[rank]}/x.JPEG") for rank in (517, 134, 3)]
    assert table.ids_of(files, id2label, "val") == ([517, 134, 3], "wnid")


def test_a_data_set_in_the_models_order_settles_them_too() -> None:
    _, id2label = imagenet()
    names = [label if rank != 134 else "crane (bird)" for rank, label in id2label.items()]
    assert classes_in_order(names, id2label, "imagenet-1k") == (list(range(1000)), "number, checked by name")
    names[5], names[6] = names[6], names[5]
    with pytest.raises(CorpusError, match=r"fits the ids|no class names"):
        classes_in_order(names, id2label, "imagenet-1k")
    assert classes_in_order(["goldfish", "tench"], IMAGENET, "two") == ([1, 0], "name")


# Labels files


def ids(path: Path, *files: str) -> list[int]:
    found, _ = LabelTable.read(path).ids_of([PurePosixPath(file) for file in files], IMAGENET, "folder")
    return found


@pytest.mark.parametrize(
    "content",
    [
        "a/x.png,tench\nb/y.png,goldfish\n",
        "file,label\na/x.png,Tinca tinca\nb/y.png,GOLDFISH\n",
        "\ufefflabel,width,file_name\r\n0,3,./a/x.png\r\n1,4,b\\y.png\r\n",
        "x.png,0\n\ny.png,1\n",
        "x,0\ny,1\n",
        'class,label\na,"tench, Tinca tinca"\nb,"goldfish, Carassius auratus"\n',
        "x.png , 0 \ny.png,1\nunused.png,plaice\n",
    ],
)
def test_the_ways_to_write_a_labels_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content.encode())
    assert ids(tmp_path / "labels.csv", "a/x.png", "b/y.png") == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"file,label\n", "holds no rows"),
        (b"x.png\n", r"row 1 of .* has 1 columns, expected 2"),
        (b"x.png,tench, Tinca tinca\n", r"row 1 of .* has 3 columns.*double quotes"),
        (b"x.png,0\nx.png,1\n", r"gives 'x\.png' two labels, '0' and '1'"),
        (b"x.png,\xe9\n", "cannot be read as UTF-8"),
        (b'x.png,"0\n', "is not a CSV file"),
        (b"y.png,0\n", r"1 of the 1 images in folder have no row in .* \(first: a/x\.png\)"),
        (b"x.png,plaice\n", r"'plaice' are not class names or ids"),
    ],
)
def test_bad_labels_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        ids(tmp_path / "labels.csv", "a/x.png")


def test_a_row_that_fits_several_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("x.png,0\n")
    with pytest.raises(CorpusError, match=r"row 'x\.png' of .* fits several images"):
        ids(tmp_path / "labels.csv", "a/x.png", "b/x.png")
    with pytest.raises(CorpusError, match=r"there is no file .*none\.csv"):
        LabelTable.read(tmp_path / "none.csv")
