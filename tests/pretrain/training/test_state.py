"""Training states: which are kept, which one a run continues from, and what is told where one is damaged."""

import dataclasses
import resource
import subprocess
import sys

import pytest
import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import Recipe, replace_fields
from hear_m2d.pretrain.training.state import States
from hear_m2d.pretrain.training.step import make_optimizer
from hear_m2d.utils.errors import WorkFailedError

TINY = Recipe(
    objective="m2d",
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    encoder=EncoderConfig(width=32, depth=1, heads=2, input_size=(80, 64)),
    batch_size=4,
    steps=10,
)


@pytest.fixture
def trained():
    """An objective and its optimizer after one update."""
    objective = build_objective(TINY)
    optimizer = make_optimizer(objective, TINY)
    objective(torch.randn(4, 1, 80, 64), torch.rand(4, 20)).loss.backward()
    optimizer.step()
    return objective, optimizer


def test_a_state_holds_weights_and_moments(trained, tmp_path):
    objective, optimizer = trained
    States(tmp_path).save(objective, optimizer, 3)
    other = build_objective(dataclasses.replace(TINY, seed=1))
    moments = make_optimizer(other, TINY)
    States(tmp_path).load(other, moments, 3)
    for (name, here), (_, there) in zip(
        objective.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(here, there), name
    for here, there in zip(objective.parameters(), other.parameters(), strict=True):
        assert optimizer.state[here].keys() == moments.state[there].keys()
        for key, value in optimizer.state[here].items():
            assert torch.equal(value, moments.state[there][key])


@pytest.mark.parametrize(
    ("last", "every", "kept"),
    [(1, 0, [8]), (2, 0, [6, 8]), (1, 4, [4, 8]), (2, 3, [3, 6, 8]), (9, 0, [2, 3, 4, 6, 8])],
)
def test_the_newest_states_are_kept_and_multiples_for_good(trained, tmp_path, last, every, kept):
    states = States(tmp_path, keep_last=last, keep_every=every)
    for step in (2, 3, 4, 6, 8):
        states.save(*trained, step)
    assert states.steps() == kept
    assert states.newest()[0] == 8


def test_a_damaged_state_is_passed_over_for_the_one_before_it(trained, tmp_path, caplog):
    states = States(tmp_path)
    states.save(*trained, 2)
    states.save(*trained, 4)
    data = bytearray(states.path(4).read_bytes())
    data[-5] ^= 1
    states.path(4).write_bytes(data)
    assert states.newest()[0] == 2
    assert "state-4.safetensors is damaged" in caplog.text
    states.path(2).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"state-4\.safetensors is damaged.*Remove it"):
        states.newest()


def test_weights_that_are_not_finite_are_never_saved(trained, tmp_path):
    objective, optimizer = trained
    states = States(tmp_path)
    states.save(objective, optimizer, 2)
    with torch.no_grad():
        objective.decoder.mask_token.fill_(float("nan"))
    with pytest.raises(WorkFailedError, match=r"no longer finite at step 4.*state-2\.safetensors keeps"):
        states.save(objective, optimizer, 4)
    assert states.steps() == [2]


def test_a_state_of_other_sizes_is_refused(trained, tmp_path):
    States(tmp_path).save(*trained, 2)
    wider = build_objective(replace_fields(TINY, {"encoder.width": 64}))
    with pytest.raises(ValueError, match="network of other sizes"):
        States(tmp_path).load(wider, make_optimizer(wider, TINY), 2)


FULL = """
import resource, sys
from pathlib import Path
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.recipe import recipe_of_record
from hear_m2d.pretrain.training.state import States
from hear_m2d.pretrain.training.step import make_optimizer
recipe = recipe_of_record(eval(sys.argv[2]), "test")
objective = build_objective(recipe)
states = States(Path(sys.argv[1]))
states.save(objective, make_optimizer(objective, recipe), 2)
size = states.path(2).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
states.save(objective, make_optimizer(objective, recipe), 4)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system limits no files")
def test_a_state_that_does_not_fit_on_the_disk_is_reported_and_removed(tmp_path):
    """The system itself refuses the second half of the file."""
    command = [sys.executable, "-c", FULL, tmp_path, repr(TINY.to_json())]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert "WorkFailedError: the state of step 4 cannot be written" in ended.stderr
    assert "state-2.safetensors keeps the last good state. Make room" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["state-2.safetensors"]
