"""`Study`: the paper's experiment, from Python, a preset or a TOML file; `study_run.py` measures it."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from ablation_lens.choices import require_known
from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.results import Results
from ablation_lens.study_run import run_study
from ablation_lens.study_settings import StudySettings


@dataclass(frozen=True, kw_only=True)
class Study(StudySettings):
    """Every method at every fraction with every seed, for every model; the attributes are those of `StudySettings`.

    >>> import tempfile
    >>> study = Study(models=["tiny-vit"], methods=["zero", "peak"], fractions=[0.5], seeds=[42], collect_images=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = study.run(folder, progress=False)
    >>> results.frame[["method", "fraction", "predictions"]].values.tolist()
    [['none', 0.0, 233], ['zero', 0.5, 233], ['peak', 0.5, 233]]
    """

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A study by name — "paper", "tiny" or "quick" — with some settings changed.

        >>> Study.preset("quick", seeds=[7]).seeds
        (7,)
        """
        require_known(name, PRESETS, "preset")
        settings = {**PRESETS[name], **changes}
        if "dtype" not in changes and isinstance(settings["models"], Sequence):
            dtypes = PRESETS[name].get("dtype", {})
            settings["dtype"] = {model: dtypes[model] for model in dtypes if model in settings["models"]} or None
        study = cls(**settings)
        return study.with_corpora({**PRESETS[name].get("corpora", {}), **study.corpora})

    @classmethod
    def from_toml(cls, path: str | Path, **changes: Any) -> Self:
        """A study from a TOML file with these attributes as keys; `preset = "tiny"` starts from a preset."""
        try:
            with Path(path).open("rb") as file:
                settings = tomllib.load(file)
        except OSError as error:
            raise AblationLensError(f"cannot read {path} ({error.strerror}).") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise AblationLensError(f"{path} is not TOML ({error}).") from error
        preset = settings.pop("preset", None)
        names = [field.name for field in dataclasses.fields(cls)]
        for key in settings:
            require_known(key, names, f"setting in {path}")
        settings |= changes
        if preset is not None:
            return cls.preset(preset, **settings)
        if "models" not in settings:
            raise MismatchError(f'{path} names no models; add for example models = ["tiny-opt"].')
        return cls(**settings)

    def with_corpora(self, corpora: Mapping[str, str]) -> Self:
        """The same study on other documents, such as `{"text": "wikitext"}`."""
        return dataclasses.replace(self, corpora={**self.corpora, **corpora})

    def run(self, folder: str | Path, *, progress: bool = True) -> Results:
        """Measure what is not in the folder yet, cell by cell, and give the results.

        Ctrl-C (`StudyInterrupted`) or a crash loses the cell at hand only; running again goes on. Several processes
        and machines may run the same study in one folder: they share the work.
        """
        return run_study(self, folder, progress=progress)


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # What the paper did. Mistral's dtype was not published.
        "paper": {
            "models": (
                "facebook/opt-1.3b",
                "mistralai/Mistral-7B-v0.1",
                "google/vit-base-patch16-224",
                "FacebookAI/roberta-large",
            ),
            "methods": (
                "peak",
                "mean",
                "zero",
                "resample-characters",
                "resample-tokens",
                "resample-generated",
                "resample-pixels",
            ),
            "corpora": {"text": "pile", "image": "imagenet-1k"},
            "collect_tokens": 100_000,
            "evaluate_tokens": 100_000,
            "collect_images": 1000,
            "evaluate_images": 1000,
            "shared_input": True,
            "generator": "facebook/opt-1.3b",
            "dtype": {
                "facebook/opt-1.3b": "float16",
                "mistralai/Mistral-7B-v0.1": "float16",
                "FacebookAI/roberta-large": "float16",
            },
        },
        # The zoo, with enough seeds to speak of more than the masks drawn.
        "tiny": {
            "models": ("tiny-opt", "tiny-mistral", "tiny-vit", "tiny-roberta"),
            "methods": (
                "zero",
                "mean",
                "median",
                "peak",
                "peak-kde",
                "resample-characters",
                "resample-tokens",
                "resample-generated",
                "resample-pixels",
            ),
            "seeds": (42, 123, 456, 789, 1011, 1213, 1415, 1617, 1819, 2021),
            "collect_tokens": 50_000,
            "evaluate_tokens": 10_000,
        },
        # A first look, in minutes on a laptop.
        "quick": {
            "models": ("tiny-opt", "tiny-mistral", "tiny-vit", "tiny-roberta"),
            "methods": (
                "zero",
                "mean",
                "peak",
                "resample-characters",
                "resample-tokens",
                "resample-generated",
                "resample-pixels",
            ),
            "fractions": (0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
            "collect_tokens": 20_000,
            "evaluate_tokens": 3_000,
        },
    }
)
