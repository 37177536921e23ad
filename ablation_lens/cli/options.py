"""Options that several commands have, what the shell completes them to, and how an error names them.

Nothing that takes long is imported with this module: a shell asks it at every press of Tab.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ablation_lens import zoo
from ablation_lens.errors import AblationLensError
from ablation_lens.palette import METHOD_COLORS

METHODS = tuple(METHOD_COLORS)
"""Centers and resamplings of this package: each has a color of its own, and colors need no torch to be listed."""
LEARNED = ("optimal", "optimal-kl", "sensitivity-mean", "sequential-mean")
"""Those that are learned from a model."""
CENTERS = tuple(name for name in METHODS if not name.startswith("resample-") and name not in LEARNED)

METRICS = ("cross_entropy", "top1", "top10", "probability", "probability_difference", "logit_difference", "rank", "kl")


def completing(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What a shell is told: the names that begin as what was typed. Where none does, it goes on to files by itself."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


models = completing(zoo.NAMES)

Model = Annotated[str, typer.Argument(help="A zoo name, a hub id, or a model folder.", autocompletion=models)]
RunModel = Annotated[
    str | None, typer.Option("--model", help="Whose statistics, where a run folder is given.", autocompletion=models)
]
Corpus = Annotated[
    str | None,
    typer.Option(
        help="A named corpus, a path, or a hub data set.", autocompletion=completing(("stdlib", "digits", "pile"))
    ),
]
Tokens = Annotated[int | None, typer.Option(help="How many tokens; all of the split when left out.")]
Images = Annotated[int | None, typer.Option(help="How many images, for an image model.")]
SITES = ("z", "mlp", "q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")
Site = Annotated[
    str,
    typer.Option(
        help="Which neurons: z (attention), mlp, q, k, v, … (docs/guide/sites.md).", autocompletion=completing(SITES)
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="What to measure besides top-1 and cross-entropy, such as kl or top10; repeat.",
        autocompletion=completing(METRICS),
    ),
]
Labels = Annotated[Path | None, typer.Option(help="A CSV file,label for a folder of images.")]
Column = Annotated[
    str | None,
    typer.Option(help="The column of JSON lines, Parquet or a data set that is read, if its name does not tell."),
]
LabelColumn = Annotated[
    str | None, typer.Option(help="The column of JSON lines, Parquet or a data set that holds the labels.")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Read the documents of this label (a class by name or id) alone; repeat."),
]
Except = Annotated[list[str] | None, typer.Option("--except", help="Leave out the documents of this label; repeat.")]
Context = Annotated[int | None, typer.Option(help="Positions that a document is cut to.", min=1)]


def _batch_size(text: str) -> int | str:
    if text != "auto" and not text.removeprefix("-").isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a whole number nor 'auto'.")
    return text if text == "auto" else int(text)


BatchSize = Annotated[
    Any,
    typer.Option(
        parser=_batch_size,
        metavar="INTEGER|auto",
        help="Documents per batch; auto chooses by the memory that is free.",
        autocompletion=completing(("auto",)),
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Such as float32 or bfloat16.", autocompletion=completing(("float32", "bfloat16", "float16"))),
]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda.", autocompletion=completing(("cpu", "cuda")))]
_N_DEVICES = typer.Option("--devices", help="GPUs that the blocks of a causal model are spread over.", min=1)
Devices = Annotated[int, _N_DEVICES]
StudyDevices = Annotated[int | None, _N_DEVICES]
RandomInit = Annotated[
    int | None,
    typer.Option(help="A seed: the model before training, its weights drawn by transformers instead of read."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]

Run = Annotated[Path, typer.Argument(help="A run folder.")]
StatisticsOrRun = Annotated[Path, typer.Argument(help="A file that `ablation-lens collect` wrote, or a run folder.")]


def statistics_file(place: Path, model: str | None) -> Path:
    """The statistics file that was given, or that of a model in the run folder that was given."""
    from ablation_lens.study.cells import StudyFolder

    if place.is_dir():
        return StudyFolder(place).find_statistics(model)
    if model is not None:
        raise AblationLensError(f"{place} is no run folder, whose models --model tells apart; leave --model out.")
    return place


# ---------------------------------------------------------------------- how an error names them

_VALUE = r"""…|'[^']*'|"[^"]*"|[^\s,;:()]*[^\s,;:().]"""
_MENTIONED = re.compile(
    # What is quoted is what was typed or what a file says, and stays; an apostrophe within a word quotes nothing.
    rf"""(?<!\w)'[^']*'(?!\w)|\b(?P<function>\w+)\(\.\.\., (?P<keywords>\w+=[^)]*)\)"""
    # So does any other call, and a tuple: half of them would be Python's.
    rf"""|(?<![\w.])[\w.]+\([^()]*\)|\b\w+=\([^()]*\)"""
    rf"""|\b(?P<name>[a-z_]+)=(?P<value>{_VALUE})?|\b[a-z]+_[a-z_]+\b"""
)


def name_options(message: str, commands: Mapping[str, Any], context: Any) -> str:
    """A message that Python's users read, too, with the options of the command at hand in place of arguments.

    `images=5` is `--images 5`, and `collect(..., passes=2)` is `ablation-lens collect --passes 2`. What was typed as
    such, as the bins of `--method 'peak bins=1'`, is left as it is.
    """
    options = options_of(context.command)
    given = {name: value for name, value in context.params.items() if _was_typed(context, name)}
    if "config" in given:  # settings that a file may hold have the names there that they have in Python
        options = {name: option for name, option in options.items() if name in given}
    words = [str(word) for value in given.values() for word in (value if isinstance(value, list | tuple) else [value])]

    def spell(match: re.Match[str]) -> str:
        text, function = match[0], match["function"]
        if function in commands:
            spelled = _spell_all(match["keywords"], options_of(commands[function]))
            # Something that only Python has stays Python's.
            return f"ablation-lens {function} {spelled}" if spelled.startswith("--") else text
        return text if function or any(text in word for word in words) else _spell(match, options)

    return _MENTIONED.sub(spell, message)


def options_of(command: Any) -> dict[str, Any]:
    """The options of a command by the name of the argument that each is in Python."""
    return {option.name: option for option in command.params if option.opts[0].startswith("--")}


def _was_typed(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _spell_all(keywords: str, options: Mapping[str, Any]) -> str:
    return _MENTIONED.sub(lambda match: _spell(match, options), keywords)


def _spell(match: re.Match[str], options: Mapping[str, Any]) -> str:
    option, value = options.get(match["name"] or match[0]), match["value"] or ""
    if option is None:
        return match[0]
    if option.is_flag and value == "False":
        return str(option.secondary_opts[0])
    return f"{option.opts[0]} {'' if option.is_flag else value}".rstrip()


# ---------------------------------------------------------------------- what several commands ask for


def require_one_form(as_json: bool, **others: object) -> None:
    """Raise unless a result is asked for in one form only."""
    named = [f"--{name}" for name, value in others.items() if value is not None]
    if as_json and named:
        raise AblationLensError(f"--json and {named[0]} each say what is printed; give one of them.")
