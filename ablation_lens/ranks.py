"""Which of several processes this one is, and what they tell each other: `torch.distributed`, started by torchrun.

Nothing is pickled. Tensors go from one to another, and texts as bytes, through the machines' memory (gloo) from any
device: they are few, and so two processes may share a GPU. torch is imported by who joins others, not by who is alone.
"""

import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.escaping import shorten

if TYPE_CHECKING:
    from torch import Tensor

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LONGEST = timedelta(hours=12)
"""How long a rank waits for another that neither comes nor ends: longer than any part of the work takes."""
_STOPPED = "stopped"
_SEEN = 60.0
"""Seconds in which a network disk shows what another machine has written."""
_FROM, _TO = 0.0005, 0.05
"""Seconds between two looks at whether the others have come."""

_joined = itertools.count()


class RankError(AblationLensError):
    """Another rank could not do its part; `statistics` is what this one had collected of its own by then, or None."""

    statistics: Any = None


class RankLost(RankError):  # noqa: N818  (what happened, as the others see it)
    """Another rank is gone, and there is nothing more to do together."""


@dataclass(frozen=True)
class Ranks:
    """This process among `size` that work together, counted from 0; `local` counts those of one machine.

    What moves tensors or texts waits for all ranks, which call the same in the same order.

    >>> alone = Ranks.join()
    >>> alone.size, alone.is_first, alone.texts("ready")
    (1, True, ['ready'])
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    _group: Any = field(default=None, repr=False, compare=False)
    _store: Any = field(default=None, repr=False, compare=False)
    _works: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @classmethod
    def told(cls) -> "Ranks":
        """As torchrun says in the environment; alone where nobody says anything. Nobody is waited for."""
        if not all(os.environ.get(name) for name in _VARIABLES):
            return cls()
        said = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        if not all(text.isdecimal() for text in said.values()) or int(said["RANK"]) >= int(said["WORLD_SIZE"]):
            told = ", ".join(f"{name}={text}" for name, text in said.items())
            raise AblationLensError(f"the environment says {told}, which no torchrun does; unset these variables.")
        return cls(int(said["RANK"]), int(said["WORLD_SIZE"]), int(said["LOCAL_RANK"]))

    @classmethod
    def join(cls, *, gpus: int = 1) -> "Ranks":
        """Meet the other processes that torchrun started, or those of a process group that is there already.

        "cuda" then means the GPU of this process' number on its machine, or the first of its `gpus`, unless somebody
        else made the group. Where nobody started several processes, this one is alone.
        """
        told, there = cls.told(), _process_group_is_there()
        if told.size == 1 and not there:
            return told
        from torch import distributed

        if not (distributed.is_available() and distributed.is_gloo_available()):
            raise AblationLensError(
                f"{told.size} processes were started, and this torch has no torch.distributed with gloo; start one."
            )
        try:
            if not there:
                _take_a_gpu(told.local * gpus)
                distributed.init_process_group("gloo")
            group = distributed.new_group(backend="gloo", timeout=_LONGEST)
            store = distributed.distributed_c10d._get_default_store()
        except (RuntimeError, ValueError) as error:
            at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RankLost(
                f"rank {told.rank} of {told.size} did not meet the others at {at} ({_first_line(error)})."
            ) from error
        store = distributed.distributed_c10d.PrefixStore(f"ablation-lens/{next(_joined)}", store)
        return replace(told, rank=distributed.get_rank(), size=distributed.get_world_size(), _group=group, _store=store)

    @property
    def is_first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    # ------------------------------------------------------------------ tensors

    def total(self, tensor: "Tensor") -> "Tensor":
        """The sum of every rank's tensor, of one shape, on the CPU."""
        return self._reduced(tensor, "SUM")

    def lowest(self, tensor: "Tensor") -> "Tensor":
        """The smallest of every rank's, number by number."""
        return self._reduced(tensor, "MIN")

    def highest(self, tensor: "Tensor") -> "Tensor":
        """The largest of every rank's, number by number."""
        return self._reduced(tensor, "MAX")

    def spread(self, tensor: "Tensor", source: int = 0) -> "Tensor":
        """The tensor of rank `source`; the others give one of its shape and dtype."""
        return self._sent(tensor, source)

    def gathered(self, tensor: "Tensor") -> "list[Tensor]":
        """Every rank's tensor of one axis, which may be of different lengths."""
        import torch

        found = []
        for source in range(self.size):
            length = int(self.spread(torch.tensor(tensor.numel()), source))
            found.append(self.spread(tensor if source == self.rank else tensor.new_empty(length), source))
        return found

    def _reduced(self, tensor: "Tensor", operation: str) -> "Tensor":
        result = _own(tensor)
        if self.size > 1 and result.numel():
            from torch import distributed

            how = getattr(distributed.ReduceOp, operation)
            self._wait_for(lambda: distributed.all_reduce(result, how, group=self._group, async_op=True))
        return result

    def _sent(self, tensor: "Tensor", source: int) -> "Tensor":
        result = _own(tensor)
        if self.size > 1 and result.numel():
            from torch import distributed

            self._wait_for(lambda: distributed.broadcast(result, source, group=self._group, async_op=True))
        return result

    def _wait_for(self, begin: Callable[[], Any]) -> None:
        """Until all ranks have come; looked at again and again, as a wait within gloo would hear no Ctrl-C."""
        pause = _FROM
        try:
            work = begin()
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, _TO)
            work.wait()
        except RuntimeError as error:
            raise self._lost() from error

    def _lost(self) -> RankLost:
        return RankLost(
            f"another process ended, or was cut off, while rank {self.rank} of {self.size} needed it; what it said "
            "last tells why. Start the same again, with any number of processes."
        )

    # ------------------------------------------------------------------ texts

    def texts(self, mine: str) -> list[str]:
        """What every rank says."""
        if self.size == 1:
            return [mine]
        import torch

        letters = torch.tensor(list(mine.encode("utf-8", "replace")), dtype=torch.uint8)
        return [bytes(each.tolist()).decode() for each in self.gathered(letters)]

    def first_text(self, mine: str) -> str:
        """What the first rank says."""
        return self.texts(mine if self.is_first else "")[0]

    def require_alike(self, facts: Mapping[str, Any], what: str) -> None:
        """Raise, on every rank, unless all say the same; the error names what they say."""
        if self.size == 1:
            return
        told = {"facts": facts, "python": platform.python_version()}
        all_told = [json.loads(text) for text in self.texts(json.dumps(told, sort_keys=True, default=str))]
        mine = all_told[0]
        for rank, theirs in enumerate(all_told[1:], 1):
            names = [name for name in mine["facts"] if mine["facts"][name] != theirs["facts"].get(name)]
            if names:
                said = "; ".join(f"{n}: {_shown(mine['facts'][n])} and {_shown(theirs['facts'].get(n))}" for n in names)
                pythons = [each["python"] for each in (mine, theirs)]
                told_python = f" They run Python {pythons[0]} and {pythons[1]}." if pythons[0] != pythons[1] else ""
                raise MismatchError(
                    f"ranks 0 and {rank} do not {what} ({said}); start all with the same settings, files and versions."
                    f"{told_python}"
                )

    def require_written(self, path: Path) -> None:
        """Wait until the first rank has come here, and the file that it has written is seen by this one."""
        self.first_text("written")
        end = time.monotonic() + _SEEN
        while not path.exists():
            if time.monotonic() >= end:
                raise AblationLensError(
                    f"{path}, which rank 0 has written, does not show where rank {self.rank} runs; give a folder on a "
                    "disk that all machines share."
                )
            time.sleep(0.5)

    def share_work(self) -> "SharedWork":
        """Begin something of which every rank does a part."""
        return SharedWork(self, f"work {next(self._works)}")


