"""Class names to a model's class ids: by name, by ImageNet wnid, by number — or not at all.

Folders are never numbered alphabetically: that gives ids which look right and are not the model's.
"""

import csv
import io
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from ablation_lens.corpora.files import opened
from ablation_lens.errors import CorpusError
from ablation_lens.escaping import shorten
from ablation_lens.names import close_to

LABELS_LIMIT = 1 << 26
"""Bytes of a labels file: a row for every image of ImageNet's training set are 50 million."""

_WNID = re.compile(r"n\d{8}(?!\d)")

# In ILSVRC-2012 the class id is the rank of the wnid. These ranks recognise a complete set of its 1000 wnids
# and a model with its 1000 labels in that order; the list itself is not needed.
_ILSVRC_2012 = {
    0: ("n01440764", "tench"),
    1: ("n01443537", "goldfish"),
    207: ("n02099601", "golden retriever"),
    340: ("n02391049", "zebra"),
    817: ("n04285008", "sports car"),
    963: ("n07873807", "pizza"),
    999: ("n15075141", "toilet tissue"),
}

GIVE_A_TABLE = (
    "give labels=FILE (--labels): a CSV with the columns file,label (a label is a class name or id of the model; "
    "a class folder's name may stand for its files), or ImageNet's own list of lines 'n01440764 tench, Tinca tinca'"
)


@dataclass(frozen=True)
class LabelMap:
    """Class names as a corpus spells them, and the model's ids for them."""

    ids: Mapping[str, int]
    rule: str

    @classmethod
    def match(
        cls,
        names: Iterable[str],
        id2label: Mapping[int, str] | None,
        where: str = "the corpus",
        *,
        by: str | None = None,
    ) -> Self:
        """Match every name by one rule, or refuse.

        The rules, tried in this order: the model's label or one of its comma-separated synonyms (case,
        spaces and punctuation do not count); an ImageNet wnid, when the model's labels carry wnids or when
        all 1000 of ILSVRC-2012 are there; the model's id as a number, counted from 0.

        Args:
            names: the class names to be matched.
            id2label: the model's labels; None accepts ids only.
            where: what the names belong to, for the error message.
            by: the one rule to try, where other names of the same column were matched before.

        Raises:
            CorpusError: when no rule matches all names.

        >>> LabelMap.match(["Tinca_tinca", "goldfish"], {0: "tench, Tinca tinca", 1: "goldfish"}).ids
        {'Tinca_tinca': 0, 'goldfish': 1}
        >>> LabelMap.match(["0", "1"], {0: "cat", 1: "dog"}).rule
        'id'
        """
        wanted = sorted(set(names))
        labels = None if id2label is None else labels_by_id(id2label)
        by_name, ambiguous = ({}, {}) if labels is None else _by_name(wanted, labels)
        candidates = {
            "name": by_name,
            "wnid": {} if labels is None else _by_wnid(wanted, labels),
            # A number that two classes are called is not an id.
            "id": {} if ambiguous else {name: int(name) for name in wanted if _is_id(name, labels)},
        }
        for rule, ids in candidates.items():
            # All names or none: beside names, "1" is a class that is called so, and not an id.
            if len(ids) == len(wanted) and by in (None, rule):
                return cls(ids, rule)
        for rule, ids in candidates.items():
            if len(ids) == len(wanted):
                raise CorpusError(
                    f"{where} holds {', '.join(map(_quoted, wanted[:3]))}, matched by {rule}, after names that were "
                    f"matched by {by}, and rules are not mixed; {GIVE_A_TABLE}."
                )
        closest = max(candidates.values(), key=len)
        missing = [name for name in wanted if name not in closest]
        raise CorpusError(_refusal(wanted, missing, ambiguous, labels, where))


