"""Ranks that are threads of one process: what they add up needs no `torch.distributed` to be looked at."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from ablation_lens.ranks import Ranks

_WAIT = 60.0
"""Seconds after which a rank that does not come fails the test."""


@dataclass
class Meeting:
    """Where the threads leave their tensors for each other; also the store."""

    size: int
    said: dict = field(default_factory=dict)

    def __post_init__(self):
        self.slots = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=_WAIT)

    def exchange(self, rank, tensor):
        self.slots[rank] = tensor
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found

    def set(self, key, value):
        self.said[key] = value

    def check(self, keys):
        return all(key in self.said for key in keys)


@dataclass(frozen=True)
class InThreads(Ranks):
    """A rank that meets the others in memory."""

    def _reduced(self, tensor, operation):
        parts = torch.stack(self._group.exchange(self.rank, tensor.cpu()))
        return {"SUM": parts.sum, "MIN": parts.amin, "MAX": parts.amax}[operation](0)

    def _sent(self, tensor, source):
        found = self._group.exchange(self.rank, tensor.cpu())
        assert {(each.dtype, each.shape) for each in found} == {(tensor.dtype, tensor.shape)}
        return found[source].clone()


def on_ranks(size, work):
    """What `work(ranks)` gives on every rank; an error of one is raised."""
    meeting = Meeting(size)

    def one(rank):
        try:
            return work(InThreads(rank, size, _group=meeting, _store=meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(one, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        # A broken barrier is what the others see of it.
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]
