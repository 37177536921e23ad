"""The embedded corpora: the same documents on every run, none in two splits, nothing imported to read them."""

import hashlib
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablation_lens.corpora import embedded
from ablation_lens.corpora.embedded import (
    DOCUMENT_CHARACTERS,
    SMALLEST_DOCUMENT,
    clean,
    cut_into_documents,
    digest,
    digits_images,
    docstrings,
    stdlib_documents,
)
from ablation_lens.corpora.splits import EMBEDDED_SHARES, OUTSIDE_SHARES, split_of
from ablation_lens.errors import CorpusError


def test_documents_are_unique_ordered_by_hash_and_of_useful_length():
    documents = stdlib_documents()
    hashes = [hashlib.sha256(document.encode()).hexdigest() for document in documents]
    assert all(first < second for first, second in pairwise(hashes))  # strictly: sorted, and no duplicates
    lengths = [len(document) for document in documents]
    assert min(lengths) >= SMALLEST_DOCUMENT
    # At most: a piece still too small, one paragraph of the limit, and a remainder too small to stand alone.
    assert max(lengths) <= 2 * SMALLEST_DOCUMENT + DOCUMENT_CHARACTERS + 200
    assert sum(lengths) > 1_500_000


def test_no_paragraph_of_one_split_is_quoted_in_another():
    where: dict[str, str] = {}
    for document in stdlib_documents():
        split = split_of(document.encode(), EMBEDDED_SHARES)
        for paragraph in document.split("\n\n"):
            key = " ".join(paragraph.split())
            if len(key) >= 40:
                assert where.setdefault(key, split) == split, key


def test_the_splits_have_about_their_shares():
    documents = stdlib_documents()
    for split, share in EMBEDDED_SHARES.items():
        found = sum(split_of(document.encode(), EMBEDDED_SHARES) == split for document in documents)
        assert found / len(documents) == pytest.approx(share, abs=0.03)


_PRINT_DIGESTS = """
import sys
from ablation_lens.corpora.embedded import digest, stdlib_documents
from ablation_lens.corpora.splits import EMBEDDED_SHARES, split_of
documents = stdlib_documents()
assert "this" not in sys.modules and "antigravity" not in sys.modules and "turtle" not in sys.modules
print(digest(documents), digest(split_of(d.encode(), EMBEDDED_SHARES) for d in documents))
"""


