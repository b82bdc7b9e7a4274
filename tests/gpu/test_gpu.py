"""What a GPU computes against a CPU: losses, gradients and ranks in float32; graphs; resuming.

pytest -m gpu tests/gpu
"""

from __future__ import annotations

import dataclasses
import multiprocessing

import numpy as np
import pytest
import torch

from perpeft_ray.config import (
    FACTS,
    PEFT_METHODS,
    VARIANTS,
    Method,
    StudyConfig,
    TrainSettings,
    TrialConfig,
    Variant,
)
from perpeft_ray.encoder import hardware
from perpeft_ray.encoder.fast import clip, sdpa
from perpeft_ray.encoder.rows import Rows
from perpeft_ray.train.build import build_model
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.epoch import StageData, train_epoch
from perpeft_ray.train.job import open_job
from perpeft_ray.train.memory import Units
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.state import weights
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace, prepare
from tests.small_shop import write_small_shop

pytestmark = pytest.mark.gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = write_small_shop(tmp_path_factory.mktemp("shop") / "small")
    return prepare(f"parquet:{folder}", "toyshop-clip", tmp_path_factory.mktemp("cache"))


def _trial(
    method: Method = "perpeft", variant: Variant | None = "lora", **changes: object
) -> TrialConfig:
    train = TrainSettings(
        dtype="float32", epochs=1, personal_epochs=1, validate_every=1, batch_size=8
    )
    config = StudyConfig(train=train).trial(
        method,
        variant=variant,
        rank=4,
        groups=3,
        conditioning_weight=0.5,
        seed=0,
        learning_rate=1e-3,
    )
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_has_the_loss_and_gradients_of_a_cpu(workspace, variant):
    drop = 0.0 if FACTS[variant].dropout else None
    config = _trial(variant=variant, dropout=0.0, adapter_dropout=drop)
    found = []
    for device in (CPU, GPU):
        job = open_job(config, workspace, Alone(), device)
        model, generator = job.model.train(), torch.Generator().manual_seed(1)
        module = model.new_module()
        for parameter in module.values():
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.data += noise.to(device)
        users = job.sampler.trainable_users[:16]
        batch = job.sampler.sample(users, np.random.default_rng(0), pool=None, weight=0.0)
        loss, positions = model.loss_sum(batch, module, 0.0)
        (loss / positions).backward()
        parts = [*module.values(), *model.backbone.parameters()]
        found.append((loss.item(), [p.grad.cpu() for p in parts if p.grad is not None]))
    (expected, of_cpu), (actual, of_gpu) = found
    assert actual == pytest.approx(expected, rel=1e-4)
    scale = max(float(gradient.norm()) for gradient in of_cpu)
    for one, other in zip(of_gpu, of_cpu, strict=True):
        assert (one - other).norm() <= 1e-4 * max(float(other.norm()), 1e-2 * scale)


@pytest.mark.parametrize("method", sorted(PEFT_METHODS | {"without_mm", "frozen_mm"}))
def test_a_trial_of_each_method_has_the_loss_of_a_cpu(workspace, method, tmp_path):
    config = _trial(method, "lora", dropout=0.0)
    if config.adapter_dropout is not None:
        config = dataclasses.replace(config, adapter_dropout=0.0)
    losses = []
    for device in (CPU, GPU):
        records: list[EpochRecord] = []
        own = workspace.with_nothing_trained(tmp_path / device.type)
        outcome = run_trial(config, own, records.append, test=True, device=device)
        assert outcome.device == device.type
        losses.append([record.loss for record in records])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)


def _trained(workspace: Workspace, config: TrialConfig, epochs: int) -> dict[str, torch.Tensor]:
    job = open_job(config, workspace, Alone(), GPU)
    state = job.fresh_state([0])
    users = job.sampler.trainable_users[:32]
    data = StageData(1, job.sampler, {0: users}, {0: None}, 0.0)
    for epoch in range(1, epochs + 1):
        train_epoch(state, data, epoch, config, Alone(), Units())
    return weights(state)


@pytest.mark.parametrize(
    ("variant", "dtype"), [*((v, "float32") for v in VARIANTS), ("lora", "bfloat16")]
)
def test_graphs_train_as_without_them(workspace, monkeypatch, variant, dtype):
    """Dropout included: a graph draws what torch's generator would."""
    config = _trial(variant=variant, batch_size=8, dtype=dtype)
    with_graphs = _trained(workspace, config, 4)
    monkeypatch.setattr(hardware, "_CUDA", dataclasses.replace(hardware._CUDA, graph_items=0))
    without = _trained(workspace, config, 4)
    difference = sum(float((with_graphs[name] - x).square().sum()) for name, x in without.items())
    size = sum(float(x.square().sum()) for x in without.values())
    assert difference**0.5 <= 1e-3 * size**0.5


