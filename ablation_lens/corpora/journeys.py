"""Two-paragraph texts in which the header of the first paragraph fixes what the second is about.

A header names six things about a journey: who, where to, by what, in which weather, with which animal and carrying
what. Eight values each make 2¹⁸ headers. Up to two sentences follow that say nothing of them, then the only blank line,
then six sentences, each about two of the six things. So whoever writes the second paragraph has to know all of the
header from its first word on, and whoever reads it alone learns the header little by little: there is a plan to carry
across the blank line.

Everything is invented here, by code: the texts are the same on every machine and every Python.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from types import MappingProxyType

DOCUMENTS = 12_000

THINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "who": ("Anna", "Boris", "Clara", "David", "Edith", "Felix", "Greta", "Henry"),
        "place": ("harbour", "castle", "forest", "market", "mill", "island", "village", "tower"),
        "vehicle": ("bicycle", "sledge", "wagon", "boat", "tram", "lorry", "balloon", "train"),
        "weather": ("snow", "rain", "fog", "wind", "frost", "sunshine", "thunder", "hail"),
        "animal": ("dog", "cat", "goat", "parrot", "rabbit", "donkey", "goose", "monkey"),
        "load": ("violin", "lantern", "mirror", "basket", "kettle", "ladder", "carpet", "clock"),
    }
)
"""What a header names, and the values of each."""

# `[a|b]` is one of its alternatives, `<who>` a value.
_HEADERS = (
    "<who> goes to the <place> by <vehicle> in <weather>, with a <animal> and a <load>.",
    "By <vehicle> to the <place>: <who>, a <animal> and a <load>, in <weather>.",
    "<who>, a <animal>, a <load>: to the <place> in <weather>, by <vehicle>.",
)
_FILLERS = (
    "This [page|story|note] is [one|a small one|the last] of [many|several|a long row].",
    "[Nobody|Hardly anybody] [asked for|waited for|remembers] it, but here it [is|stands].",
    "[Such|These] days are [short|long|alike], and [much|little] is [told|written] of them.",
    "It was [written|found|copied] [last year|long ago|one evening] and [never|once] [read|printed].",
    "What [follows|comes next] is [true|nearly true], as far as [anybody knows|we can tell].",
)
_CLAUSES: Mapping[str, str] = MappingProxyType(
    {
        "who": "<who> [sang|rested|waited]",
        "place": "the <place> was [near|far|quiet]",
        "vehicle": "the <vehicle> [creaked|stopped|shook]",
        "weather": "the <weather> [came|went|grew]",
        "animal": "the <animal> [slept|ate|listened]",
        "load": "the <load> [fell|shone|broke]",
    }
)
_CIRCUMSTANCES: Mapping[str, str] = MappingProxyType(
    {
        "who": "[behind|without] <who>",
        "place": "[at|beyond] the <place>",
        "vehicle": "[on|beside] the <vehicle>",
        "weather": "[in|after] the <weather>",
        "animal": "[with|for] the <animal>",
        "load": "[under|over] the <load>",
    }
)


def journey_documents() -> Iterator[str]:
    """The documents of the `journeys` corpus.

    >>> first, second = next(journey_documents()).split("\\n\\n")
    >>> first.split(".")[0]
    'By train to the mill: Edith, a rabbit and a violin, in hail'
    >>> second.split(". ")[:2]
    ['The hail came over the violin', 'The train shook after the hail']
    """
    return map(journey, range(DOCUMENTS))


def journey(number: int) -> str:
    """One of the documents, by its number."""
    random = Random(f"journeys/{number}")

    def below(limit: int) -> int:
        # Of all that `Random` offers, only `random()` promises the same numbers in every Python.
        return int(random.random() * limit)

    def shuffled(items: Sequence[str]) -> list[str]:
        left = list(items)
        return [left.pop(below(len(left))) for _ in items]

    plan = {thing: values[below(len(values))] for thing, values in THINGS.items()}

    def written(template: str) -> str:
        told = re.sub(r"\[(.+?)\]", lambda found: (options := found[1].split("|"))[below(len(options))], template)
        told = re.sub("<(.+?)>", lambda found: plan[found[1]], told)
        return told[0].upper() + told[1:]

    first = [_HEADERS[below(len(_HEADERS))], *shuffled(_FILLERS)[: below(3)]]
    # Every thing is in two sentences: as what one is about, and as a circumstance of another.
    order = shuffled(tuple(THINGS))
    turn = 1 + below(len(order) - 1)
    second = []
    for thing, other in zip(order, order[turn:] + order[:turn], strict=True):
        clause, circumstance = _CLAUSES[thing], _CIRCUMSTANCES[other]
        second.append(f"{clause} {circumstance}." if below(2) else f"{circumstance}, {clause}.")
    return "\n\n".join(" ".join(map(written, sentences)) for sentences in (first, second))
