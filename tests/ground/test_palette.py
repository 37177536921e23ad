from ablation_lens import centers
from ablation_lens.measure import learners
from ablation_lens.palette import METHOD_COLORS, color_of


def test_every_center_of_the_package_has_a_colour_of_its_own():
    assert {*centers.names(), *learners.names()} <= set(METHOD_COLORS)
    assert len(set(METHOD_COLORS.values())) == len(METHOD_COLORS)


def test_a_center_of_ones_own_has_a_colour_no_other_method_has():
    found = {color_of(name) for name in ("first-quartile", "trimmed-mean", "mine", "z")}
    assert not found & set(METHOD_COLORS.values())
    assert len(found) > 1
    assert color_of("mine") == color_of("mine")