def classes_in_order(names: Sequence[str], id2label: Mapping[int, str], where: str) -> tuple[list[int], str]:
    """The model's id of each of a data set's numbered classes, and the rule.

    Where names alone do not decide, equal numbering does: as many classes, at least nine in ten of them under the
    model's own number, and none under another. (A data set may not name two classes "crane", as ImageNet
    does, so one of them goes by a name that no model knows.)

    >>> others = list("abcdefghijklmnopqr")
    >>> classes_in_order(["crane (bird)", *others, "crane"], dict(enumerate(["crane", *others, "crane"])), "it")[1]
    'number, checked by name'
    """
    try:
        matched = LabelMap.match(names, id2label, where)
    except CorpusError:
        by_name, _ = _by_name(names, labels_by_id(id2label))
        agreeing = sum(by_name.get(name) == number for number, name in enumerate(names))
        if len(names) != len(id2label) or agreeing != len(by_name) or agreeing < 0.9 * len(names):
            raise
        return list(range(len(names))), "number, checked by name"
    return [matched.ids[name] for name in names], matched.rule


def class_id(name: str, id2label: Mapping[int, str]) -> int:
    """The id of one class by its name, wnid or number, in the order in which `LabelMap.match` tries them.

    >>> class_id("goldfish", {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus"})
    1
    >>> class_id("godlfish", {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus"})
    Traceback (most recent call last):
    ablation_lens.errors.CorpusError: 'godlfish' is not one of the model's 2 classes; did you mean 'goldfish'?
    """
    labels = labels_by_id(id2label)
    by_name, ambiguous = _by_name([name], labels)
    if name in ambiguous:
        raise CorpusError(
            f"{_quoted(name)} fits the ids {', '.join(map(str, ambiguous[name]))} of the model; say which by its id."
        )
    found = by_name or _by_wnid([name], labels)
    if name in found:
        return found[name]
    if _is_id(name, labels):
        return int(name)
    names = list(class_words(labels).values())
    alike = close_to(name, names)
    advice = f"did you mean {_quoted(alike[0])}?" if alike else f"give one of {', '.join(map(_quoted, names[:10]))}"
    more = "" if alike else ", …." if len(names) > 10 else "."
    raise CorpusError(f"{_quoted(name)} is not one of the model's {len(labels)} classes; {advice}{more}")


def class_words(id2label: Mapping[int, str]) -> dict[int, str]:
    """For every class its first name, where that means no other class, or its whole label, or else its number.

    >>> class_words({0: "crane, bird", 1: "crane", 2: "tench, Tinca tinca"})
    {0: 'crane, bird', 1: 'crane', 2: 'tench'}
    """
    labels = labels_by_id(id2label)
    spelled = {number: (label.split(",")[0].strip(), label, str(number)) for number, label in labels.items()}
    ids, _ = _by_name([name for first, label, _ in spelled.values() for name in (first, label)], labels)
    return {
        number: next((name for name in names[:2] if ids.get(name) == number), names[2])
        for number, names in spelled.items()
    }


def labels_by_id(id2label: Mapping[int, str]) -> dict[int, str]:
    """The model's labels, their keys as numbers: a config.json read as plain JSON has strings there."""
    try:
        return {int(key): str(value) for key, value in id2label.items()}
    except (TypeError, ValueError) as error:
        raise CorpusError(f"the model's id2label has a key that is not a number ({error}); mend it.") from error


def _refusal(
    wanted: Sequence[str],
    missing: Sequence[str],
    ambiguous: Mapping[str, list[int]],
    labels: Mapping[int, str] | None,
    where: str,
) -> str:
    shown = ", ".join(map(_quoted, missing[:3])) + (", …" if len(missing) > 3 else "")
    if labels is None:
        return f"{where} names classes ({shown}), and without the model's id2label only its class ids can be used."
    doubtful = [f"{_quoted(name)} fits the ids {ambiguous[name]}" for name in missing if name in ambiguous]
    if doubtful:
        reason = f"{'; '.join(doubtful[:3])} of the model's id2label"
    elif all(_WNID.match(name) for name in missing):
        reason = f"{shown} are ImageNet wnids, which the model's id2label does not carry"
    else:
        held = f"{len(labels)}, like {_quoted(next(iter(labels.values()), 'none'))}"
        reason = f"{shown} are not class names or ids of the model's id2label (which holds {held})"
    return f"{len(missing)} of the {len(wanted)} classes in {where} cannot be matched: {reason}; {GIVE_A_TABLE}."


