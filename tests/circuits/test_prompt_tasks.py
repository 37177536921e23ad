"""Tasks by name: what is right can be told from every prompt, its corrupted twin does not tell it."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ablation_lens as al
from ablation_lens.circuits.prompt_tasks import prompt_names, prompts_for, register_prompts, unregister_prompts
from ablation_lens.circuits.prompting import Prompts
from ablation_lens.errors import AblationLensError, MismatchError, ModelError
from tests.tiny_tokenizers import word_tokenizer

CLOSED = ["induction", "toy-ioi", "toy-greater-than", "modular-addition"]
SENTENCES = ["ioi", "greater-than", "gendered-pronoun", "docstring"]


class EveryWord:
    """A tokenizer to which every word, with the space before it, and pair of digits is a token, but for `split`."""

    bos_token_id, unk_token_id, all_special_ids = 0, None, (0,)

    def __init__(self, split: str = r"(?!)") -> None:
        self.tokens = ["<s>"]
        self.pattern = re.compile(rf"(?:{split})|\d\d| ?[^\W\d]+| ?[^\w\s]+|\s+")

    def __len__(self) -> int:
        return 2000

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        for token in (found := self.pattern.findall(text)):
            if token not in self.tokens:
                self.tokens.append(token)
        ids = [0, *map(self.tokens.index, found)]
        return {"input_ids": ids, "special_tokens_mask": [1] + [0] * len(found)}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.tokens[number] for number in ids)


def model_of(tokenizer: Any = None, **cfg: Any) -> Any:
    sizes = {"n_ctx": 64, "d_vocab": 2000 if tokenizer is not None else 40, **cfg}
    return SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(**sizes))


def told(prompts: Prompts, tokenizer: Any = None) -> list[tuple[Any, Any, Any, Any]]:
    """Clean and corrupted prompt, answers and wrong answers, row by row: ids, or texts."""
    assert prompts.wrong is not None
    assert prompts.corrupted is not None
    rows = []
    for number in range(len(prompts)):
        real = prompts.valid[number]
        parts = [side[number][real].tolist() for side in (prompts.tokens, prompts.corrupted)]
        answers = [[each for each in side[number].tolist() if each >= 0] for side in (prompts.answers, prompts.wrong)]
        if tokenizer is not None:
            parts = [tokenizer.decode(ids) for ids in parts]
            answers = [[tokenizer.decode([each]) for each in ids] for ids in answers]
        rows.append((*parts, *answers))
    return rows


# ---------------------------------------------------------------------- on token ids


def test_induction_repeats_a_half_that_the_twin_has_not_seen() -> None:
    for clean, twin, (answer,), (wrong,) in told(prompts_for("induction", model_of(), count=20, length=6)):
        half, again = clean[:6], clean[6:]
        assert again == half[:-1] == twin[6:]
        assert answer == half[-1]
        assert not {*half} & {*twin[:6]}
        assert len({*clean}) == 6
        assert wrong in half[:-1]


def test_induction_begins_with_the_models_own_bos_and_draws_no_special_token() -> None:
    tokenizer = word_tokenizer()
    prompts = prompts_for("induction", model_of(tokenizer, d_vocab=99), count=50, length=8)
    assert prompts.tokens[:, 0].tolist() == [tokenizer.bos_token_id] * 50
    drawn = {*prompts.tokens[:, 1:].flatten().tolist()}
    # Nor one of the rows of the embedding that no token uses.
    assert drawn == {*range(len(tokenizer))} - {*tokenizer.all_special_ids}
    without = prompts_for("induction", model_of(tokenizer), count=5, length=8, bos=None)
    assert without.tokens.shape[1] == prompts.tokens.shape[1] - 1


def test_induction_in_a_small_world() -> None:
    small = model_of(n_ctx=9, d_vocab=12)
    assert prompts_for("induction", small, count=3).tokens.shape == (3, 9)
    chosen = prompts_for("induction", model_of(), count=9, ids=range(20, 30), bos=7)
    assert chosen.tokens[:, 0].tolist() == [7] * 9
    assert {*chosen.tokens[:, 1:].flatten().tolist()} <= {*range(20, 30)}
    for options in (
        {"length": 1},
        {"length": 40},
        {"ids": [1, 2]},
        {"ids": [50, 51, 52, 53]},
        {"ids": 5},
        {"bos": "x"},
    ):
        with pytest.raises(MismatchError):
            prompts_for("induction", model_of(), count=3, **options)


def test_a_trained_model_does_induction_and_cannot_on_the_twins() -> None:
    model = al.load_model("tiny-opt")
    prompts = prompts_for("induction", model, count=16)
    assert al.evaluate(model, prompts).top1 > 0.5
    assert al.evaluate(model, prompts.corrupted_batches()).top1 == 0


def test_toy_ioi_asks_for_the_name_that_does_not_come_again() -> None:
    seen = set()
    for (x, joined, y, again, to), twin, answers, wrong in told(prompts_for("toy-ioi", model_of(), count=60, names=8)):
        assert (joined, to) == (8, 9) == (twin[1], twin[4])
        assert (wrong, answers) == ([again], [x if again == y else y])
        assert len({x, y, twin[0], twin[2], twin[3]}) == 5
        seen.add(again == x)
    assert seen == {True, False}


def test_toy_greater_than_takes_every_greater_number() -> None:
    prompts = prompts_for("toy-greater-than", model_of(), count=16, numbers=10, nouns=2)  # all there are
    for (noun, since, number, to), twin, answers, wrong in told(prompts):
        assert (since, to, noun in (12, 13)) == (10, 11, True)
        assert twin == [noun, since, 0, to]
        assert (answers, wrong) == ([*range(number + 1, 10)], [*range(number + 1)])


def test_modular_addition_adds() -> None:
    for (one, other, equals), twin, answers, wrong in told(prompts_for("modular-addition", model_of(), modulus=11)):
        assert (equals, twin[1:]) == (11, [other, 11])
        assert answers == [(one + other) % 11]
        assert wrong == [(twin[0] + other) % 11] != answers


def test_a_model_that_reads_equals_and_cannot_say_it_adds_too() -> None:
    prompts = prompts_for("modular-addition", model_of(d_vocab=14, d_vocab_out=13))
    assert int(prompts.tokens.max()) == 13
    assert int(prompts.answers.max()) == 12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("toy-ioi", {"names": 39}),
        ("toy-ioi", {"names": 4}),
        ("toy-ioi", {"names": "many"}),
        ("toy-greater-than", {"numbers": 34}),
        ("toy-greater-than", {"nouns": 0}),
        ("toy-greater-than", {"nouns": 38}),
        ("modular-addition", {"modulus": 40}),
        ("modular-addition", {"modulus": 1}),
    ],
)
def test_a_toy_with_more_words_than_the_model_has_ids(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(MismatchError, match=f"{next(iter(options))}|numbers"):
        prompts_for(name, model_of(), **options)


# ---------------------------------------------------------------------- of sentences


def test_ioi_asks_for_the_name_that_does_not_come_again() -> None:
    tokenizer = EveryWord()
    names = ["Ada", "Bo", "Cem", "Dag", "Eli", "Fay"]
    for clean, twin, (answer,), (wrong,) in told(prompts_for("ioi", model_of(tokenizer), names=names), tokenizer):
        named = re.findall("|".join(names), clean)
        others = re.findall("|".join(names), twin)
        assert len(named) == 3 == len({*others})
        assert f" {named[2]}" == wrong
        assert {answer, wrong} == {f" {each}" for each in named}
        assert not {*named} & {*others}
        assert re.sub("|".join(names), "", clean) == re.sub("|".join(names), "", twin)


def test_greater_than_takes_every_later_year_of_the_century() -> None:
    tokenizer = EveryWord()
    for clean, twin, answers, wrong in told(prompts_for("greater-than", model_of(tokenizer)), tokenizer):
        century, year, again = re.findall(r"\d\d", clean)
        assert century == again
        assert twin == clean.replace(f"{century}{year}", f"{century}01")
        assert answers == [f"{later:02}" for later in range(int(year) + 1, 100)]
        assert wrong == [f"{earlier:02}" for earlier in range(int(year) + 1)]


def test_years_that_are_tokens_of_their_own_are_left_out() -> None:
    tokenizer = EveryWord(split=r"\d\d5\d|\d\d77")
    rows = told(prompts_for("greater-than", model_of(tokenizer)), tokenizer)
    assert not {year for *_, answers, wrong in rows for year in answers + wrong} & {"50", "59", "77"}


def test_the_pronoun_of_the_other_gender_is_wrong() -> None:
    tokenizer = EveryWord()
    rows = told(prompts_for("gendered-pronoun", model_of(tokenizer)), tokenizer)
    assert {(*answers, *wrong) for *_, answers, wrong in rows} == {(" he", " she"), (" she", " he")}
    by_pronoun: dict[str, set[str]] = {" he": set(), " she": set()}
    for clean, twin, (answer,), (wrong,) in rows:
        (name, other), *rest = [pair for pair in zip(clean.split(), twin.split(), strict=True) if pair[0] != pair[1]]
        assert not rest
        by_pronoun[answer].add(name)
        by_pronoun[wrong].add(other)
    assert not by_pronoun[" he"] & by_pronoun[" she"]


def test_a_docstring_goes_on_with_the_third_argument() -> None:
    tokenizer = EveryWord()
    for clean, twin, (answer,), wrong in told(prompts_for("docstring", model_of(tokenizer)), tokenizer):
        one, two, three, four = re.findall(r"\w+", clean.split("self")[1])[:4]
        assert re.findall(r":param (\w+)", clean) == [one, two]
        assert (answer, wrong) == (f" {three}", [f" {each}" for each in (one, two, four)])
        assert twin.split(")", 1)[1] == clean.split(")", 1)[1]
        assert three not in re.findall(r"\w+", twin)


@pytest.mark.parametrize("name", SENTENCES)
def test_a_tokenizer_of_plain_words_will_do(name: str) -> None:
    reader = EveryWord()
    prompts_for(name, model_of(reader), count=200)
    words = sorted({token.strip() for token in reader.tokens if token.strip()} - {"<s>"} | {"):", '"""'})
    tokenizer = word_tokenizer(words=words)
    prompts = prompts_for(name, model_of(tokenizer), count=8)
    assert prompts.tokens[:, 0].tolist() == [tokenizer.bos_token_id] * 8
    assert tokenizer.unk_token_id not in prompts.answers


