"""Small sound files to damage, and a judge of what became of reading one."""

import contextlib
import signal

import pytest
import torch

from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.hear_model import HearModel

LONGEST_S = 10


class Hanging(BaseException):
    """Not an Exception, so that no reader can swallow it."""


@contextlib.contextmanager
def time_limit():
    """Raise after some seconds, where the system has alarms."""

    def ring(*_):
        raise Hanging(f"reading took longer than {LONGEST_S} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def tiny_model():
    """A model of few bytes, so that damage hits every part of its file."""
    encoder = EncoderConfig(input_size=(80, 4), patch_size=(80, 2), width=64, depth=1, heads=1, mlp_ratio=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HearModel(ModelConfig(encoder=encoder)).eval()


@pytest.fixture
def reads_right_or_says_why(tiny_model):
    """Read a file: True if it gives every tensor, False if a sentence refuses it; else fail.

    With ``exact``, for formats that have checksums, the tensors must be those that were written.
    """

    def judge(path, exact=False) -> bool:
        sentence = ""
        try:
            with time_limit():
                checkpoint = read_weights(path)
        except (ValueError, OSError) as error:
            sentence = str(error) or repr(error)
        if sentence:
            assert len(sentence.split()) >= 4, f"no sentence: {sentence}"
            assert path.name in sentence, f"does not name the file: {sentence}"
            return False
        expected = {n: t.shape for n, t in tiny_model.encoder.state_dict().items()}
        assert {n: t.shape for n, t in checkpoint.tensors.items()} == expected
        assert all(t.dtype == torch.float32 for t in checkpoint.tensors.values())
        if exact:
            for name, tensor in tiny_model.encoder.state_dict().items():
                assert torch.equal(checkpoint.tensors[name], tensor), f"damage to {name} went unnoticed"
        return True

    return judge
