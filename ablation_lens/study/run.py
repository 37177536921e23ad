"""How a study is measured: model by model, each cell kept as soon as it is done."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation_lens.corpora import open_corpus
from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.files import CannotWrite
from ablation_lens.hooked import task_of
from ablation_lens.models.checkpoints import find_checkpoint
from ablation_lens.models.load import task_of_checkpoint
from ablation_lens.progress import progress_over_cells
from ablation_lens.ranks import Ranks
from ablation_lens.runs.folder import key_of
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.methods import Method
from ablation_lens.study.model_run import ModelRun, load_model_runs, without_frames
from ablation_lens.study.results import Results

if TYPE_CHECKING:
    from ablation_lens.study.study import Study


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a study: every finished cell is in the folder."""


def run_study(
    study: "Study",
    folder: str | Path,
    *,
    progress: bool = True,
    patience: float | None = None,
    ranks: Ranks | None = None,
) -> Results:
    """Measure the cells of `study` that `folder` lacks. What failed is in the results' `failed`."""
    # Before the folder is made, so that a mistyped name leaves nothing.
    _require_possible(study)
    ranks = ranks or Ranks()
    ranks.require_alike(study.to_dict(), "run the same study")
    kept = StudyFolder.create(folder)
    # Until a model's task is known.
    expected = [len(study.cells("causal-lm")) * len(study.counts)] * len(study.models)
    try:
        return _run_in(study, kept, expected, ranks, progress=progress and ranks.is_first, patience=patience)
    except KeyboardInterrupt:
        # What lies there, not what this run has come to: it may not have looked yet.
        raise StudyInterrupted(
            f"interrupted: {folder} holds {len(kept.keys('cells')):,} finished cells; this study has "
            f"{sum(expected):,}. Run the same again to go on."
        ) from None


def _run_in(
    study: "Study", kept: StudyFolder, expected: list[int], ranks: Ranks, *, progress: bool, patience: float | None
) -> Results:
    """The run itself; `expected` is how many cells each model has, as soon as that is known."""
    kept.write_study(study.to_dict())
    failed: dict[str, Exception] = {}
    tasks: set[str] = set()
    own: set[str] = set()
    with progress_over_cells(progress) as shown:
        for place, name in enumerate(study.named_models):
            shown.describe(f"{name}: loading")
            facts = {"model": name}
            key = key_of(facts)  # until it can be measured, by whatever settings
            runs: list[ModelRun] = []
            try:
                runs = load_model_runs(study, name, kept, patience=patience)
            except CannotWrite:  # every other model would meet the same disk
                raise
            except Exception as error:
                kept.record_failure(key, {"model": name, "facts": facts}, error)
                failed[name] = without_frames(error)
                expected[place] = 0
            loaded = ranks.texts("loaded" if runs else "")
            if not runs:
                continue
            kept.forget_failure(key)
            tasks.add(runs[0].task)
            expected[place] = sum(len(model_run.cells) for model_run in runs)
            shown.expect(sum(expected))
            if ranks.size > 1 and all(loaded):
                for model_run in runs:
                    model_run.share_statistics(ranks, shown)
            for model_run in runs:
                failed |= model_run.measure(shown)
                own |= model_run.keys
            del runs, model_run  # two models need not fit in memory
    if failed and not shown.done:  # nothing could be measured at all: that is not a study with gaps
        first = next(iter(failed.values()))
        if isinstance(first, AblationLensError | OSError):
            raise first
        raise AblationLensError(f"{type(first).__name__}: {first} (the traceback is in {kept.path / 'failures'})")
    return Results.load(
        kept,
        failed=[f"{what}: {error}" for what, error in failed.items()],
        left_out=[m for m in study.methods if not any(Method.parse(m).suits(task) for task in tasks)],
        own=own,
    )


def _require_possible(study: "Study") -> None:
    """What can be known to be wrong before anything is loaded."""
    tasks = {name: _task_of(model) for name, model in study.named_models.items()}
    written = "resample-generated" in study.methods and "masked-lm" in tasks.values()
    writer = _task_of(study.generator) if written else None
    if writer not in ("causal-lm", None):
        raise MismatchError(f"generator={study.generator!r} is a model for {writer}; give one that writes text.")
    methods = [Method.parse(method) for method in study.methods]
    for name, task in tasks.items():
        if task is not None and not any(method.suits(task) for method in methods):
            raise MismatchError(f"{', '.join(study.methods)} cannot be applied to {name}, a model for {task}.")
    for kind in ("text", "image"):
        corpus: Any = study.corpora.get(kind)
        if isinstance(corpus, str) and not _may_be_on_the_hub(corpus):
            open_corpus(corpus, kind=kind)


def _task_of(name: Any) -> str | None:
    """What a model is for; None where only the hub knows."""
    if not isinstance(name, str):
        return task_of(name)
    return None if _may_be_on_the_hub(name) else task_of_checkpoint(find_checkpoint(name))


def _may_be_on_the_hub(name: str) -> bool:
    # A folder of that name comes before the hub, as in find_checkpoint.
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not Path(name).exists()
