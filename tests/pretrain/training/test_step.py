"""One step: what it computes does not depend on how it is cut, fused or watched."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import OptimizerConfig, Recipe, replace_fields
from hear_m2d.pretrain.training.step import Trainer, compile_blocks, part_size
from hear_m2d.utils.errors import InputError, WorkFailedError

TINY = Recipe(
    objective="m2d",
    optimizer=OptimizerConfig(base_lr=0.03),
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    encoder=EncoderConfig(width=32, depth=2, heads=2, input_size=(80, 64)),
    batch_size=6,
    steps=10,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(6, 1, 80, 64, generator=generator),
        "noise": torch.rand(6, 20, generator=generator),
    }


def trainer(recipe=TINY, precision="float32", **options):
    objective = build_objective(recipe)
    if precision == "float64":
        objective.double()
    return Trainer(objective, recipe, device=torch.device("cpu"), precision=precision, **options)


def gradients(trained, batch):
    """The gradients of a step: its optimizer is held back."""
    actual = {}
    trained.optimizer.step = lambda *args, **kwargs: actual.update(
        {name: p.grad.clone() for name, p in trained.objective.named_parameters() if p.requires_grad}
    )
    return trained.step(batch, rate=0.0), actual


@pytest.mark.parametrize("micro_batch_size", [1, 4, 6, 100])
def test_a_batch_in_parts_has_the_loss_and_gradients_of_the_whole(batch, micro_batch_size):
    batch = {name: tensor.double() for name, tensor in batch.items()}
    whole, expected = gradients(trainer(precision="float64"), batch)
    parts, actual = gradients(trainer(precision="float64", micro_batch_size=micro_batch_size), batch)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.norm, whole.norm, rtol=0, atol=1e-12)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-12)


def test_a_loss_of_the_whole_batch_is_not_computed_in_parts(batch):
    recipe = dataclasses.replace(TINY, batch_norm_target=True)
    assert trainer(recipe).step(batch, rate=0.0).loss.isfinite()
    with pytest.raises(InputError, match=r"the 6 clips .* not in 2: give --micro-batch-size 6"):
        trainer(recipe, micro_batch_size=4).step(batch, rate=0.0)


def test_the_gradient_is_clipped_to_the_recipes_norm(batch):
    result, actual = gradients(trainer(replace_fields(TINY, {"optimizer.clip_grad": 0.01})), batch)
    total = torch.stack([value.square().sum() for value in actual.values()]).sum().sqrt()
    assert float(result.norm) > 0.01  # before clipping
    assert float(total) == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_attention_of_trained_blocks_is_unfused_and_that_of_the_target_is_not(batch):
    trained = trainer(precision="bfloat16")
    objective = trained.objective
    assert not any(block.attn.fused_attn for block in [*objective.encoder.blocks, *objective.decoder.blocks])
    assert all(block.attn.fused_attn for block in objective.target.blocks)
    assert all(block.attn.fused_attn for block in trainer().objective.encoder.blocks)
    exact, expected = gradients(trainer(), batch)
    rounded, actual = gradients(trained, batch)
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.02, atol=0)
    for name, value in expected.items():
        assert torch.nn.functional.cosine_similarity(actual[name].flatten(), value.flatten(), dim=0) > 0.98, (
            name
        )


def test_a_step_that_does_not_fit_into_memory_names_the_option_to_give(batch, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trained = trainer(micro_batch_size=4)
    monkeypatch.setattr(trained, "_forward", full)
    with pytest.raises(WorkFailedError, match=r"3 clips at once do not fit .* --micro-batch-size, such as 1"):
        trained.step(batch, rate=0.0)


def test_forward_backward_and_momentum_read_nothing_from_the_device(batch):
    """On the meta device a tensor has no values: whatever waits for one fails."""
    objective = build_objective(TINY).to("meta")
    result = objective({k: v.to("meta") for k, v in batch.items()}["x"], batch["noise"].to("meta"))
    result.loss.backward()
    objective.momentum_update(0.99)


def test_every_block_of_every_network_is_compiled():
    objective = build_objective(TINY)
    compile_blocks(objective)
    compiled = [m for m in objective.modules() if m._compiled_call_impl is not None]
    assert len(compiled) == 2 + 2 + 1  # encoder, target, predictor


class Waits(TorchDispatchMode):
    """Notes each operation for whose result Python waits: a number read, a size that depends on values."""

    def __init__(self):
        super().__init__()
        self.actual = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}:
            self.actual.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", ["m2d", "msm_mae"])
@pytest.mark.parametrize("micro_batch_size", [0, 4])
def test_nothing_in_a_step_waits_for_the_device(batch, objective, micro_batch_size):
    trained = trainer(dataclasses.replace(TINY, objective=objective), micro_batch_size=micro_batch_size)
    trained.step(batch, rate=1e-3)
    with Waits() as waits:
        result = trained.step(batch, rate=1e-3)
        trained.objective.momentum_update(0.9)
    assert waits.actual == []
    with waits:
        float(result.loss)
    assert waits.actual == ["_local_scalar_dense"]


@pytest.mark.parametrize(
    ("clips", "limit", "size"),
    [(2048, 300, 256), (2048, 512, 512), (24, 7, 6), (24, 0, 24), (24, 100, 24), (2053, 512, 512), (8, 3, 2)],
)
def test_a_batch_is_cut_into_equal_parts_within_the_limit(clips, limit, size):
    assert part_size(clips, limit) == size
