"""How long clusters of equal size take, and their assignment beside scipy's, on random columns; 1 thread.

`assign` solves the problem of `linear_sum_assignment` over things × places: the costs must be equal.
"""

import argparse
import platform
import time
from importlib.metadata import version

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ablation_lens.experiments.balanced import assign, partition

SIZE = 32
DENSE = 1024
"""Neurons up to which costs at random, which are no clusters', are tried, too."""


def of(neurons: int) -> tuple[float, float, float]:
    """CPU seconds of one restart, and of one assignment, ours and scipy's."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(neurons, neurons // 4, generator=generator, dtype=torch.float64)
    columns = torch.nn.functional.normalize(columns, dim=1).numpy()
    affinity = columns @ columns.T
    started = time.process_time()
    labels, _ = partition(affinity, SIZE, restarts=1)
    restart = time.process_time() - started
    means = np.stack([columns[labels == group].mean(0) for group in range(neurons // SIZE)])
    return restart, *compared(-columns @ means.T)


def compared(cost: np.ndarray) -> tuple[float, float]:
    """CPU seconds of one assignment, ours and scipy's, which must cost the same."""
    neurons = len(cost)
    started = time.process_time()
    chosen, _ = assign(cost)
    ours = time.process_time() - started
    started = time.process_time()
    rows, places = linear_sum_assignment(np.repeat(cost, SIZE, axis=1))
    theirs = time.process_time() - started
    least = float(cost[rows, places // SIZE].sum())
    assert abs(float(cost[np.arange(neurons), chosen].sum()) - least) < 1e-6 * abs(least)
    return ours, theirs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--toy", action="store_true", help="a size that takes a second and says nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {version('torch')}, clusters of {SIZE}; seconds of CPU")
    for neurons in [64] if arguments.toy else arguments.neurons:
        restart, ours, theirs = of(neurons)
        told = f"{neurons:6,}: one restart {restart:6.2f}; one assignment {ours:.3f}, scipy's {theirs:.3f}"
        print(f"{told}, a ratio of {ours / theirs:.2f}")
        if neurons <= DENSE:
            noise = np.random.Generator(np.random.PCG64(0)).normal(size=(neurons, neurons // SIZE))
            ours, theirs = compared(noise)
            print(f"        of costs at random: {ours:.3f}, scipy's {theirs:.3f}, a ratio of {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
