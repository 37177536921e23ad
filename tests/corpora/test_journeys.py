"""The journeys: two paragraphs, the same on every machine, and the header says all that the second one needs."""

import re

import pytest

from ablation_lens.corpora import open_corpus
from ablation_lens.corpora.embedded import digest
from ablation_lens.corpora.journeys import DOCUMENTS, THINGS, journey, journey_documents


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(journey_documents())


def named(text: str) -> dict[str, list[str]]:
    """The values of each thing that a text names."""
    words = re.findall(r"\w+", text)
    return {thing: sorted({word for word in words if word in values}) for thing, values in THINGS.items()}


def test_the_texts_are_the_same_on_every_machine(documents: list[str]) -> None:
    assert digest(documents) == "12a30105cface245417d3090dc16e9b92c8a805eb8b1f97662cde3a7a079f53e"
    assert journey(7) == documents[7]  # whatever was made before it


def test_every_text_has_two_paragraphs_and_is_there_once(documents: list[str]) -> None:
    assert len(set(documents)) == len(documents) == DOCUMENTS
    assert {document.count("\n\n") for document in documents} == {1}
    assert not any("\n\n\n" in document or re.search(r"[<>|\[\]]", document) for document in documents)


def test_the_header_fixes_what_the_second_paragraph_names(documents: list[str]) -> None:
    for document in documents:
        first, second = document.split("\n\n")
        header, _, fillers = first.partition(". ")
        plan = named(header)
        assert {thing: len(values) for thing, values in plan.items()} == dict.fromkeys(THINGS, 1)
        assert named(second) == plan
        assert not any(named(fillers).values())


def test_values_are_as_frequent_as_by_chance(documents: list[str]) -> None:
    plans = [named(document) for document in documents[:4000]]
    for thing, values in THINGS.items():
        counts = [sum(plan[thing] == [value] for plan in plans) for value in values]
        assert min(counts) > 400 < max(counts) < 600


def test_no_text_is_in_two_splits(documents: list[str]) -> None:
    parts = {
        split: [d.text for d in open_corpus("journeys", split=split)] for split in ("train", "collect", "evaluate")
    }
    assert sum(map(len, parts.values())) == len(documents)
    assert len(set().union(*parts.values())) == len(documents)
