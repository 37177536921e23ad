"""What several ranks have counted is added up exactly; the ranks are threads here."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation_lens.errors import MismatchError
from ablation_lens.measure.sharding import add_moments, add_trimmed, add_up, require_alike, share_of, trimmed_around
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.rows import Rows
from ablation_lens.neurons.statistics import ActivationStatistics, PlanReading
from ablation_lens.ranks import RankError, Ranks
from ablation_lens.records import CorpusRecord
from ablation_lens.tasks.plans import BatchPlan
from tests.rank_threads import on_ranks

SHAPE = (2, 1, 3)
FEW = settings(max_examples=25)  # threads that meet a hundred times each
CORPUS = CorpusRecord("made", "here", "collect", "text", "d", None, None, 1, "tokens", 1)


@st.composite
def parts(draw):
    """Values of each of several ranks, some of which have none: of unlike scales, with zeros and outliers."""
    size = draw(st.integers(2, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    found = []
    for _ in range(size):
        count = draw(st.integers(0, 40))
        values = torch.randn(count, *SHAPE, generator=generator) * 10.0 ** draw(st.integers(-6, 6))
        values[torch.rand(values.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5]))] = 0.0
        found.append(values + draw(st.sampled_from([0.0, 1000.0])))
    if not any(map(len, found)):
        found[-1] = torch.ones(1, *SHAPE)
    return found


def statistics_of(values, rank, size):
    """What a rank has collected, in a batch; None where that is nothing."""
    if not len(values):
        return None
    made = ActivationStatistics.of_values(values)
    plan = PlanReading("plan", size, ((rank, rank + 1),))
    positions = Positions(SHAPE)
    for layer in range(SHAPE[0]):
        positions.add(layer, Rows(values[None, :, layer]))
    return replace(
        made,
        provenance=replace(made.provenance, corpora=(CORPUS,), plans=(plan,)),
        positions=positions,
        rows=torch.tensor([rank, 100]),
    )


def added(given_parts):
    size = len(given_parts)
    return on_ranks(size, lambda ranks: add_up(statistics_of(given_parts[ranks.rank], ranks.rank, size), ranks))


def require_equal(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


@FEW
@given(parts())
def test_counts_are_those_of_one_process_whoever_had_which_values(given_parts):
    whole = ActivationStatistics.of_values(torch.cat(given_parts))
    for found in added(given_parts):
        require_equal(found.histogram.tensors(), whole.histogram.tensors())


@FEW
@given(parts())
def test_moments_are_those_of_one_process_and_the_same_on_every_rank(given_parts):
    values = torch.cat(given_parts).double()
    found = added(given_parts)
    for other in found[1:]:
        require_equal(other.moments.state(), found[0].moments.state())
    size = values.abs().amax(0)
    assert torch.all((found[0].mean - values.mean(0)).abs() <= 1e-12 * size)
    assert torch.all((found[0].variance - values.var(0, correction=0)).abs() <= 1e-12 * size.square())


@FEW
@given(parts())
def test_the_second_pass_is_around_the_first_one_of_all(given_parts):
    whole = ActivationStatistics.of_values(torch.cat(given_parts), passes=2)

    def collect(ranks):
        found = added_on(ranks, given_parts)
        trimmed = trimmed_around(found.histogram, ranks)
        trimmed.update(given_parts[ranks.rank])
        return add_trimmed(trimmed, ranks)

    for found in on_ranks(len(given_parts), collect):
        require_equal(found.inside.tensors(), whole.trimmed.inside.tensors())
        assert torch.equal(found.underflow, whole.trimmed.underflow)
        assert torch.equal(found.overflow, whole.trimmed.overflow)


def added_on(ranks, given_parts):
    return add_up(statistics_of(given_parts[ranks.rank], ranks.rank, ranks.size), ranks)


def test_positions_rows_and_provenance_of_unlike_lengths_and_of_a_rank_with_nothing():
    given_parts = [torch.ones(2, *SHAPE), torch.ones(0, *SHAPE), 3 * torch.ones(5, *SHAPE)]
    for found in added(given_parts):
        assert found.position_counts.tolist() == [2, 2, 1, 1, 1]
        assert found.position_mean[1, :, 0, 2].tolist() == [2.0, 2.0, 3.0, 3.0, 3.0]
        assert found.rows.tolist() == [0, 2, 100]
        assert found.provenance.ranks == (1, 0, 1)
        assert found.provenance.tokens == 7
        assert found.provenance.plans == (PlanReading("plan", 3, ((0, 1), (2, 3))),)


def test_nobody_has_anything():
    assert added([torch.ones(0, *SHAPE)] * 2) == [None, None]


def test_another_dtype_on_one_rank_is_refused():
    given_parts = [torch.ones(2, *SHAPE), torch.ones(2, *SHAPE, dtype=torch.float64)]
    with pytest.raises(MismatchError, match="ranks cannot add up"):
        added(given_parts)


def test_the_comparison_notices_one_count():
    one, two = (ActivationStatistics.of_values(torch.tensor([0.0, 1.0, last]).view(3, 1, 1, 1)) for last in (1.0, 0.0))
    with pytest.raises(AssertionError):
        require_equal(one.histogram.tensors(), two.histogram.tensors())


def test_a_constant_neuron_has_no_variance_however_many_ranks_saw_it():
    """Sums about a pivot that nobody has seen would leave a little."""
    values = torch.full((4, 1, 1, 1), 0.1)

    def moments(ranks):
        mine = Moments((1, 1, 1))
        if ranks.rank:
            mine.update_layer(0, values[:, 0])
        return add_moments(mine, ranks)

    for found in on_ranks(3, moments):
        assert (found.mean.item(), found.variance.item()) == (values.double()[0].item(), 0.0)


# ---------------------------------------------------------------------- whose batches


@pytest.mark.parametrize(("batches", "size"), [(7, 2), (2, 5), (6, 3)])
def test_every_batch_is_one_ranks(batches, size):
    plan = BatchPlan("causal-lm", CORPUS, 8, "all", None, (), ((),) * batches)
    shares = [share_of(plan, Ranks(rank, size)) for rank in range(size)]
    assert sorted(itertools.chain(*(share.numbers for share in shares))) == list(range(batches))
    assert np.ptp(list(map(len, shares))) <= 1
    read = [share.read(len(share)) for share in shares]
    whole = read[0]
    for other in read[1:]:
        whole = whole.join(other)
    assert whole.is_whole


def test_a_part_of_a_plan_is_dealt_too():
    plan = BatchPlan("causal-lm", CORPUS, 8, "all", None, (), ((),) * 9)
    assert [list(share_of(plan.part(2, 7), Ranks(rank, 2)).numbers) for rank in (0, 1)] == [[2, 4, 6], [3, 5]]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 2), (2, 3), (2, 9)])
def test_more_ranks_than_batches_agree_on_them(start, stop):
    plan = BatchPlan("causal-lm", CORPUS, 8, "all", None, (), ((),) * 9).part(start, stop)
    on_ranks(5, lambda ranks: require_alike(share_of(plan, ranks), {}, ranks))


def test_unlike_parts_of_a_plan_are_refused():
    plan = BatchPlan("causal-lm", CORPUS, 8, "all", None, (), ((),) * 9)

    def ask(ranks):
        with pytest.raises(MismatchError, match=r"which of them: 2 to 7 and 2 to 8"):
            require_alike(share_of(plan.part(2, 7 + ranks.rank), ranks), {}, ranks)

    on_ranks(2, ask)


# ---------------------------------------------------------------------- who cannot go on


def test_who_fails_says_why_to_the_others_and_they_stop_at_once():
    def work(ranks):
        shared, done = ranks.share_work(), []

        def part():
            while not shared.is_given_up():
                if ranks.rank == 1:
                    raise ValueError("no")
                done.append(1)
            return False

        with pytest.raises(ValueError if ranks.rank == 1 else RankError) as caught:
            shared.do(part)
        # And what follows is not taken for this.
        assert ranks.share_work().do(lambda: True)
        return str(caught.value)

    told = "rank 1 of 3 could not do its part (ValueError: no)."
    assert on_ranks(3, work) == [told, "no", told]


def test_who_is_interrupted_interrupts_all():
    assert on_ranks(2, lambda ranks: ranks.share_work().do(lambda: ranks.rank == 0)) == [False, False]


def test_unlike_settings_are_named_with_both_values():
    def ask(ranks):
        with pytest.raises(MismatchError, match=r"ranks 0 and 1 do not do the same \(bins: 64 and 65\)"):
            ranks.require_alike({"bins": 64 + ranks.rank, "site": "z"}, "do the same")
        return ranks.texts(f"é{ranks.rank}")

    assert on_ranks(2, ask) == [["é0", "é1"]] * 2


# ---------------------------------------------------------------------- who one is


def test_an_environment_of_something_else_is_no_job(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert Ranks.told() == Ranks()


@pytest.mark.parametrize(("rank", "size"), [("two", "2"), ("2", "2"), ("-1", "2")])
def test_an_impossible_environment_is_one_sentence(monkeypatch, rank, size):
    told = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Exception, match=f"RANK={rank}, WORLD_SIZE={size}"):
        Ranks.told()
