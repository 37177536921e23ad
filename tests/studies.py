"""What two runs of a study must have in common, bit for bit."""

from pathlib import Path

from ablation_lens.study.results import Results


def rows(results: Results):
    """The frame without what time it took, as exact text."""
    frame = results.frame.drop(columns=["seconds"])
    return [(key, *map(_exactly, row)) for key, row in zip(frame.index, frame.itertuples(index=False), strict=True)]


def _exactly(value):
    return value.hex() if isinstance(value, float) else str(value)


def sums(results: Results):
    """The per-document sums of every cell, in the order of the frame."""
    scores = [results.folder.read_cell(key)[1] for key in results.frame.index]
    return [part for score in scores for part in (score.correct, score.loss, score.predictions_per_document)]


def files(folder: Path):
    """Every file with its inode and time: what is written anew differs."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
