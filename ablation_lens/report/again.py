"""What does a study again: its settings as TOML, and the command that takes them; or an analysis of circuits."""

import shlex
from collections.abc import Mapping
from typing import Any

from ablation_lens.circuits.analysis import AnalysisSettings
from ablation_lens.errors import AblationLensError
from ablation_lens.escaping import as_unicode, on_one_line
from ablation_lens.measure.metrics import BUILT_IN
from ablation_lens.study.paper import PRESETS
from ablation_lens.study.records import StudyRecord
from ablation_lens.study.study import Study

SETTINGS = "study.toml"
"""What the file of settings is called."""

_ALWAYS = ("models", "methods", "fractions", "seeds", "corpora")


def command_for(study: StudyRecord, out: str = "runs/again") -> str | None:
    """The command that runs a study again, from a preset if it is one; None of what was given in Python.

    >>> command_for(StudyRecord(**Study.preset("quick").to_dict()))
    'ablation-lens study --preset quick --out runs/again'
    """
    if study.given:
        return None
    given = _said(study.to_dict())
    for preset in PRESETS:
        if given == _said(Study.preset(preset).to_dict()):
            return f"ablation-lens study --preset {preset} --out {out}"
    return f"ablation-lens study {SETTINGS} --out {out}"


def command_for_circuit(settings: AnalysisSettings, out: str = "runs/again") -> str:
    """The command that analyses a circuit again; what is as by default is left out.

    >>> about = {"count": 64, "seed": 0, "metric": "kl", "centers": ("peak",), "sites": ("z", "mlp"), "level": "head"}
    >>> about |= {"method": "attribution", "target": 0.9, "steps": 8}
    >>> command_for_circuit(AnalysisSettings("tiny-opt", "induction", None, **about))
    'ablation-lens circuit tiny-opt --task induction --metric kl --center peak --out runs/again'
    """
    parts = [settings.model]
    given: list[tuple[str, Any, Any]] = [
        ("task", settings.task, None),
        ("prompts", settings.file, None),
        ("count", settings.count if settings.task is not None else 64, 64),
        ("seed", settings.seed, 0),
        ("metric", settings.metric, "logit_difference"),
        *(("center", center, None) for center in settings.centers),
        *(("site", site, None) for site in settings.sites if set(settings.sites) != {"z", "mlp"}),
        ("level", settings.level, "head"),
        ("method", settings.method, "attribution"),
        ("target", settings.target, 0.9),
        ("steps", settings.steps, 8),
        *(("statistics", place, None) for place in settings.statistics),
        *(("values", path, None) for path in settings.values),
        ("corpus", settings.corpus, None),
        ("tokens", settings.tokens, None),
        ("dtype", settings.dtype, None),
    ]
    for name, value, usual in given:
        if value != usual:
            parts += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return on_one_line(as_unicode(" ".join(["ablation-lens circuit", *map(shlex.quote, parts), f"--out {out}"])))


def toml_of(study: StudyRecord) -> str:
    r"""The settings as `Study.from_toml` reads them; what is as by default is left out.

    >>> print(toml_of(StudyRecord(("tiny-opt",), ("zero",), (0.5, 1.0), (42,), {"text": "stdlib"}, collect_tokens=500)))
    models = ["tiny-opt"]
    methods = ["zero"]
    fractions = [0.5, 1.0]
    seeds = [42]
    corpora = {"text" = "stdlib"}
    collect_tokens = 500
    <BLANKLINE>
    """
    usual = _said(Study(models=("any",)).to_dict())
    lines = [f"# {on_one_line(name)}, given in Python: {on_one_line(told)}" for name, told in study.given.items()]
    for name, value in _said(study.to_dict()).items():
        if name == "given":
            continue
        if name == "metrics":
            own = [metric for metric in value if metric not in BUILT_IN]
            lines += [f"# {on_one_line(metric)} is a function: Study.from_toml(..., metrics=...)" for metric in own]
            value = [metric for metric in value if metric in BUILT_IN]
        if value != [] and (name in _ALWAYS or value != usual.get(name)):
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join([*lines, ""])


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say something; a file of before there was one holds it empty, and TOML has no word for None."""
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return {name: value for name, value in lists.items() if value not in (None, "", [], {})}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f'"{"".join(map(_letter, value))}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml(key)} = {_toml(part)}' for key, part in value.items())}}}"
    raise AblationLensError(f"{value!r} is no setting of a study.")


def _letter(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    # TOML allows no control characters in a string, and no halves of a pair such as JSON writes.
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