class SharedWork:
    """Something of which every rank does a part; who cannot finish its own says so, and the others need not go on."""

    def __init__(self, ranks: Ranks, key: str) -> None:
        self._ranks, self._key = ranks, key

    def do(self, part: Callable[[], bool]) -> bool:
        """Do this rank's part, which says whether it came to its end; returns whether every rank's did.

        Where one of them fails, its own error is raised there, and a `RankError` on the others.
        """
        if self._ranks.size == 1:
            return part()
        error: Exception | None = None
        try:
            outcome = "" if part() else _STOPPED
        except RankLost:
            raise
        except Exception as raised:
            error, outcome = raised, f"{type(raised).__name__}: {_first_line(raised)}"
        except BaseException:  # it does not wait for anybody
            self._give_up()
            raise
        if outcome:
            self._give_up()
        said = self._ranks.texts(outcome)
        if error is not None:
            raise error
        for rank, text in enumerate(said):
            if text not in ("", _STOPPED):
                raise RankError(f"rank {rank} of {self._ranks.size} could not do its part ({text}).")
        return _STOPPED not in said

    def is_given_up(self) -> bool:
        """Whether a rank has stopped or failed; nobody is waited for."""
        return self._ranks.size > 1 and bool(self._ask(lambda store: store.check([self._key])))

    def _give_up(self) -> None:
        self._ask(lambda store: store.set(self._key, _STOPPED))

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self._ranks._store)
        except RuntimeError as error:
            raise self._ranks._lost() from error


def _process_group_is_there() -> bool:
    """Whether somebody has made one; who has not imported torch has not."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


def _take_a_gpu(number: int) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _own(tensor: "Tensor") -> "Tensor":
    """A copy on the CPU to be written into, whatever mode the caller is in."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().to("cpu", copy=True).contiguous()


def _first_line(error: Exception) -> str:
    return shorten((str(error).splitlines() or [type(error).__name__])[0], 200)


def _shown(value: Any) -> str:
    return shorten(str(value), 60)
