"""The hub: streamed through a small one on this machine, and every way not to reach it."""

import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from PIL import Image

from ablation_lens.corpora.hub import HubAddress

COMMIT = "c0ffee" + "0" * 34


def parquet(columns: dict[str, list[Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, row_group_size=10)
    return buffer.getvalue()


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "PNG")
    return buffer.getvalue()


JSON_LINES = "".join(json.dumps({"text": f"Document {n}.", "meta": {"set": "x"}}) + "\n" for n in range(40)).encode()
CARD = b"---\nlicense: mit\n---\n"
IMAGE_CARD = b"""---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': goldfish
          '1': tench
  splits:
  - name: validation
    num_examples: 4
configs:
- config_name: default
  data_files:
  - split: validation
    path: data/validation-*
---
"""
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "owner/lines": {"README.md": CARD, "test.jsonl.zst": zstandard.compress(JSON_LINES)},
    "owner/table": {
        "README.md": CARD,
        "data/train-00000-of-00002.parquet": parquet({"text": [f"Row {n}." for n in range(25)], "n": list(range(25))}),
        "data/train-00001-of-00002.parquet": parquet({"text": ["Row 25.", ""], "n": [25, 26]}),
    },
    "owner/images": {
        "README.md": IMAGE_CARD,
        "data/validation-00000-of-00001.parquet": parquet(
            {
                "image": [{"bytes": content, "path": None} for content in (png(10), b"no image", png(20), png(30))],
                "label": [1, 0, 0, 1],
            }
        ),
    },
    "owner/photographs": {
        "README.md": CARD,
        "test/goldfish/b.png": png(40),
        "test/tench/a.png": png(50),
        "test/tench/b.png": b"no image",
    },
    "owner/gated": {"README.md": CARD},
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as reading a public data set takes."""

    protocol_version = "HTTP/1.1"
    bytes_sent = 0

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: Any, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        repository = "/".join(parts[2:4] if api else parts[1:3])
        rest = parts[4:] if api else parts[3:]
        files = REPOSITORIES.get(repository)
        if files is None:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if rest[:1] == ["auth-check"]:
            return self.answer(403, {"error": "Access is restricted"}, X_Error_Code="GatedRepo")
        if api and rest[:1] == ["tree"]:
            folder = "".join(f"{part}/" for part in rest[2:])
            inside = [path for path in files if path.startswith(folder)]
            below = {folder + path.removeprefix(folder).split("/")[0] for path in inside}
            if "recursive=true" in self.path.lower():
                below |= {*inside, *(str(above) for path in inside for above in PurePosixPath(path).parents)} - {"."}
            listed = [{**entry(path), **details(files, path)} for path in sorted(below)]
            return self.answer(200, listed) if listed else self.answer(404, {}, X_Error_Code="EntryNotFound")
        if api:
            siblings = [{"rfilename": path} for path in files]
            gated = "auto" if repository == "owner/gated" else False
            about = {
                "id": repository,
                "sha": COMMIT,
                "private": False,
                "gated": gated,
                "tags": [],
                "siblings": siblings,
            }
            return self.answer(200, about)
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self.answer(404, {}, X_Error_Code="EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if self.headers["Range"]:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            headers["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self.answer(206, part, **headers)
        return self.answer(200, content, **headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        files = REPOSITORIES["/".join(unquote(urlparse(self.path).path).strip("/").split("/")[2:4])]
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        self.answer(200, [{**entry(path), **details(files, path)} for path in asked if path in files])


def entry(path: str) -> dict[str, str]:
    return {"path": path, "type": "directory", "oid": "0" * 40}


def details(files: dict[str, bytes], path: str) -> dict[str, Any]:
    if path not in files:
        return {}
    return {"type": "file", "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


SCRIPT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import ablation_lens.corpora.hub as hub
from ablation_lens import corpora
from ablation_lens.errors import CorpusError
hub.PROBE_SECONDS = 0.5
answers = []
for request in json.load(sys.stdin):
    started = time.monotonic()
    answer = {}
    try:
        corpus = corpora.open_corpus(request["name"], **request.get("options", {}))
        reading = iter(corpus)
        documents = []
        for document in reading:
            documents.append([document.id, getattr(document, "text", None) or document.label])
            if len(documents) == request.get("limit"):
                break
        answer["record"] = reading.record(size_requested=None, size_obtained=0, unit="documents").to_dict()
        answer["documents"] = documents
        answer["again"] = [document.id for document in corpus]
    except CorpusError as error:
        answer["error"] = str(error)
    answer["seconds"] = time.monotonic() - started
    answers.append(answer)
print(json.dumps(answers))
"""


def ask(endpoint: str, home: Path, *requests: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """Open corpora in a process of their own: the hub's address is read once, when its client is imported."""
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(requests),
        env={**os.environ, **online, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # neither progress bars nor log lines
    answers: list[dict[str, Any]] = json.loads(run.stdout)
    return answers


def test_data_sets_are_streamed(endpoint: str, tmp_path: Path) -> None:
    model = {"0": "tench, Tinca tinca", "1": "goldfish"}
    lines, table, part, images, unlabelled, photographs = ask(
        endpoint,
        tmp_path,
        {"name": "owner/lines:test"},
        {"name": "owner/table"},
        {"name": "owner/table:train", "limit": 3},
        {"name": "owner/images", "options": {"id2label": model}},
        {"name": "owner/images:validation"},
        {"name": "owner/photographs", "options": {"id2label": model}},
    )
    assert lines["documents"] == [[f"owner/lines:test#{n}", f"Document {n}."] for n in range(40)]
    assert lines["again"] == [identity for identity, _ in lines["documents"]]
    assert lines["record"]["source"] == "hub:owner/lines:test@c0ffee000000"
    assert [text for _, text in table["documents"]] == [f"Row {n}." for n in range(26)]
    assert table["record"]["source"] == "hub:owner/table:train@c0ffee000000"
    assert table["record"]["skipped_empty"] == 1
    assert [text for _, text in part["documents"]] == ["Row 0.", "Row 1.", "Row 2."]
    assert [label for _, label in images["documents"]] == [0, 1, 0]
    assert images["record"]["skipped_corrupt"] == 1
    assert ["labels matched by", "name"] in images["record"]["settings"]
    assert [label for _, label in unlabelled["documents"]] == [None, None, None]
    assert photographs["documents"] == [["owner/photographs#0", 1], ["owner/photographs#1", 0]]
    assert photographs["record"]["skipped_corrupt"] == 1
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and path.name != "README.md")
    assert stored < 5000  # cards and locks: the data themselves are kept nowhere


def test_what_cannot_be_opened_is_said_in_one_sentence(endpoint: str, tmp_path: Path) -> None:
    split, config, gated, missing, column = ask(
        endpoint,
        tmp_path,
        {"name": "owner/table:test"},
        {"name": "owner/table:large:train"},
        {"name": "owner/gated"},
        {"name": "owner/nothing"},
        {"name": "owner/table", "options": {"column": "prose"}},
    )
    assert "'owner/table' has no split 'test'; its splits are train." in split["error"]
    assert "'owner/table:large:train' cannot be opened (BuilderConfig 'large' not found" in config["error"]
    assert "is gated: accept its terms at https://huggingface.co/datasets/owner/gated" in gated["error"]
    assert "does not exist, or is private" in missing["error"]
    assert "There is no local path 'owner/nothing' either" in missing["error"]
    assert "has no column 'prose'; its columns are 'text' (text), 'n' (number)" in column["error"]
    for answer in (config, gated, missing):
        assert (
            "give a local path instead (a text file or folder, JSON lines, Parquet, or an image folder)"
            in answer["error"]
        )


NAMES = [{"name": name} for name in ("pile", "pile-10k", "wikitext", "imagenet-1k", "owner/name:config:test")]


def test_an_unreachable_hub_fails_at_once_and_names_the_alternative(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        answers = ask(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path, *NAMES)
    for answer in answers:
        assert "cannot be reached" in answer["error"]
        assert "give a local path instead" in answer["error"]
    assert "'stdlib' needs no network" in answers[0]["error"]
    assert "'digits' needs no network" in answers[3]["error"]
    assert "There is no local path 'owner/name:config:test' either" in answers[4]["error"]


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (answer,) = ask(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, NAMES[0])
    assert "cannot be reached (timed out)" in answer["error"]


def test_offline_mode_is_respected(endpoint: str, tmp_path: Path) -> None:
    (answer,) = ask(endpoint, tmp_path, {"name": "owner/lines"}, HF_HUB_OFFLINE="1")
    assert "offline mode is enabled" in answer["error"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubAddress("a/b")),
        ("a/b:c", HubAddress("a/b", "c")),
        ("a/b:test", HubAddress("a/b", None, "test")),
        ("a/b:c:test", HubAddress("a/b", "c", "test")),
        ("a/b::dev", HubAddress("a/b", None, "dev")),
        ("b", None),
        ("a/b/c", None),
        ("a/b:c:d:e", None),
        ("a b/c", None),
    ],
)
def test_addresses(text: str, expected: HubAddress | None) -> None:
    assert HubAddress.parse(text) == expected