def test_names_of_several_tokens_are_left_out() -> None:
    tokenizer = EveryWord(split=r" Mar| Jo| J")
    rows = told(prompts_for("ioi", model_of(tokenizer), count=200), tokenizer)
    text = " ".join(row[0] + row[1] for row in rows)
    assert not re.search(r"Mary|Mark|John|James", text)
    assert re.search("Anna", text)


def test_too_few_names_of_a_single_token() -> None:
    for name in ("ioi", "gendered-pronoun"):
        with pytest.raises(MismatchError, match=r"'Mary'.* single tokens"):
            prompts_for(name, al.load_model("tiny-opt"))
    with pytest.raises(MismatchError, match="years of two tokens"):
        prompts_for("greater-than", al.load_model("tiny-opt"))
    for names in ("Ada", 5, [5], [""], ["Ada"] * 9):
        with pytest.raises(MismatchError, match=r"names|words"):
            prompts_for("ioi", model_of(EveryWord()), names=names)


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_need_a_tokenizer(name: str) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        prompts_for(name, model_of())


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", CLOSED + SENTENCES)
def test_more_prompts_begin_with_the_fewer_and_none_comes_twice(name: str) -> None:
    def made(**options: Any) -> Prompts:
        return prompts_for(name, model_of(EveryWord() if name in SENTENCES else None), **options)

    many, few = made(count=30), made(count=10)
    assert many.rows(range(10)).digest == few.digest
    assert many.name == name
    assert len({tuple(row) for row in many.tokens.tolist()}) == 30
    assert made(count=10, seed=1).digest != few.digest


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("induction", "9fe9d153bfb40124"),
        ("toy-ioi", "58619eb889142940"),
        ("toy-greater-than", "8f0bcc4de46a44cf"),
        ("modular-addition", "e4494c6d3ced1af5"),
    ],
)
def test_prompts_are_the_same_on_every_machine(name: str, digest: str) -> None:
    assert prompts_for(name, model_of(), count=10).digest == digest


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("modular-addition", {"modulus": 37}, 37**2),
        ("toy-ioi", {"names": 25}, 25 * 24 * 2),
        ("toy-greater-than", {"numbers": 30, "nouns": 8}, 8 * 28),
        ("gendered-pronoun", {}, 320),
    ],
)
def test_all_prompts_that_there_are(name: str, options: dict[str, Any], count: int) -> None:
    model = model_of(EveryWord() if name in SENTENCES else None)
    assert len(prompts_for(name, model, count=count, **options)) == count
    with pytest.raises(MismatchError, match=f"{count:,} different prompts"):
        prompts_for(name, model, count=count + 1, **options)


