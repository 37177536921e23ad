"""What `ablation-lens demo` shows: the quick study of the four zoo models."""

import platform
import time
from pathlib import Path

from ablation_lens import zoo
from ablation_lens.cli.studies import print_table
from ablation_lens.cli.terminal import say
from ablation_lens.corpora.embedded import digest, digits_images, stdlib_documents
from ablation_lens.report.study import write_report
from ablation_lens.study.results import Results
from ablation_lens.study.study import Study


def run_demo(out: Path) -> Results:
    """Run the quick study in `out`, or go on with it, and print its table."""
    study = Study.preset("quick")
    say(
        f"Ablating {len(study.models)} tiny models by {len(study.methods)} methods: what is lost when "
        f"{', '.join(f'{100 * fraction:g}' for fraction in study.fractions)} % of their attention neurons are set to "
        "something else?"
    )
    started = time.perf_counter()
    results = study.run(out)
    print_table(results)
    page, _ = write_report(out)
    seconds = time.perf_counter() - started
    say(f"{len(results.frame):,} cells in {seconds:.0f} s. All of it, with figures: {page}")
    for line in _changed_corpora():
        say(line)
    return results


def _changed_corpora() -> list[str]:
    """A line for each corpus of the four models that is not the one they were trained on: Python versions differ."""
    now = {
        "stdlib": digest(stdlib_documents()),
        "digits": digest(pixels.tobytes() for pixels, _ in digits_images()),
    }
    then = {record["corpus"]: record for record in map(zoo.training_record, zoo.NAMES)}
    return [
        f"note: {name} is not the {name} the zoo was trained on (Python {then[name]['versions']['python']} there, "
        f"{platform.python_version()} here), so some held-out documents may be new and others known."
        for name in now
        if now[name] != then[name]["corpus_digest"]
    ]
