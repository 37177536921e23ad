"""Text and image sources in a fixed order, with disjoint splits.

`open_corpus` takes a name, a path or a hub address and gives a `Corpus`; iterating one gives a `Reading`, which
hands out `TextDocument`s or `ImageDocument`s one at a time and can say what it handed out (`record`, `digest`).
Nothing is copied, and nothing is downloaded that is not read.

- `documents`: `open_corpus`, `Corpus`, `Reading`; `options`: what may be asked for; `splits`: which document is where.
- `named`: corpora with a name, a function each; `embedded`, `journeys`: the texts of those that need no network,
  which `keeping` keeps in the user's cache folder where they take seconds to make; `hub`: data sets.
- `local`: what a path is, and who reads it: `text_files`, `tables` (columns), `images`; `files`: finding and opening;
  `pipes`: what a shell hands over.
- `own`: lists of texts and data sets that somebody holds.
- `choice`: documents chosen by their label.
- `streams`: rows of a table that are read one after another, Parquet too; `labels`: names of classes to a model's ids.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from ablation_lens.corpora.documents import (
    Corpus,
    CorpusSizeWarning,
    CorpusWarning,
    CorruptImageWarning,
    Document,
    ImageDocument,
    Kind,
    Reading,
    TextDocument,
    warn_when_short,
)
from ablation_lens.corpora.hub import HubAddress, open_hub
from ablation_lens.corpora.labels import LabelMap
from ablation_lens.corpora.local import is_there, missing_path, open_local
from ablation_lens.corpora.named import NAMED
from ablation_lens.corpora.options import Block, Errors, Options
from ablation_lens.corpora.own import is_dataset, own_corpus

__all__ = [
    "Corpus",
    "CorpusSizeWarning",
    "CorpusWarning",
    "CorruptImageWarning",
    "Document",
    "ImageDocument",
    "LabelMap",
    "Reading",
    "TextDocument",
    "describe",
    "is_dataset",
    "names",
    "open_corpus",
    "own_corpus",
    "warn_when_short",
]


def names() -> tuple[str, ...]:
    """The corpora that have a name.

    >>> names()
    ('stdlib', 'digits', 'pile', 'pile-10k', 'wikitext', 'imagenet-1k', 'stdlib-code', 'digits-inverted', 'journeys')
    """
    return tuple(NAMED)


def describe() -> dict[str, str]:
    """A line about each named corpus.

    >>> describe()["pile-10k"]
    'the first ten thousand documents of The Pile (hub, streamed)'
    """
    return {name: about for name, (about, _, _) in NAMED.items()}


def open_corpus(
    name_or_path: str | Path,
    *,
    split: str = "all",
    kind: Kind | None = None,
    labels: str | Path | None = None,
    id2label: Mapping[int, str] | None = None,
    block: Block | None = None,
    column: str | None = None,
    label_column: str | None = None,
    errors: Errors = "strict",
) -> Corpus:
    """Open a corpus by name, path or hub address.

    Looked up in this order: a named corpus (`names()`; write `./pile` for a folder of that name), a path that
    exists, a hub data set `owner/name[:config][:split]`. A path is a text file, a folder of text files, JSON lines
    (`.jsonl`; like text files, `.gz` or `.zst` too), Parquet, or a folder of images. Text may come through a pipe from
    the shell, `/dev/stdin` or `<(…)`: it is kept while the process lives, up to a gigabyte. Other pipes, devices and
    sockets are refused.

    What is held of a local file at a time has a bound, a gigabyte at worst, whatever it holds or expands to: of a text
    the first million characters are kept (`TextDocument.cut` says so; its split goes by the whole), a line of JSON may
    have 33 million, an image 64 million pixels, a labels file 64 megabytes. Parquet takes a few times its largest value
    (its largest page), and is refused where a small file would become a large one.

    Args:
        name_or_path: what to open.
        split: "collect" or "evaluate" (embedded corpora also "train"): disjoint by content; "all" for everything.
        kind: "text" or "image", where it must be one of them; decides in a folder that holds both.
        labels: a labels file for the images of a folder: a CSV `file,label`. A label is a name or id of the model; one
            rule must fit all of them.
        id2label: the model's labels. With them every image of a folder or data set gets the model's class id, or the
            corpus is refused; without them (and without `labels`) images carry no label.
        block: how a text file becomes documents: "file", "paragraph" (between blank lines) or "line". A folder's
            files are one document each; a single file is cut into paragraphs.
        column: the column of a table that holds the text or image.
        label_column: the column that holds the label of every row: text, number or truth value. `task.only` and
            `task.except_` choose texts by it; of images it holds the class, instead of the column `label`. A text that
            stands there twice, with two labels, is a document of each.
        errors: "strict" refuses bytes that are not UTF-8; "replace" puts U+FFFD there, and is recorded.

    Raises:
        CorpusError: when nothing of that name is there, or it cannot be used as asked.

    >>> corpus = open_corpus("stdlib", split="evaluate")
    >>> reading = iter(corpus)
    >>> document = next(reading)
    >>> len(document.text) > 100, reading.record(size_requested=1, size_obtained=1, unit="documents").documents
    (True, 1)
    """
    name = str(name_or_path)
    options = Options(kind, block, column, errors, labels, id2label, label_column)
    if name in NAMED and not isinstance(name_or_path, Path):
        _, held, opener = NAMED[name]
        options.require_kind(name, held)  # before the network is asked
        return Corpus(name, opener(options), split)
    path = Path(name_or_path)
    with contextlib.suppress(RuntimeError):  # "~somebody", who has no home here
        path = path.expanduser()
    if is_there(path):
        return Corpus(name, open_local(path, options), split)
    address = None if name.startswith((".", "/", "~")) else HubAddress.parse(name)
    if address is None:
        raise missing_path(path, names())
    return Corpus(name, open_hub(address, options, hint=f" There is no local path {name!r} either."), split)
