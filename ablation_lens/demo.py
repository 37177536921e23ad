"""What `ablation-lens demo` shows: how well the four zoo models predict what they were not trained on."""

import platform
import time

from rich.console import Console
from rich.table import Table

from ablation_lens import zoo
from ablation_lens.corpora.embedded import digest, digits_images, stdlib_documents
from ablation_lens.evaluation import evaluate
from ablation_lens.models import load_model
from ablation_lens.progress import progress_over
from ablation_lens.tasks import task_for


def run_demo(console: Console) -> None:
    """Score every zoo model on its `evaluate` split and print a table."""
    table = Table(title="The zoo on its held-out documents")
    table.add_column("model", no_wrap=True)
    table.add_column("predicts")
    for column in ("top-1", "CE (nats)", "predictions", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in zoo.NAMES:
        started = time.perf_counter()
        model = load_model(name)
        plan = task_for(model).batches(split="evaluate")
        with progress_over(name, len(plan.items), shown=True, unit="documents") as advance:
            score = evaluate(model, plan, on_batch=advance)
        table.add_row(
            name,
            {"causal-lm": "next tokens", "masked-lm": "masked tokens"}.get(plan.task, "digits"),
            f"{100 * score.top1:.1f} %",
            f"{score.cross_entropy:.3f}",
            f"{score.predictions:,}",
            f"{time.perf_counter() - started:.0f}",
        )
    console.print(table)
    for line in _changed_corpora():
        console.print(line, style="yellow")


def _changed_corpora() -> list[str]:
    """A line for each embedded corpus that is not the one the zoo was trained on: Python versions differ in prose."""
    now = {
        "stdlib": digest(stdlib_documents()),
        "digits": digest(pixels.tobytes() for pixels, _ in digits_images()),
    }
    then = {record["corpus"]: record for record in map(zoo.training_record, zoo.NAMES)}
    return [
        f"note: {name} is not the {name} the zoo was trained on (Python {then[name]['versions']['python']} there, "
        f"{platform.python_version()} here), so some held-out documents may be new and others known."
        for name in then
        if now[name] != then[name]["corpus_digest"]
    ]
