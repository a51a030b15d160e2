"""Windows: the worked numbers of the published rules, and ours, which loses no frame."""

import pytest
import torch

from hear_m2d.windows import plan_windows


def columns_of(plan, frames):
    """Count columns slowly: window by window, whole patches only."""
    total, end = 0, frames + plan.pad
    for window in range(plan.count):
        start = window * plan.stride
        total += min(plan.stride, end - start) // plan.patch
    return total - plan.drop


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
        assert plan.regular
        assert columns_of(plan, frames) == -(-frames // patch)
        assert 0 <= plan.pad < patch


@pytest.mark.parametrize("window", [208, 608])
def test_both_rules_agree_where_the_window_is_whole_patches(window):
    for frames in range(1, 3 * window, 7):
        ours = plan_windows(frames, window=window, patch=16)
        assert ours == plan_windows(frames, window=window, patch=16, rule="m2d")


def test_centres_jump_where_published_windows_skip_frames():
    plan = plan_windows(420, window=201, patch=16, rule="m2d")
    centres = plan.centres(26)
    assert centres[:2].tolist() == [7.5, 23.5]
    assert centres[11].item() == 11 * 16 + 7.5
    assert centres[12].item() == 201 + 7.5
    assert bool((torch.diff(centres) > 0).all())
