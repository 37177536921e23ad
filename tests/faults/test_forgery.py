"""Values that somebody wrote on purpose, with a checksum that is right: possible ones are read, others refused."""

import json

import pytest
import torch
from safetensors.torch import save

from ablation_lens.files import save_json, save_tensors
from tests.faults.forgery import forged, forged_tensors, opened, own_header
from tests.faults.tally import reads_or_says


def forge(victim, draw):
    """Change the header or a tensor of the victim, and write it as the tool would; says what was done.

    None where it cannot be written: what safetensors itself refuses needs no reader, and is not counted.
    """
    path = victim.path
    path.write_bytes(victim.content)
    if path.suffix == ".json":
        outer = json.loads(victim.content)
        if "content" not in outer:
            done, values = forged(outer, draw)
            path.write_text(json.dumps(values))
            return done
        done, values = forged(outer["content"], draw)
        save_json(path, outer["ablation_lens"]["kind"], values, version=outer["ablation_lens"]["version"])
        return done
    kind, version, header, tensors = opened(path)
    if draw.random() < 0.5:
        done, header = forged(header, draw)
    else:
        done, tensors = forged_tensors(tensors, draw)
    try:
        save_tensors(path, kind, header, tensors, version=version)
    except Exception:
        return None
    return done


PER_FILE = {"tensors": 40, "run": 25}


@pytest.mark.parametrize("kind", PER_FILE)
def test_forged_files(kind, request, size, draw, tally):
    counted = tally(f"forged files: {kind}")
    for victim in request.getfixturevalue(kind):
        for number in range(PER_FILE[kind] * size):
            done = forge(victim, draw)
            if done is None:
                continue
            with counted.attempt(f"{victim.kind} #{number} {done}"):
                reads_or_says(victim.read, *victim.names)
        victim.restore()


def test_forged_settings_of_models(models, size, draw, tally):
    counted = tally("forged files: models")
    for victim in models:
        if victim.path.suffix != ".json":
            continue
        for number in range(6 * size):
            done, values = forged(json.loads(victim.content), draw)
            victim.path.write_text(json.dumps(values))
            with counted.attempt(f"{victim.kind} #{number} {done}"):
                reads_or_says(victim.read, *victim.names)
        victim.restore()


def test_forged_rows(corpora, size, draw, tally):
    counted = tally("forged files: rows")
    victim = next(victim for victim in corpora if victim.path.suffix == ".jsonl")
    lines = victim.content.decode().splitlines()
    for _number in range(60 * size):
        place = draw.randrange(len(lines))
        done, values = forged(json.loads(lines[place]), draw)
        line = json.dumps(values)
        if draw.random() < 0.2:
            done, line = draw.choice(
                [("deep", "[" * 50_000 + "]" * 50_000), ("surrogate", '{"text": "\\ud800"}'), ("NaN", '{"text": NaN}')]
            )
        victim.path.write_text("\n".join([*lines[:place], line, *lines[place + 1 :]]))
        with counted.attempt(f"line {place}: {done}"):
            reads_or_says(victim.read, *victim.names)
    victim.restore()


def test_forged_headers_of_weights(models, size, draw, tally):
    """Offsets, types and shapes of safetensors itself, and numbers that are none."""
    counted = tally("forged files: weights")
    victim = next(victim for victim in models if victim.path.suffix == ".safetensors")

    def change(header):
        done, changed = forged({name: value for name, value in header.items() if name != "__metadata__"}, draw)
        what.append(done)
        return changed

    for number in range(25 * size):
        what = []
        if number % 5:
            content = own_header(victim.content, change)
        else:
            content = with_a_nan(victim.path, victim.content, draw, what)
        victim.path.write_bytes(content)
        with counted.attempt(f"weights {what}"):
            assert reads_or_says(victim.read, *victim.names) in (None, victim.whole)
    victim.restore()


def with_a_nan(path, content, draw, what):
    from safetensors.torch import load

    tensors = load(content)
    name = draw.choice(sorted(tensors))
    what.append(f"NaN in {name}")
    tensors[name].view(-1)[draw.randrange(tensors[name].numel())] = draw.choice((torch.nan, torch.inf))
    return save(tensors, {"format": "pt"})