def test_more_prompts_than_there_are() -> None:
    with pytest.raises(MismatchError, match="9 different prompts of modular-addition"):
        prompts_for("modular-addition", model_of(), count=10, modulus=3)


@pytest.mark.parametrize("count", [0, -1, 1.5, "8", None, 10**12])
def test_a_count_that_is_none(count: Any) -> None:
    with pytest.raises(MismatchError, match="count="):
        prompts_for("induction", model_of(), count=count)


def test_what_prompts_for_does_not_know() -> None:
    with pytest.raises(MismatchError, match="did you mean 'induction'"):
        prompts_for("inducton", model_of())
    with pytest.raises(MismatchError, match="did you mean 'length'"):
        prompts_for("induction", model_of(), lenght=5)
    with pytest.raises(MismatchError, match="takes no options"):
        prompts_for("docstring", model_of(), length=5)
    with pytest.raises(MismatchError, match="seed"):
        prompts_for("induction", model_of(), seed="a")  # type: ignore[arg-type]
    with pytest.raises(AblationLensError):
        prompts_for("induction", "tiny-opt")
    with pytest.raises(AblationLensError):
        prompts_for(["induction"], model_of())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tiny-roberta", "tiny-vit"])
def test_models_that_are_not_asked_what_comes_next(name: str) -> None:
    with pytest.raises(MismatchError, match="what comes next"):
        prompts_for("induction", al.load_model(name))


