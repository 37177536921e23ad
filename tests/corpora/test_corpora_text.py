"""Local texts: text files, folders, JSON lines, Parquet; what is read, what is refused, in which order."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from ablation_lens.corpora import Corpus, TextDocument, open_corpus
from ablation_lens.errors import CorpusError

STORY = "One.\n\n\nTwo, first line\ntwo, second line\n \nThree."


def texts(corpus: Corpus) -> list[str]:
    documents = list(corpus)
    assert all(isinstance(document, TextDocument) for document in documents)
    return [document.text for document in documents if isinstance(document, TextDocument)]


def counts(corpus: Corpus) -> tuple[int, int]:
    reading = iter(corpus)
    handed_out = len(list(reading))
    assert handed_out == reading.documents
    return reading.documents, reading.empty


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (None, ["One.", "Two, first line\ntwo, second line", "Three."]),
        ("paragraph", ["One.", "Two, first line\ntwo, second line", "Three."]),
        ("line", ["One.", "Two, first line", "two, second line", "Three."]),
        ("file", [STORY]),
    ],
)
def test_a_text_file_is_cut_as_asked(tmp_path: Path, block: str | None, expected: list[str]) -> None:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    assert texts(open_corpus(path, block=block)) == expected


def test_a_folder_gives_one_document_per_file_sorted_by_the_bytes_of_the_path(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.md", "a.txt", "B.rst", "ä.txt", "a/b/c.txt", "10.txt", "9.txt"]
    for order in (names, names[::-1]):
        root = tmp_path / order[0].replace("/", "_") / "corpus"
        for name in order:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"This is {name}.")
        (root / ".hidden.txt").write_text("never")
        (root / "notes.dat").write_bytes(b"\0never")
        documents = list(open_corpus(root))
        assert [document.id for document in documents] == sorted(names, key=str.encode)
        assert [document.text for document in documents] == [f"This is {document.id}." for document in documents]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "inside").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.txt").write_text("Far away.")
    (tmp_path / "corpus" / "inside" / "near.txt").write_text("Near.")
    (tmp_path / "corpus" / "inside" / "up").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    assert texts(open_corpus(tmp_path / "corpus")) == ["Near.", "Far away."]


def test_newlines_and_a_byte_order_mark_do_not_make_another_document(tmp_path: Path) -> None:
    (tmp_path / "unix.txt").write_bytes("é\nsecond\n".encode())
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + "é\r\nsecond\r\n".encode())
    (tmp_path / "mac.txt").write_bytes("é\rsecond\r".encode())
    assert texts(open_corpus(tmp_path)) == ["é\nsecond"] * 3
    # Only line ends end a line: not form feeds, not U+2028.
    (tmp_path / "odd.txt").write_text("a\fb\u2028c\x85d")
    assert texts(open_corpus(tmp_path / "odd.txt", block="line")) == ["a\fb\u2028c\x85d"]


def test_empty_files_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text(" \n\t\n")
    (tmp_path / "c.txt").write_text("Something.")
    assert counts(open_corpus(tmp_path)) == (1, 2)
    assert counts(open_corpus(tmp_path, block="paragraph")) == (1, 2)
    assert counts(open_corpus(tmp_path, block="line")) == (1, 2)


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "empty.jsonl.zst", "empty.txt.gz"])
def test_a_corpus_without_documents_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CorpusError, match=r"empty.*(no documents|no rows)"):
        list(open_corpus(tmp_path / name))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no file of a known sort"):
        open_corpus(tmp_path)


def test_bytes_that_are_not_utf8_are_named_with_their_offset(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("first line é\ncaf".encode() + b"\xe9 au lait\n")
    with pytest.raises(CorpusError, match=r"latin\.txt is not UTF-8 text: byte 0xe9 at offset 17.*errors='replace'"):
        list(open_corpus(path))
    reading = iter(open_corpus(path, errors="replace"))
    assert [document.text for document in reading] == ["first line é\ncaf\ufffd au lait"]
    record = reading.record(size_requested=None, size_obtained=1, unit="documents")
    assert ("errors", "replace") in record.settings
    assert "errors" not in dict(open_corpus(path).source.settings)


def test_utf16_is_recognised_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "wide.txt").write_bytes("Hello.".encode("utf-16"))
    with pytest.raises(CorpusError, match="looks like UTF-16"):
        list(open_corpus(tmp_path / "wide.txt", block="line"))


def rows_file(path: Path, rows: list[object]) -> Path:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = zstandard.compress(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.ndjson", "we[1]rd *.jsonl"])
def test_json_lines_in_every_wrapping(tmp_path: Path, name: str) -> None:
    # Dates stay texts, later rows may have other fields, and one text is longer than any buffer, and cut.
    rows: list[object] = [
        {"text": "2020-01-01", "meta": {"a": 1}},
        {"text": "x" * 3_000_000, "meta": "other"},
        {"text": "line\r\nline", "extra": None},
        {"text": None},
        {"meta": 3},
    ]
    path = rows_file(tmp_path / name, rows)
    corpus = open_corpus(path)
    assert texts(corpus) == ["2020-01-01", "x" * 1_000_000, "line\nline"]
    assert counts(corpus) == (3, 2)


def test_several_zstandard_frames_are_one_file_and_a_truncated_one_is_refused(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{number} {os.urandom(40).hex()}"}).encode() + b"\n" for number in range(2000)]
    whole = zstandard.compress(b"".join(lines[:900])) + zstandard.compress(b"".join(lines[900:]))
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(whole)
    assert texts(open_corpus(path)) == [json.loads(line)["text"] for line in lines]
    path.write_bytes(whole[:-100])
    with pytest.raises(CorpusError, match=r"rows\.jsonl\.zst cannot be read \(the Zstandard stream is truncated\)"):
        list(open_corpus(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(b'{"text": "not compressed"}\n')
    with pytest.raises(CorpusError, match=r"rows\.jsonl.* cannot be read"):
        open_corpus(path)
    path.write_bytes(gzip.compress(b'{"text": "%s"}\n' % os.urandom(3000).hex().encode())[:-20])
    with pytest.raises(CorpusError, match=r"rows\.jsonl.* cannot be read"):
        list(open_corpus(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', r"line 2 of .*bad\.jsonl is not JSON"),
        (b'[{"text": "a"}]\n', r"line 1 of .*bad\.jsonl is a JSON list; expected one object per line"),
        (b'{"text": "a"}\n{"text": 3}\n', r"'text' of row bad\.jsonl:2 .* is of type int, expected text"),
        (b'{"text": "a\\ud800"}\n', r"row bad\.jsonl:1 .* half of a surrogate pair"),
        (b'{"text": "a"}\n{"text": "\xe9"}\n', r"byte 0xe9 at offset 24"),
        (b"[" * 200_000, r"line 1 of .*bad\.jsonl is not JSON"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(open_corpus(tmp_path / "bad.jsonl"))


def test_half_a_surrogate_pair_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert texts(open_corpus(path, errors="replace")) == ["a\ufffdb \U0001f600"]


def parquet_file(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_parquet_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    parquet_file(tmp_path / "data" / "part-1.parquet", n=[1, 2, 3], text=["a", "b", None])
    parquet_file(tmp_path / "data" / "part-0 [x].parquet", n=[0], text=["first"])
    (tmp_path / "README.md").write_text("A README beside data is not data.")
    corpus = open_corpus(tmp_path)
    assert [document.id for document in corpus] == [
        "data/part-0 [x].parquet:1",
        "data/part-1.parquet:1",
        "data/part-1.parquet:2",
    ]
    assert texts(corpus) == ["first", "a", "b"]
    assert counts(corpus) == (3, 1)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "a.parquet", text=["a"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorpusError, match=r"a\.parquet in .* cannot be read"):
        open_corpus(path)
    parquet_file(tmp_path / "good" / "a.parquet", text=["a"])
    parquet_file(tmp_path / "good" / "b.parquet", prose=["b"])
    with pytest.raises(CorpusError, match=r"b\.parquet has no column 'text'"):
        list(open_corpus(tmp_path / "good"))


@pytest.mark.parametrize("make", ["jsonl", "parquet"])
def test_the_text_column_is_guessed_or_asked_for(tmp_path: Path, make: str) -> None:
    def table(name: str, **columns: list[object]) -> Path:
        if make == "parquet":
            return parquet_file(tmp_path / f"{name}.parquet", **columns)
        rows: list[object] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return rows_file(tmp_path / f"{name}.jsonl", rows)

    assert texts(open_corpus(table("content", title=["t"], content=["c"]))) == ["c"]
    assert texts(open_corpus(table("both", content=["c"], text=["t"]))) == ["t"]
    assert texts(open_corpus(table("only", n=[1], prose=["p"]))) == ["p"]
    unclear = table("unclear", prose=["p"], verse=["v"], n=[1])
    with pytest.raises(
        CorpusError, match=r"more than one text column.*column=NAME.*'prose' \(text\), 'verse' \(text\), 'n' \(n"
    ):
        open_corpus(unclear)
    corpus = open_corpus(unclear, column="verse")
    assert texts(corpus) == ["v"]
    assert ("column", "verse") in corpus.source.settings
    with pytest.raises(CorpusError, match=r"no column 'line'; its columns are 'prose'"):
        open_corpus(unclear, column="line")
    with pytest.raises(CorpusError, match=r"is of type int, expected text"):
        list(open_corpus(unclear, column="n"))


def test_a_folder_of_two_sorts_is_refused_unless_the_kind_decides(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"1 text files and 1 image files; pass kind='text' or kind='image'"):
        open_corpus(tmp_path)
    assert texts(open_corpus(tmp_path, kind="text")) == ["Text."]
    rows_file(tmp_path / "b.jsonl", [{"text": "Row."}])
    with pytest.raises(CorpusError, match=r"1 text files and 1 JSON lines files; give a narrower path"):
        open_corpus(tmp_path, kind="text")


def test_options_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    with pytest.raises(CorpusError, match=r"column='text' does not apply to .*a\.txt"):
        open_corpus(tmp_path / "a.txt", column="text")
    with pytest.raises(CorpusError, match=r"block='line' does not apply to stdlib"):
        open_corpus("stdlib", block="line")
    with pytest.raises(CorpusError, match=r"labels='x\.csv' does not apply"):
        open_corpus(tmp_path, labels="x.csv")
    with pytest.raises(CorpusError, match=r"block='page' is not known; choose one of file, paragraph, line"):
        open_corpus(tmp_path, block="page")
    with pytest.raises(CorpusError, match=r"holds text, expected images"):
        open_corpus(tmp_path / "a.txt", kind="image")


def test_single_files_of_no_known_sort(tmp_path: Path) -> None:
    (tmp_path / "book.tex").write_text("Any name will do for a text file named on its own.")
    assert len(texts(open_corpus(tmp_path / "book.tex"))) == 1
    for name, content in (
        ("a.csv", b"file,label\n"),
        ("a.bin", b"\0\1\2"),
        ("a.parquet.zst", zstandard.compress(b"PAR1\0")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=r"is of no sort that can be read; expected text"):
            open_corpus(tmp_path / name)


def test_a_file_that_cannot_be_read_stops_the_corpus(tmp_path: Path) -> None:
    # A corpus that silently lacks a file is another corpus. (A dangling link, as root may read any file.)
    (tmp_path / "a.txt").write_text("Text.")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(CorpusError, match=r"there is no file .*b\.txt"):
        list(open_corpus(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_without_the_right_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(CorpusError, match=r"a\.txt cannot be read \(Permission denied\)"):
        list(open_corpus(tmp_path))
