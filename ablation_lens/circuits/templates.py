"""Tasks made of sentences, for models with a tokenizer. Answers are single tokens where they stand, or are left out.

Sentences are read as the model's own tokenizer reads them, with a BOS only where it puts one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ablation_lens.circuits.examples import Draw, Example
from ablation_lens.errors import MismatchError, ModelError
from ablation_lens.hooked import tokenizer_of
from ablation_lens.tasks.inputs import told
from ablation_lens.tasks.prompts import ids_of_text

WOMEN = (
    *("Mary", "Anna", "Sarah", "Emma", "Laura", "Alice", "Julia", "Kate", "Lisa", "Susan", "Rachel", "Helen"),
    *("Claire", "Ruth", "Jane", "Rose"),
)
MEN = (
    *("John", "James", "David", "Paul", "Mark", "Peter", "Tom", "Michael", "Robert", "Simon", "Daniel", "George"),
    *("Henry", "Jack", "Adam", "Frank"),
)
PLACES = ("station", "library", "market", "garden", "office", "school", "museum", "river")
OBJECTS = ("book", "letter", "ticket", "map", "key", "cup", "ball", "photo")
EVENTS = ("war", "journey", "siege", "project", "drought", "expedition", "trial", "dispute", "marriage", "strike")
ROLES = ("teacher", "doctor", "cook", "singer", "driver", "writer", "player", "friend", "dancer", "lawyer")
WORDS = (
    *("size", "file", "name", "line", "text", "code", "data", "list", "path", "time", "user", "type", "page", "port"),
    *("mode", "key", "host", "node", "link", "date", "word", "form", "role", "case", "rate", "unit", "plan", "test"),
)

_IOI = (
    "After a long day {x} and {y} met at the {place}, where {again} passed the {thing} to",
    "On Sunday {x} and {y} walked to the {place}, and there {again} offered the {thing} to",
    "While {x} and {y} were waiting at the {place}, {again} handed the {thing} to",
    "Later {x} and {y} came back from the {place}, and {again} showed the {thing} to",
)
_GREATER_THAN = "The {event} went on from the year {century}{year} to the year {century}"
_PRONOUN = "Everybody agrees that {name} is a very good {role}, isn't"
_DOCSTRING = '''def {function}(self, {arguments}):
    """{verb} the {noun}

    :param {a}: {first} of the {noun}
    :param {b}: {second} of the {noun}
    :param'''


def ioi(model: Any, draw: Draw, *, names: Iterable[str] | None = None) -> Iterator[Example | None]:
    """Indirect objects: "… Mary and John met at the station, where John passed the key to" → " Mary".

    The wrong answer is the name that comes again. In the corrupted twin all three names are others, and all differ (the
    ABC prompts of Wang et al. 2022).

    Args:
        model: a causal model with a tokenizer.
        draw: what chooses.
        names: what is drawn from instead of 32 common English first names.
    """
    known = _single_tokens(model, "ioi", _texts((*WOMEN, *MEN) if names is None else names), least=5)
    while True:
        x, y, *others = draw.several(known, 5)
        again, answer = draw.one([(x, y), (y, x)])
        template, place, thing = draw.one(_IOI), draw.one(PLACES), draw.one(OBJECTS)
        clean = template.format(x=x, y=y, again=again, place=place, thing=thing)
        corrupted = template.format(x=others[0], y=others[1], again=others[2], place=place, thing=thing)
        yield _example(model, clean, corrupted, [f" {answer}"], [f" {again}"])


def greater_than(model: Any, draw: Draw) -> Iterator[Example | None]:
    """Years: "The war went on from the year 1732 to the year 17" → any of 33 to 99; the others are wrong.

    It takes a tokenizer that reads such a year as its century and one token more. In the corrupted twin the year is 01,
    so that nearly all are right (Hanna et al. 2023).
    """
    _require_tokenizer(model, "greater-than")
    years = {str(century): _years(model, str(century)) for century in range(11, 20)}
    centuries = [century for century, known in years.items() if len(known) >= 10 and 1 in known]
    if not centuries:
        raise MismatchError(
            "greater-than needs years of two tokens, such as 17|32, and this model's tokenizer reads them otherwise; "
            "toy-greater-than needs no tokenizer."
        )
    all_there_are = [
        (century, event, year)
        for century in centuries
        for event in EVENTS
        for year in years[century]
        if 1 < year < max(years[century])
    ]
    for century, event, year in draw.each(all_there_are):
        known = years[century]
        clean, corrupted = (_GREATER_THAN.format(event=event, century=century, year=f"{y:02}") for y in (year, 1))
        found = _example(model, clean, corrupted, [f"{max(known):02}"], [f"{year:02}"])
        if found is not None and [*found.answers, *found.wrong] == [known[max(known)], known[year]]:
            later, earlier = ([token for y, token in known.items() if (y > year) is after] for after in (True, False))
            yield replace(found, answers=later, wrong=earlier)
        else:
            yield None


def _years(model: Any, century: str) -> dict[int, int]:
    """The last two digits that are a token of their own after the century."""
    before = _GREATER_THAN.format(event=EVENTS[0], century=century, year="").partition(" to ")[0]
    found = {year: next_token(model, before, f"{year:02}") for year in range(100)}
    return {year: token for year, token in found.items() if token is not None}


def gendered_pronoun(model: Any, draw: Draw) -> Iterator[Example | None]:
    """Pronouns: "Everybody agrees that Mary is a very good cook, isn't" → " she", and " he" is wrong.

    The corrupted twin has a name of the other gender.
    """
    women, men = (_single_tokens(model, "gendered-pronoun", names, least=2) for names in (WOMEN, MEN))
    sides = [(name, men, " she", " he") for name in women] + [(name, women, " he", " she") for name in men]
    for (name, others, answer, wrong), role in draw.each([(side, role) for side in sides for role in ROLES]):
        clean, corrupted = (_PRONOUN.format(name=each, role=role) for each in (name, draw.one(others)))
        yield _example(model, clean, corrupted, [answer], [wrong])


def docstring(model: Any, draw: Draw) -> Iterator[Example | None]:
    """Arguments: a function's docstring has told of two of them, and the third one's name comes next.

    The wrong answers are the other three. The corrupted twin has other arguments and the same docstring.
    """
    known = _single_tokens(model, "docstring", WORDS, least=13)
    while True:
        drawn = draw.several(known, 13)
        (a, b, c, d), others = drawn[:4], drawn[4:8]
        words = dict(zip(("function", "verb", "noun", "first", "second"), drawn[8:], strict=True))
        clean, corrupted = (
            _DOCSTRING.format(arguments=", ".join(arguments), a=a, b=b, **words) for arguments in (drawn[:4], others)
        )
        yield _example(model, clean, corrupted, [f" {c}"], [f" {each}" for each in (a, b, d)])


# ---------------------------------------------------------------------- tokens


def next_token(model: Any, text: str, more: str) -> int | None:
    """The token that `more` is after a text; None where it is several, unknown, or read together with the text.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-opt")
    >>> next_token(model, "return", " self") is None, next_token(model, "return", " zebra") is None
    (False, True)
    """
    before, after = ids_of_text(model, text), ids_of_text(model, text + more)
    unknown = getattr(tokenizer_of(model), "unk_token_id", None)
    return after[-1] if after[:-1] == before and after[-1] != unknown else None


def _require_tokenizer(model: Any, task: str) -> None:
    if tokenizer_of(model) is None:
        raise ModelError(
            f"{task} is made of sentences, and this model has no tokenizer; induction and toy-ioi need none."
        )


def _texts(given: Any) -> list[str]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise MismatchError(f"names are {told(given)}; give a list of names.")
    listed = list(given)
    for each in listed:
        if not isinstance(each, str) or not each.strip():
            raise MismatchError(f"names hold {told(each)}; give texts of one word.")
    return list(dict.fromkeys(each.strip() for each in listed))


def _single_tokens(model: Any, task: str, words: Sequence[str], *, least: int) -> list[str]:
    """The words that are a token of their own inside a sentence."""
    _require_tokenizer(model, task)
    found = {word: next_token(model, "Then the", f" {word}") for word in words}
    single = [word for word, token in found.items() if token is not None]
    if len(single) < least:
        raise MismatchError(
            f"only {len(single)} of the {len(words)} words that {task} asks for, such as {words[0]!r:.30}, are single "
            f"tokens for this model's tokenizer, and {least} are needed; take a model with more English tokens."
        )
    return single


def _example(model: Any, clean: str, corrupted: str, answers: Sequence[str], wrong: Sequence[str]) -> Example | None:
    """The example of these texts; None where positions do not correspond, or an answer is not a token there."""
    tokens, twin = ids_of_text(model, clean), ids_of_text(model, corrupted)
    right, others = ([next_token(model, clean, each) for each in words] for words in (answers, wrong))
    if len(tokens) != len(twin) or None in right or None in others:
        return None
    return Example(
        tokens, twin, [each for each in right if each is not None], [each for each in others if each is not None]
    )