def _quoted(name: str) -> str:
    # A cell of a hostile table may be as long as a book.
    return shorten(repr(name), 80)


def _plain(name: str) -> str:
    # `\W` alone would keep the underscore.
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _by_name(names: Sequence[str], labels: Mapping[int, str]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Ids by name, and the names that fit several ids (ImageNet has two cranes)."""
    # Three, the strictest first: two labels may differ in case alone, and "cardigan" is one class's label and another's
    # synonym.
    exact: dict[str, list[int]] = {}
    whole: dict[str, list[int]] = {}
    synonyms: dict[str, list[int]] = {}
    for number, label in labels.items():
        exact.setdefault(label, []).append(number)
        whole.setdefault(_plain(label), []).append(number)
        # A set, as a label that repeats a synonym ("crane, Crane") must not look like two classes.
        for synonym in {_plain(part) for part in label.split(",")}:
            synonyms.setdefault(synonym, []).append(number)
    whole.pop("", None)  # of a label that is nothing but punctuation
    synonyms.pop("", None)
    ids: dict[str, int] = {}
    ambiguous: dict[str, list[int]] = {}
    for name in names:
        # "n02085620-Chihuahua": after a wnid, the rest is the name.
        spellings = [name, rest] if (rest := _WNID.sub("", name, count=1)) and _WNID.match(name) else [name]
        hits = (
            found
            for spelling in spellings
            for found in (exact.get(spelling), whole.get(_plain(spelling)), synonyms.get(_plain(spelling)))
            if found
        )
        first = next(hits, [])
        if len(first) == 1:
            ids[name] = first[0]
        elif first:
            ambiguous[name] = sorted(first)
    return ids, ambiguous


def _by_wnid(names: Sequence[str], labels: Mapping[int, str]) -> dict[str, int]:
    wnids = {name: found.group() for name in names if (found := _WNID.match(name))}
    carried = {found.group(): number for number, label in labels.items() if (found := _WNID.search(label))}
    if carried:
        return {name: carried[wnid] for name, wnid in wnids.items() if wnid in carried}
    ranked = sorted(set(wnids.values()))
    complete = len(ranked) == len(labels) == 1000 and all(
        ranked[rank] == wnid and word in map(_plain, labels.get(rank, "").split(","))
        for rank, (wnid, word) in _ILSVRC_2012.items()
    )
    rank_of = {wnid: rank for rank, wnid in enumerate(ranked)} if complete else {}
    return {name: rank_of[wnid] for name, wnid in wnids.items() if wnid in rank_of}


def _is_id(name: str, labels: Mapping[int, str] | None) -> bool:
    # `int` refuses "²", which `isdigit` accepts, and numbers of more than 4300 digits.
    return name.isascii() and name.isdigit() and len(name) < 10 and (labels is None or int(name) in labels)


@dataclass(frozen=True)
class LabelTable:
    """A labels file: label texts by file path, file name, file stem, or class folder."""

    path: str
    labels: Mapping[str, str]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a CSV of `file,label`, with or without a header, or ImageNet's `n01440764 tench, Tinca tinca` lines.

        With a header, the column `label` is the label and the column `file` (`file_name`, `path`, …), or
        else the first other one, says whose.
        """
        with opened(Path(path)) as handle:
            content = handle.read(LABELS_LIMIT + 1)
        if len(content) > LABELS_LIMIT:
            raise CorpusError(f"the labels file {path} has more than {LABELS_LIMIT:,} bytes; give one with fewer rows.")
        try:
            return cls._of_pairs(path, _pairs(content, path))
        except UnicodeDecodeError as error:
            raise CorpusError(f"the labels file {path} cannot be read as UTF-8 text: {error}.") from error

    @classmethod
    def _of_pairs(cls, path: str | Path, pairs: Iterable[tuple[str, str]]) -> Self:
        labels: dict[str, str] = {}
        for key, label in pairs:
            key = key.replace("\\", "/").removeprefix("./").rstrip("/")
            # One copy of a label that a million rows share.
            if labels.setdefault(key, sys.intern(label)) != label:
                raise CorpusError(
                    f"the labels file {path} gives {_quoted(key)} two labels, {_quoted(labels[key])} and "
                    f"{_quoted(label)}; keep one."
                )
        if not labels:
            raise CorpusError(f"the labels file {path} holds no rows; expected a CSV with the columns file,label.")
        return cls(str(path), labels)

    def ids_of(
        self, files: Sequence[PurePosixPath], id2label: Mapping[int, str] | None, where: str
    ) -> tuple[list[int], str]:
        """The class id of every file, and the rule that its label was matched by.

        A row is found by a file's path inside the folder, its name, its stem, or its class folder. A file
        without a row is refused, and so is a row by name or stem that fits several files.
        """
        found = [self._of(file) for file in files]
        missing = [str(file) for file, hit in zip(files, found, strict=True) if hit is None]
        if missing:
            raise CorpusError(
                f"{len(missing)} of the {len(files)} images in {where} have no row in {self.path} "
                f"(first: {missing[0]}); add them, by their path inside the folder, or move them elsewhere."
            )
        hits = [hit for hit in found if hit is not None]
        shared = [key for (key, one_file), count in Counter(hits).items() if one_file and count > 1]
        if shared:
            raise CorpusError(
                f"the row {shared[0]!r} of {self.path} fits several images in {where}; "
                f"write their paths inside the folder."
            )
        keys = [key for key, _ in hits]
        # ImageNet's list gives two classes the name "crane": where all its wnids are there, their rank decides.
        ranks = _by_wnid(sorted(self.labels), labels_by_id(id2label)) if id2label else {}
        if all(key in ranks for key in keys):
            return [ranks[key] for key in keys], "wnid"
        matched = LabelMap.match((self.labels[key] for key in keys), id2label, self.path)
        return [matched.ids[self.labels[key]] for key in keys], matched.rule

    def _of(self, file: PurePosixPath) -> tuple[str, bool] | None:
        # The most exact row first: one for the file wins over one for its folder.
        for key, one_file in ((str(file), True), (file.name, True), (file.stem, True), (file.parent.name, False)):
            if key in self.labels:
                return key, one_file
        return None


def _pairs(content: bytes, path: str | Path) -> Iterator[tuple[str, str]]:
    """The rows of a labels file: whose, and which."""

    def text() -> io.TextIOWrapper:
        # Spreadsheets write a byte order mark; it would become part of the first column's name. Read anew, line by
        # line: a list of a million rows takes more room than the file.
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")

    lines = (line.strip() for line in text())
    if all(re.match(r"n\d{8}\s", line) for line in lines if line):
        return ((line[:9], line[9:].strip()) for line in map(str.strip, text()) if line)
    return _csv_pairs(text(), path)


def _csv_pairs(text: Iterable[str], path: str | Path) -> Iterator[tuple[str, str]]:
    # Without `strict`, a quote that is never closed would take the rest of the file into one label.
    reader = csv.reader(text, strict=True)
    rows: Iterator[list[str]] = (row for row in reader if any(cell.strip() for cell in row))
    who, what, width = 0, 1, 2
    try:
        first = next(rows, [])
        header = [cell.strip().casefold() for cell in first]
        if "label" in header and len(header) > 1:
            what = header.index("label")
            usual = ("file", "file_name", "filename", "path", "image")
            who = next((header.index(name) for name in usual if name in header), 0 if what else 1)
            width = len(header)
        elif first:
            # A header of two columns without "label" becomes a row, which does no harm: rows that fit no file are
            # ignored.
            rows = itertools.chain([first], rows)
        for number, row in enumerate(rows, 1):
            if len(row) != width:
                raise CorpusError(
                    f"row {number} of the labels file {path} (line {reader.line_num}) has {len(row)} columns, expected "
                    f"{width}: file,label (a label that holds commas goes in double quotes)."
                )
            yield row[who].strip(), row[what].strip()
    except csv.Error as error:
        raise CorpusError(f"the labels file {path} is not a CSV file at line {reader.line_num}: {error}.") from error
