"""What `ablation-lens demo` shows: how well the four zoo models predict what they were not trained on."""

import time

from rich.console import Console
from rich.table import Table

from ablation_lens import zoo
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
