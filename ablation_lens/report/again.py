"""What does a study again: its settings as TOML, and the command that takes them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablation_lens.errors import AblationLensError
from ablation_lens.study.paper import PRESETS
from ablation_lens.study.records import StudyRecord
from ablation_lens.study.study import Study

SETTINGS = "study.toml"
"""What the file of settings is called."""

_ALWAYS = ("models", "methods", "fractions", "seeds", "corpora")


def command_for(study: StudyRecord, out: str = "runs/again") -> str:
    """The command that runs a study again, from a preset if it is one.

    >>> command_for(StudyRecord(**Study.preset("quick").to_dict()))
    'ablation-lens study --preset quick --out runs/again'
    """
    given = {name: _plain(value) for name, value in study.to_dict().items()}
    for preset in PRESETS:
        if given == {name: _plain(value) for name, value in Study.preset(preset).to_dict().items()}:
            return f"ablation-lens study --preset {preset} --out {out}"
    return f"ablation-lens study {SETTINGS} --out {out}"


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
    usual = Study(models=("any",)).to_dict()
    lines = []
    for field in dataclasses.fields(study):
        value = _plain(getattr(study, field.name))
        # Empty: a file of before there was such a setting. TOML has no word for None, which is the default of what may
        # be None.
        said = value not in (None, "", [], {}) and (field.name in _ALWAYS or value != _plain(usual.get(field.name)))
        if said:
            lines.append(f"{field.name} = {_toml(value)}")
    return "\n".join([*lines, ""])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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
