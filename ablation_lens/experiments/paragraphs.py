"""`pairs_of`: documents cut at a blank line, into what was read and how it goes on."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from ablation_lens.corpora import TextDocument
from ablation_lens.errors import CorpusError, MismatchError, ModelError
from ablation_lens.experiments.grabbing import require_causal
from ablation_lens.hooked import tokenizer_of
from ablation_lens.tasks.inputs import whole
from ablation_lens.tasks.plans import BatchPlan, TextItem
from ablation_lens.tasks.tasks import Task, task_for

NO_LINE = "without a blank line"
IN_TOKEN = "whose blank lines are inside of tokens"
SHORT = "with too short paragraphs"
AGAIN = "that begin as another one"
LEFT_OUT = (NO_LINE, IN_TOKEN, SHORT, AGAIN)
"""Why documents are left out."""


@dataclass(frozen=True)
class Pair:
    """One document, as token ids.

    Attributes:
        id: the document's.
        donor: the beginning of text, the first paragraph, and the blank line after it.
        continuation: the paragraph after that.
    """

    id: str
    donor: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Pairs:
    """Documents cut at a blank line; made by `pairs_of`.

    Attributes:
        pairs: the documents.
        blank: the beginning of text and a blank line, alone: what a transfer is put into.
        newlines: how many tokens of it are the blank line.
        judged_on: where the documents are from, in words.
        left_out: how many documents were left out, by why.
    """

    pairs: tuple[Pair, ...]
    blank: tuple[int, ...]
    newlines: int
    judged_on: str
    left_out: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @cached_property
    def digest(self) -> str:
        """A digest of every token."""
        facts = [self.blank, self.newlines, [[pair.donor, pair.continuation] for pair in self.pairs]]
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Pairs({len(self)} documents of {self.judged_on}{told_left_out(self.left_out)})"


def told_left_out(left_out: Sequence[tuple[str, int]]) -> str:
    """In words, after something else."""
    return "".join(f"; {count:,} {why} left out" for why, count in left_out)


def pairs_of(model: Any, given: Any = None, split: str = "evaluate", *, count: int = 200, least: int = 8) -> Pairs:
    r"""Cut documents at their first blank line that has a paragraph of `least` tokens before and after it.

    The blank line must end where a token ends: then the last token of the first part is the same in every document,
    and also in a prompt of a blank line alone. Documents for which that is not so are counted.

    Args:
        model: a causal model with a tokenizer.
        given: a task, a plan, a list of texts, or the name of a corpus; None for the one of `task_for`.
        split: of a task or corpus.
        count: how many documents at most.
        least: tokens that both paragraphs need.

    >>> import ablation_lens as al
    >>> texts = ["A first paragraph, of some words.\n\nAnd how it goes on, in some more.", "One paragraph alone."]
    >>> pairs_of(al.load_model("tiny-mistral"), texts)
    Pairs(1 documents of own texts; 1 without a blank line left out)
    """
    require_causal(model)
    if isinstance(given, Pairs):
        _require_of(model, given)
        return given
    count, least = whole(count, "count"), max(1, whole(least, "least"))
    if count < 1:
        raise CorpusError(f"count={count} is not possible; give 1 or more.")
    judged_on, documents = _documents(model, given, split)
    tokenizer = tokenizer_of(model)
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]

    @cache
    def text_of(token: int) -> str:
        return str(tokenizer.decode([token]))

    newlines = _newlines(tokenizer, text_of)
    limit = task_for(model, ["x"]).context
    found: list[Pair] = []
    seen: set[tuple[int, ...]] = set()
    left_out: Counter[str] = Counter()
    for name, tokens in documents:
        ids = [*begin, *tokens[len(begin) if tokens[: len(begin)] == begin else 0 :]][:limit]
        cut = _cut(ids, len(begin), newlines, text_of, least)
        if isinstance(cut, str):
            left_out[cut] += 1
            continue
        donor, end = tuple(ids[: cut[0]]), cut[1]
        if donor in seen:  # the wrong donor of one would be the right one of another
            left_out[AGAIN] += 1
            continue
        seen.add(donor)
        found.append(Pair(name, donor, tuple(ids[cut[0] : end])))
        if len(found) == count:
            break
    return Pairs(tuple(found), (*begin, *newlines), len(newlines), judged_on, tuple(left_out.items()))


def _require_of(model: Any, pairs: Pairs) -> None:
    """Refuse what was cut for a model that reads other token ids: it would be read as another text."""
    tokenizer, vocabulary, context = tokenizer_of(model), int(model.cfg.d_vocab), int(model.cfg.n_ctx)
    texts = [pairs.blank, *((*pair.donor, *pair.continuation) for pair in pairs)]
    fits = all(len(ids) <= context and min(ids) >= 0 and max(ids) < vocabulary for ids in texts)
    if fits and tokenizer is not None:
        begin = tokenizer.bos_token_id
        line = "".join(str(tokenizer.decode([token])) for token in pairs.blank[-pairs.newlines :])
        fits = bool(line) and not line.strip("\n") and (begin is None or pairs.blank[0] == begin)
    if not fits:
        raise MismatchError(
            "these documents were cut for another model: their token ids are other texts for this one, or too long; "
            "cut them with pairs_of(model, …)."
        )


def _documents(model: Any, given: Any, split: str) -> tuple[str, Iterator[tuple[str, list[int]]]]:
    if isinstance(given, BatchPlan):
        items = [item for item in given.items if isinstance(item, TextItem)]
        return f"{given.corpus.name}/{given.corpus.split}", ((item.id, _plain(item)) for item in items)
    own = isinstance(given, list | tuple)
    task = given if isinstance(given, Task) else task_for(model, given)
    corpus = task.corpus if own else task.corpus.restricted_to(split)
    if own:
        corpus = corpus.restricted_to("all")
    tokenizer, limit = tokenizer_of(model), task.context

    def read() -> Iterator[tuple[str, list[int]]]:
        for document in corpus:
            if not isinstance(document, TextDocument):
                raise CorpusError(f"{corpus.name} holds images, and a blank line is looked for in texts.")
            options = {"truncation": True, "max_length": limit, "return_special_tokens_mask": True}
            encoded = tokenizer(document.text, **options)
            ids, special = list(encoded["input_ids"]), encoded["special_tokens_mask"]
            while ids and special[len(ids) - 1]:  # what is put after a text
                del ids[-1]
            yield document.id, ids

    return corpus.name if own else f"{corpus.name}/{split}", read()


def _plain(item: TextItem) -> list[int]:
    ids, special = list(item.tokens), set(item.special)
    while ids and len(ids) - 1 in special:
        del ids[-1]
    return ids


def _newlines(tokenizer: Any, text_of: Callable[[int], str]) -> list[int]:
    """The tokens of a blank line between two words: one, or one for each line feed."""
    # Not of the blank line alone, before which some tokenizers put a space.
    ids = tokenizer("a\n\nb", add_special_tokens=False)["input_ids"]
    found = [int(each) for each in ids if text_of(each) and not text_of(each).strip("\n")]
    if "".join(map(text_of, found)) != "\n\n":
        raise ModelError("this model's tokenizer has no tokens for a blank line between two words.")
    return found


def _cut(
    ids: Sequence[int], begin: int, newlines: Sequence[int], text_of: Callable[[int], str], least: int
) -> tuple[int, int] | str:
    """Where the continuation starts and ends; or why there is none."""
    width = len(newlines)
    texts = [text_of(token) for token in ids]
    lines = [
        place
        for place in range(begin + 1, len(ids) - width)
        if list(ids[place : place + width]) == list(newlines) and not texts[place + width].startswith("\n")
    ]
    if not lines:
        return IN_TOKEN if "\n\n" in "".join(texts).rstrip("\n") else NO_LINE
    for line in lines:
        start = line + width
        end = _end(ids, texts, start, newlines)
        if line - begin >= least and end - start >= least:
            return start, end
    return SHORT


def _end(ids: Sequence[int], texts: Sequence[str], start: int, newlines: Sequence[int]) -> int:
    """Where the paragraph ends: before the next blank line, or with the token that holds it."""
    for place in range(start, len(ids)):
        if list(ids[place : place + len(newlines)]) == list(newlines):
            return place
        if "\n\n" in texts[place]:
            return place + 1 if texts[place].strip("\n") else place
    return len(ids)
