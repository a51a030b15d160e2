"""Windows: the worked numbers of the published rules, and ours, which loses no frame."""

import pytest

from hear_m2d.model.windows import plan_windows


def columns_of(plan, frames):
    return sum(window.columns for window in plan.windows(frames))


@pytest.mark.parametrize(
    ("window", "frames", "columns"),
    [(608, 1001, 63), (608, 608, 38), (608, 609, 39), (608, 101, 7), (1001, 1001, 62), (1001, 1000, 62),
     (1001, 980, 62), (1001, 13, 1), (1001, 1002, 63), (1001, 2002, 124)],
)  # fmt: skip
def test_published_m2d_windows_give_the_published_columns(window, frames, columns):
    plan = plan_windows(frames, window=window, patch=16, rule="m2d")
    assert columns_of(plan, frames) == columns


@pytest.mark.parametrize(
    ("window", "frames", "pad", "cut", "columns"),
    [(208, 201, 7, 0, 13), (512, 900, 124, 7, 57), (512, 1001, 23, 1, 63), (208, 208, 208, 13, 13)],
)
def test_published_msm_mae_windows_give_the_published_columns(window, frames, pad, cut, columns):
    plan = plan_windows(frames, window=window, patch=16, rule="msm_mae")
    assert (plan.pad, plan.drop) == (pad, cut)
    assert columns_of(plan, frames) == columns


@pytest.mark.parametrize("patch", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("window", [201, 208, 1001])
def test_our_windows_hold_every_frame_once(patch, window):
    for frames in (1, 3, patch, window - 1, window, window + 1, 3 * window + 7):
        plan = plan_windows(frames, window=window, patch=patch)
        assert columns_of(plan, frames) == -(-frames // patch)
        held = [f for w in plan.windows(frames) for f in range(w.start, w.start + w.frames)]
        assert held == list(range(frames + plan.pad))
        assert 0 <= plan.pad < patch


@pytest.mark.parametrize("window", [208, 608])
def test_both_rules_agree_where_the_window_is_whole_patches(window):
    for frames in range(1, 3 * window, 7):
        ours = plan_windows(frames, window=window, patch=16)
        assert ours == plan_windows(frames, window=window, patch=16, rule="m2d")


def test_published_windows_skip_the_frames_that_fill_no_patch():
    first, second, third = plan_windows(420, window=201, patch=16, rule="m2d").windows(420)
    assert (first.start, first.frames, first.column) == (0, 192, 0)
    assert (second.start, second.frames, second.column) == (201, 192, 12)
    assert (third.start, third.frames, third.column) == (402, 32, 24)


def test_a_window_knows_its_clip_its_phase_and_its_shift():
    windows = plan_windows(100, window=64, patch=16).windows(100, clip=3, shift=-6, phase=2)
    assert [(w.clip, w.phase, w.start, w.frames) for w in windows] == [(3, 2, -6, 64), (3, 2, 58, 48)]
