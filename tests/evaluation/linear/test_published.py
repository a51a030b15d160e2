"""Published figures: as printed, with their source, and a measured one in its place among them."""

from hear_m2d.evaluation.linear.published import NO_FIGURES, comparison, published


def test_figures_carry_interval_and_source():
    (figure,) = [row for row in published("linear", "esc50") if row.model == "M2D/0.7"]
    assert (figure.score, figure.ci, figure.metric) == (91.3, 0.6, "acc_percent")
    assert "Table 3" in figure.source
    (tuned,) = [row for row in published("finetune", "as20k") if row.model == "M2D/0.7"]
    assert (tuned.score, tuned.metric) == (38.6, "mAP_percent")


def test_a_measured_score_stands_in_its_place_and_is_marked():
    lines = comparison("linear", "gtzan", "mine", 0.8432, 0.01)
    names = [line.split("  ")[0] for line in lines]
    assert names.index("HTS-AT") < names.index("> mine") < names.index("M2D/0.7")
    assert "84.3  ± 1.0" in lines[names.index("> mine")]
    assert comparison("linear", "my own set", "mine", 0.5, None) == [NO_FIGURES]


def test_a_score_on_other_data_or_settings_is_marked_as_not_comparable():
    lines = comparison("linear", "esc50", "mine", 0.9, None, changes=["60 of 2000 clips", "seeds 42"])
    assert any(line.split() == [">", "mine", "†", "90.0"] for line in lines)
    assert "† not comparable: 60 of 2000 clips; seeds 42" in lines
    assert not any("†" in line for line in comparison("linear", "esc50", "mine", 0.9, None))