def test_documents_and_splits_do_not_depend_on_the_hash_seed_or_on_warnings():
    """Also: modules that open windows, browsers or print a poem are read, not imported. And kept ones are no others."""
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PRINT_DIGESTS],
        env={**os.environ, "PYTHONHASHSEED": "4321", "ABLATION_LENS_CACHE": "off"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    documents = stdlib_documents()  # in this process, under another seed and other warnings
    splits = digest(split_of(document.encode(), EMBEDDED_SHARES) for document in documents)
    assert output == f"{digest(documents)} {splits}\n"


def test_docstrings_come_in_source_order_without_running_the_file(tmp_path: Path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""Module.\n\n    Indented."""\nraise SystemExit("imported")\n'
        "class First:\n    '''Class.'''\n    def inner(self):\n        '''Method.'''\n    x = 'no docstring'\n"
        "async def last():\n    'Coroutine.'\n    def nested():\n        'Nested.'\n"
    )
    assert docstrings(path) == ["Module.\n\nIndented.", "Class.", "Method.", "Coroutine.", "Nested."]


@pytest.mark.parametrize("content", [b"def broken(:", b"\xff\xfe\x00", b"x = 1\x00", b"# coding: nonsense\n'doc'"])
def test_a_file_that_cannot_be_parsed_has_no_docstrings(tmp_path: Path, content: bytes):
    (tmp_path / "bad.py").write_bytes(content)
    assert docstrings(tmp_path / "bad.py") == []
    assert docstrings(tmp_path / "absent.py") == []


def test_an_invalid_escape_neither_warns_nor_drops_the_file(tmp_path: Path):
    (tmp_path / "old.py").write_text('"""A \\d in prose."""\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert docstrings(tmp_path / "old.py") == ["A \\d in prose."]


def test_tests_and_installed_packages_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prose = {"kept.py": "kept", "package/also.py": "also"}
    for folder in ("test", "idlelib/idle_test", "site-packages/x", "unittest/tests", "lib2to3"):
        prose[f"{folder}/gone.py"] = "gone"
    for index, (name, word) in enumerate(prose.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'"""{" ".join(f"{word}{index}" for _ in range(80))}"""\n')
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda _: str(tmp_path))
    read = [source for source in embedded._sources() if source.startswith(("kept", "also", "gone"))]
    assert sorted(source[:4] for source in read) == ["also", "kept"]


_PARAGRAPHS = st.lists(st.text("ab \n", min_size=1, max_size=400), max_size=30)


@given(_PARAGRAPHS)
def test_cutting_keeps_every_new_paragraph_once_and_in_order(paragraphs: list[str]):
    source = clean("\n\n".join(paragraphs))
    documents = list(cut_into_documents(source, set()))
    expected, seen = [], set()
    for paragraph in source.split("\n\n"):
        key = " ".join(paragraph.split())
        if key and key not in seen:
            expected += key.split()
        if len(key) >= 40:
            seen.add(key)
    found = " ".join(documents).split()
    # A source with too little to say is dropped as a whole; anything else is kept as a whole.
    assert found == expected or (not found and len(" ".join(expected)) <= SMALLEST_DOCUMENT)


def test_a_paragraph_seen_in_an_earlier_source_is_not_taken_again():
    seen: set[str] = set()
    shared = "the very same sentence in both sources, word for word"
    first = list(cut_into_documents(f"{shared}\n\n{'one ' * 60}", seen))
    second = list(cut_into_documents(f"{'two ' * 60}\n\n   {shared}", seen))
    assert shared in first[0]
    assert len(second) == 1
    assert shared not in second[0]


def test_digits_are_the_scikit_learn_images_in_their_order():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = digits_images()
    assert [label for _, label in images] == bunch.target.tolist()
    for pixels, original in zip((pixels for pixels, _ in images), bunch.images, strict=True):
        assert pixels.dtype == np.uint8
        np.testing.assert_allclose(pixels * (16 / 255), original, atol=0.5 * 16 / 255)


def test_the_digest_sees_content_order_and_boundaries():
    assert digest(["a", "b"]) == digest([b"a", b"b"])
    assert len({digest(x) for x in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a", "c"], [])}) == 6


@given(st.binary())
def test_a_split_is_decided_by_the_hash_alone(content: bytes):
    position = int(hashlib.sha256(content).hexdigest()[:16], 16) / 2**64
    expected = "train" if position < 0.7 else "collect" if position < 0.85 else "evaluate"
    assert split_of(content, EMBEDDED_SHARES) == expected
    assert split_of(content, dict(reversed(EMBEDDED_SHARES.items()))) == expected
    assert split_of(content, OUTSIDE_SHARES) == ("collect" if position < 0.5 else "evaluate")


def test_stored_splits_do_not_change():
    letters = "".join(split_of(str(number).encode(), EMBEDDED_SHARES)[0] for number in range(24))
    assert letters == "ttctteettttttttettttettt"


@pytest.mark.parametrize("shares", [{"train": 0.5}, {"test": 1.0}, {"train": 1.5, "collect": -0.5}, {}])
def test_shares_that_are_no_partition_are_refused(shares: dict[str, float]):
    with pytest.raises(CorpusError, match="sum to 1"):
        split_of(b"x", shares)


def test_a_share_of_zero_receives_nothing():
    assert {split_of(bytes([n]), {"train": 0.0, "collect": 1.0, "evaluate": 0.0}) for n in range(50)} == {"collect"}