def test_rows_too_large_for_the_card_are_copied(monkeypatch):
    array = np.random.default_rng(0).integers(0, 256, (500, 3, 32, 32), dtype=np.uint8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    rows, order = Rows(array), np.random.default_rng(1)
    for _ in range(20):
        torch.randn(2000, 2000, device=GPU) @ torch.randn(2000, 2000, device=GPU)
        wanted = order.integers(0, 500, 400)
        assert np.array_equal(rows.read(wanted, GPU).cpu().numpy(), array[wanted])


def test_padding_changes_only_rounding(workspace, monkeypatch):
    items = np.arange(1, workspace.num_items + 1)
    found = []
    for sizes in (hardware._CUDA, dataclasses.replace(hardware._CUDA, item_step=1, length_step=1)):
        monkeypatch.setattr(hardware, "_CUDA", sizes)
        model = build_model(_trial(), workspace, GPU).eval()
        with torch.no_grad():
            found.append(model.embed(items, model.new_module()))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_is_that_of_a_cpu(dtype):
    torch.manual_seed(0)
    x = (4 * torch.randn(3, 1000, 7)).to(dtype)
    gradient = torch.randn_like(x)
    found = []
    for device in (CPU, GPU):
        own = x.detach().clone().to(device).requires_grad_()
        out = clip.QuickGelu()(own)
        out.backward(gradient.to(device))
        found.append((out.detach().cpu(), own.grad.cpu()))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("seen", ["all", "earlier", "own tokens"])
@pytest.mark.parametrize(("length", "depth"), [(7, 32), (50, 64), (77, 64), (128, 32)])
def test_short_attention_is_that_of_torch(seen, length, depth):
    torch.manual_seed(0)
    n, heads = 5, 3
    q, k, v, gradient = (
        torch.randn(n, length, heads, depth, device=GPU).bfloat16().transpose(1, 2)
        for _ in range(4)
    )
    mask = None
    if seen == "own tokens":
        counts = torch.randint(1, length + 1, (n, 1), device=GPU)
        mask = (torch.arange(length, device=GPU) < counts)[:, None, None]
    found = []
    for dtype in (torch.bfloat16, torch.float32):  # float32 keeps torch's kernel
        own = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        out = sdpa.attend(own[0], own[1], own[2], mask, 0.3, causal=seen == "earlier")
        found.append([out, *torch.autograd.grad(out, own, gradient.to(dtype))])
    for one, exact in zip(*found, strict=True):
        assert (one.float() - exact).norm() <= 0.02 * exact.norm()


class _StopError(Exception):
    pass


def test_a_trial_that_was_stopped_goes_on_to_the_same_ranks(workspace, tmp_path):
    config = _trial(stage3_epochs=3)
    whole = workspace.with_nothing_trained(tmp_path / "whole")
    expected = run_trial(config, whole, lambda _: None, test=True, device=GPU)

    def stop(record: EpochRecord) -> None:
        if record.epoch == 3:
            raise _StopError

    broken = workspace.with_nothing_trained(tmp_path / "broken")
    places = {"test": True, "device": GPU, "checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(_StopError):
        run_trial(config, broken, stop, **places)
    found = run_trial(config, broken, lambda _: None, **places)
    assert np.array_equal(found.users.test_rank, expected.users.test_rank)


def _ranks(workspace: Workspace, seed: int, found: multiprocessing.Queue) -> None:
    outcome = run_trial(_trial(seed=seed), workspace, lambda _: None, test=True, device=GPU)
    found.put((seed, outcome.users.test_rank.tolist()))


def test_two_trials_share_a_card(workspace, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    own = [workspace.with_nothing_trained(tmp_path / f"{seed}") for seed in (0, 1)]
    processes = [spawn.Process(target=_ranks, args=(own[seed], seed, queue)) for seed in (0, 1)]
    for process in processes:
        process.start()
    together = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    for seed in (0, 1):
        alone = workspace.with_nothing_trained(tmp_path / f"alone-{seed}")
        outcome = run_trial(_trial(seed=seed), alone, lambda _: None, test=True, device=GPU)
        assert outcome.users.test_rank.tolist() == together[seed]
