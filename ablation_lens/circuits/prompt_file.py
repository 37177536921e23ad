"""A file of prompts: auto-circuit's JSON, and what is possible in one.

`{"prompts": [{"clean", "corrupt", "answers", "wrong_answers"}, …]}`: prompts and answers are token ids or texts. Added
to that schema: `name`, and `asked` of a prompt, the position that is asked about where it is not the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.files import parse_json, read_text
from ablation_lens.tasks.inputs import told
from ablation_lens.tasks.prompts import id_of_answer, ids_of_text

MOST_BYTES = 2**26
"""Of a file."""


@dataclass(frozen=True)
class PromptFile:
    """What a file holds."""

    name: str
    rows: list["Row"]
    seq_labels: tuple[str, ...]
    word_idxs: dict[str, int]

    @classmethod
    def read(cls, path: Path, model: Any) -> "PromptFile":
        """A file whose texts, if it has any, `model` reads; anything impossible is a `FileFormatError`."""
        try:
            content = parse_json(read_text(path, MOST_BYTES))
        except ValueError as error:
            raise FileFormatError(f"{path} is not a file of prompts: it is not JSON ({error!s:.100}).") from error
        listed = content.get("prompts") if isinstance(content, dict) else None
        if not isinstance(listed, list) or not listed:
            raise FileFormatError(f"{path} is not a file of prompts: it has no list of them under 'prompts'.")
        rows = []
        for number, each in enumerate(listed):
            try:
                rows.append(Row.of(each, model))
            except AblationLensError as error:
                raise FileFormatError(f"prompt {number} of {path} cannot be used: {error}") from error
        for part, what in (("corrupt", "corrupted twin"), ("wrong", "wrong answer")):
            lacking = [number for number, row in enumerate(rows) if not getattr(row, part)]
            if lacking and len(lacking) < len(rows):
                raise FileFormatError(
                    f"prompt {lacking[0]} of {path} has no {what}, and others have; give all or none."
                )
        return cls(rows=rows, **_about(content, path))


@dataclass(frozen=True)
class Row:
    """A prompt as a file has it, its texts read."""

    clean: list[int]
    corrupt: list[int]
    answers: list[int]
    wrong: list[int]
    asked: int | None

    @classmethod
    def of(cls, plain: Any, model: Any) -> "Row":
        """What a file says of one prompt, checked."""
        if not isinstance(plain, dict):
            raise FileFormatError(
                f"it is {told(plain)}, not an object of 'clean', 'corrupt', 'answers', 'wrong_answers'."
            )
        for name in ("clean", "answers"):
            if name not in plain:
                raise FileFormatError(f"it has no {name!r}.")
        clean = _prompt_ids(plain["clean"], "clean", model)
        corrupt = [] if plain.get("corrupt") is None else _prompt_ids(plain["corrupt"], "corrupt", model)
        if corrupt and len(corrupt) != len(clean):
            raise FileFormatError(
                f"it has {len(clean):,} tokens and its corrupted twin {len(corrupt):,}, so that their positions do not "
                "correspond."
            )
        answers = _answer_ids(plain["answers"], "answers", model)
        wrong = _answer_ids(plain.get("wrong_answers") or [], "wrong_answers", model)
        if not answers:
            raise FileFormatError("it has no answer.")
        if both := set(answers) & set(wrong):
            raise FileFormatError(f"{min(both)} is among its answers and among its wrong answers.")
        asked = plain.get("asked")
        if asked is not None and (type(asked) is not int or not 0 <= asked < len(clean)):
            raise FileFormatError(f"it is asked at {told(asked)}, which is not one of its {len(clean):,} positions.")
        return cls(clean, corrupt, answers, wrong, asked)


def _prompt_ids(plain: Any, name: str, model: Any) -> list[int]:
    if isinstance(plain, str):
        if model is None:
            raise FileFormatError(f"{name!r} is a text; give the model that reads it: Prompts.load(path, model).")
        return ids_of_text(model, plain)
    if not isinstance(plain, list) or not plain:
        raise FileFormatError(f"{name!r} is {told(plain) if plain else 'empty'}; it is a text or a list of token ids.")
    return [_id(each, name, model) for each in plain]


def _answer_ids(plain: Any, name: str, model: Any) -> list[int]:
    if not isinstance(plain, list):
        raise FileFormatError(f"{name!r} is {told(plain)}; it is a list of texts or token ids.")
    if model is None and any(isinstance(each, str) for each in plain):
        raise FileFormatError(f"{name!r} holds texts; give the model that reads them: Prompts.load(path, model).")
    return [id_of_answer(model, each) if isinstance(each, str) else _id(each, name, model) for each in plain]


def _id(plain: Any, name: str, model: Any) -> int:
    known = getattr(getattr(model, "cfg", None), "d_vocab", None) or 2**31
    if type(plain) is not int or not 0 <= plain < known:  # True is an int, too
        among = "" if known == 2**31 else f" of the model, which has {known:,}"
        raise FileFormatError(f"{name!r} holds {told(plain)}, which is not a token id{among}.")
    return plain


def _about(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    name, labels, places = content.get("name"), content.get("seq_labels") or [], content.get("word_idxs") or {}
    possible = (
        isinstance(name, str | None)
        and isinstance(labels, list)
        and all(isinstance(each, str) for each in labels)
        and isinstance(places, dict)
        and all(type(each) is int for each in places.values())
    )
    if not possible:
        raise FileFormatError(
            f"what {path} says about its prompts is not possible: 'name' is a text, 'seq_labels' a list of texts, "
            "'word_idxs' an object of whole numbers."
        )
    return {"name": path.stem if name is None else name, "seq_labels": tuple(labels), "word_idxs": places}
