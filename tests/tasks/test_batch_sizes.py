"""batch_size="auto": as many documents as fit beside the model, and no more than help."""

from types import SimpleNamespace

import pytest
import torch

from ablation_lens import load_model, task_for
from ablation_lens.errors import AblationLensError
from ablation_lens.memory import free_on_machine
from ablation_lens.tasks.batch_sizes import USUAL_POSITIONS, bytes_of_row, fitting_batch_size

MIB = 2**20
TEXTS = [f"Text {number} says that {number} is a number like any other number." * 3 for number in range(400)]


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-opt")


@pytest.fixture(scope="module")
def plan(model):
    return task_for(model, TEXTS, context=32).batches(tokens=3000)


def test_half_of_what_is_free_is_for_batches_and_the_number_is_a_power_of_two(model, plan):
    row = bytes_of_row(model, 32)
    assert [fitting_batch_size(model, plan, free=2 * rows * row) for rows in (1, 2, 7, 8, 100)] == [1, 2, 4, 8, 64]


def test_a_document_that_does_not_fit_is_tried_all_the_same(model, plan):
    assert fitting_batch_size(model, plan, free=0) == 1


def test_no_more_positions_than_make_a_cpu_faster(model, plan):
    assert fitting_batch_size(model, plan, free=2**50) == USUAL_POSITIONS // 32
    assert fitting_batch_size(model, plan, free=None) <= USUAL_POSITIONS // 32


def test_the_longest_document_of_all_plans_decides(model, plan):
    longer = task_for(model, TEXTS, context=64).batches(tokens=3000)
    free = 40 * bytes_of_row(model, 64)
    assert fitting_batch_size(model, plan, longer, free=free) == fitting_batch_size(model, longer, free=free)
    assert fitting_batch_size(model, longer, free=free) < fitting_batch_size(model, plan, free=free)


def test_auto_is_that_number_and_needs_the_model(model):
    task = task_for(model, TEXTS, context=32)
    plan = task.batches(tokens=3000)
    automatic = task.batches(tokens=3000, batch_size="auto", model=model)
    assert automatic.digest == plan.cut(fitting_batch_size(model, plan)).digest
    with pytest.raises(AblationLensError, match="give it, too"):
        task.batches(tokens=3000, batch_size="auto")


@pytest.mark.parametrize("wrong", ["automatic", "Auto", "", "8", b"auto", 1.5])
def test_another_word_is_one_sentence(model, wrong):
    with pytest.raises(AblationLensError, match="batch_size="):
        task_for(model, TEXTS).batches(tokens=300, batch_size=wrong, model=model)


class Small:
    """An accelerator on which more than so many positions are too many."""

    def __init__(self, model, most):
        self.cfg, self.most, self.tried = model.cfg, most, []
        self.run = model.run_with_hooks

    def run_with_hooks(self, tokens, **options):
        self.tried.append(tuple(tokens.shape))
        if tokens.numel() > self.most:
            raise torch.OutOfMemoryError
        return self.run(tokens, **options)


def test_the_longest_documents_are_tried_and_halved_until_they_fit(model, plan):
    small = Small(model, 300)
    assert fitting_batch_size(small, plan, free=2**40, tries=True) == 8
    assert small.tried[0] == (len(plan.cut(256).batches[0]), 32)
    assert small.tried[-1] == (8, 32)


def test_even_a_single_document_that_runs_out_of_memory_is_left_to_the_work_itself(model, plan):
    assert fitting_batch_size(Small(model, 0), plan, free=2**40, tries=True) == 1


# ---------------------------------------------------------------------- what is free


def system(root, files):
    for name, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 4096 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 4 * MIB),
        ({"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/memory.max": "max\n"}, 4 * MIB),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/memory.max": f"{3 * MIB}",
                "sys/fs/cgroup/job/memory.current": f"{2 * MIB}",
                "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {MIB // 2}\n",
            },
            MIB + MIB // 2,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * MIB}",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{MIB}",
            },
            MIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{MIB}",
                "sys/fs/cgroup/memory.current": f"{2 * MIB}",
            },
            0,
        ),
    ],
    ids=["no limit", "an open one", "of a job above", "first version, in a container", "more used than allowed"],
)
def test_what_a_container_or_a_job_allows_is_all_there_is(tmp_path, files, free):
    assert free_on_machine(system(tmp_path, files)) == free


def test_a_system_that_says_nothing_gets_the_usual_number(model, plan, tmp_path):
    assert free_on_machine(tmp_path) is None
    nowhere = SimpleNamespace(cfg=SimpleNamespace(**{**vars(model.cfg), "device": "meta"}))
    assert fitting_batch_size(nowhere, plan) > 0
