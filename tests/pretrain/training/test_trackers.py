"""Trackers: TensorBoard always, others beside it; one that fails does not stop a run."""

import sys
import time

import pytest
from accelerate.tracking import GeneralTracker

from hear_m2d.pretrain.training.trackers import Trackers, check_trackers


class Notebook(GeneralTracker):
    """A tracker of accelerate's kind that keeps what it is given."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self, fails_at=None):
        super().__init__()
        self.lines, self.settings, self.closed, self.fails_at = [], None, False, fails_at

    @property
    def tracker(self):
        return self.lines

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None, **kwargs):
        if step == self.fails_at:
            raise ConnectionError("the service is away")
        self.lines.append((step, values))

    def finish(self):
        if self.fails_at == "end":
            raise ConnectionError("the service is away")
        self.closed = True


def tensorboard_events(folder):
    """Read TensorBoard's own files back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def tensorboard_steps(folder):
    """Return the steps of each tag."""
    events = tensorboard_events(folder)
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_and_another_get_every_line_and_the_settings(tmp_path):
    notebook = Notebook()
    trackers = Trackers(tmp_path, [notebook], {"width": 32, "deviations": ("a", "b"), "steps": None})
    trackers.log({"step": 2, "loss": 0.5})
    trackers.log({"step": 4, "loss": 0.25, "probe/x/knn": 0.75})
    trackers.finish()
    assert notebook.lines == [(2, {"loss": 0.5}), (4, {"loss": 0.25, "probe/x/knn": 0.75})]
    assert notebook.settings == {"width": 32}  # what trackers can keep: plain values
    assert notebook.closed
    assert tensorboard_steps(tmp_path / "tensorboard") == {"loss": [2, 4], "probe/x/knn": [4]}


@pytest.mark.parametrize("state", [0, 4])
def test_tensorboard_shows_the_steps_that_a_resumed_run_takes_again_once(state, tmp_path):
    for begun, value in ((0, 0.25), (state, 0.75)):
        trackers = Trackers(tmp_path, step=begun)
        if not begun:
            trackers.log({"step": 0, "probe/x/knn": value})
        for step in range(begun + 2, 9, 2):
            trackers.log({"step": step, "loss": value})
        trackers.finish()
        time.sleep(1.1)  # its files are read in the order of their names, which count seconds
    assert tensorboard_steps(tmp_path / "tensorboard") == {"loss": [2, 4, 6, 8], "probe/x/knn": [0]}
    values = [0.25] * (state // 2) + [0.75] * (4 - state // 2)
    assert [event.value for event in tensorboard_events(tmp_path / "tensorboard").Scalars("loss")] == values


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path, caplog):
    broken, sound = Notebook(fails_at=2), Notebook()
    trackers = Trackers(tmp_path, [broken, sound])
    for step in (1, 2, 3):
        trackers.log({"step": step, "loss": 1.0})
    trackers.finish()
    assert [step for step, _ in broken.lines] == [1]
    assert [step for step, _ in sound.lines] == [1, 2, 3]
    assert tensorboard_steps(tmp_path / "tensorboard") == {"loss": [1, 2, 3]}
    assert caplog.text.count("the service is away") == 1


def test_a_tracker_that_fails_at_the_end_does_not_keep_the_others_open(tmp_path, caplog):
    broken, sound = Notebook(fails_at="end"), Notebook()
    trackers = Trackers(tmp_path, [broken, sound])
    trackers.log({"step": 1, "loss": 1.0})
    trackers.finish()
    assert sound.closed
    assert "the service is away" in caplog.text


def test_a_tracker_without_a_login_is_an_input_error(tmp_path, monkeypatch):
    import accelerate.tracking

    def refuse(*args, **kwargs):
        raise RuntimeError("No API key configured.")

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "mlflow", refuse)
    refuse.requires_logging_directory = False
    with pytest.raises(ValueError, match=r"mlflow cannot start: No API key configured\. Correct this"):
        Trackers(tmp_path, ["mlflow"])


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused_with_the_line_to_type(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown tracker 'wand'\. Did you mean wandb"):
        check_trackers(["wand"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="Type: pip install wandb"):
        check_trackers(["wandb"])
    check_trackers(["tensorboard", Notebook()])


def test_tensorboard_asked_for_by_name_is_there_once(tmp_path):
    trackers = Trackers(tmp_path, ["tensorboard", "tensorboard"])
    trackers.log({"step": 1, "loss": 1.0})
    trackers.finish()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.stat().st_size