def test_a_task_of_ones_own() -> None:
    def counting(model: Any, count: int, seed: int, step: int = 1) -> Prompts:
        return Prompts.of([[n, n + step] for n in range(count)], [n + 2 * step for n in range(count)])

    try:
        register_prompts("counting")(counting)
        register_prompts("counting")(counting)  # a notebook's cell again
        assert prompt_names()[-1] == "counting"
        assert prompts_for("counting", model_of(), count=2, step=3).answers.tolist() == [[6], [7]]
        with pytest.raises(MismatchError, match="did you mean 'step'"):
            prompts_for("counting", model_of(), stop=3)
        with pytest.raises(MismatchError, match="exists already"):
            register_prompts("counting")(test_a_task_of_ones_own)
    finally:
        unregister_prompts("counting")
    assert prompt_names() == CLOSED + SENTENCES
    with pytest.raises(MismatchError, match="exists already"):
        register_prompts("induction")(counting)
    for wrong in ("", 5):
        with pytest.raises(MismatchError, match="name of a task"):
            register_prompts(wrong)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="must be a function"):
        register_prompts("five")(5)  # type: ignore[type-var]


def test_a_task_that_gives_something_else() -> None:
    register_prompts("tensors")(lambda model, count, seed: torch.zeros(count, 3))
    try:
        with pytest.raises(MismatchError, match="must return Prompts"):
            prompts_for("tensors", model_of())
    finally:
        unregister_prompts("tensors")
