"""The command about what one token carries: `transfer`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.terminal import INTERRUPTED, announce, complain, say, say_json, say_lines


def transfer(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="The folder; an unfinished one is gone on with.")],
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            help="Documents with blank lines: a named corpus, a path, or a hub data set. Left out: stdlib.",
            autocompletion=options.completing(("stdlib", "stdlib-code", "pile")),
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(help="How many documents.", min=2)] = 200,
    least: Annotated[int, typer.Option(help="Tokens that both paragraphs of a document need.", min=1)] = 8,
    length: Annotated[int, typer.Option(help="Tokens of the next paragraph that are read.", min=2)] = 100,
    positions: Annotated[
        str | None,
        typer.Option(
            help="donor: read recipients at the donor's positions, for a model that learned absolute ones.",
            autocompletion=options.completing(("donor",)),
        ),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            help="What is transferred; repeat. Left out: z and mlp.",
            autocompletion=options.completing(options.SITES),
        ),
    ] = None,
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="In which layers; repeat. Left out: all.", min=0)
    ] = None,
    scrub: Annotated[
        bool,
        typer.Option(
            "--scrub/--no-scrub", help="Whether layers and sites are also transferred alone, and all but one."
        ),
    ] = True,
    cheats: Annotated[
        list[int] | None,
        typer.Option("--cheat", help="True tokens that samples are given; repeat. Left out: 1, 2, 5, 10.", min=1),
    ] = None,
    samples: Annotated[int, typer.Option(help="After how many documents is written.", min=0)] = 16,
    sample_tokens: Annotated[int, typer.Option(help="How many tokens are written.", min=1)] = 40,
    temperature: Annotated[float, typer.Option(help="Of what is written; 0 takes the likeliest.", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is written.")] = 0,
    context: options.Context = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    as_json: options.AsJson = False,
) -> None:
    """Measure how much of the next paragraph the token before it carries, and write figures and a table.

    Run the same command again to go on after Ctrl-C.
    """
    announce(f"loading {model}")
    from ablation_lens.experiments.grabbing import SITES, require_causal
    from ablation_lens.experiments.paragraphs import pairs_of
    from ablation_lens.experiments.scores import ExperimentFolder
    from ablation_lens.experiments.transfer import SCRUBS, transfer_study
    from ablation_lens.files import require_target_folder
    from ablation_lens.models.load import load_model
    from ablation_lens.report.transfer import write_transfer
    from ablation_lens.tasks.tasks import task_for

    require_target_folder(out)
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices)
    require_causal(loaded)
    task = task_for(loaded, text, context=context)
    ExperimentFolder.create(out)
    announce(f"reading {task.corpus.name}")
    try:
        found = transfer_study(
            loaded,
            pairs_of(loaded, task, count=pairs, least=least),
            sites=sites or SITES,
            layers=layers or None,
            scrub=SCRUBS if scrub else (),
            cheats=cheats or (1, 2, 5, 10),
            length=length,
            positions=positions,
            samples=samples,
            sample_tokens=sample_tokens,
            temperature=temperature,
            seed=seed,
            folder=out,
        )
        files = write_transfer(found, out)
    except KeyboardInterrupt:
        complain(f"interrupted: what is finished is in {out}. Run the same again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        value, low, high = found.worth
        values: dict[str, Any] = {"folder": out, "model": found.source.name, "documents": len(found.lengths)}
        values |= {"left_out": dict(found.left_out), "files": files, "text": repr(found)}
        values |= {"shares": found.shares.to_dict("records"), "worth": {"value": value, "low": low, "high": high}}
        values |= {"generated": found.generated.to_dict("records"), "rows": found.frame.to_dict("records")}
        say_json("transfer", values)
    else:
        say_lines(repr(found))
        say(f"{', '.join(path.name for path in files.values())} → {out}")
