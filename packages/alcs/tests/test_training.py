"""Training under a budget: the same bits with and without Lightning, killed or not, and no zeros
lost.

Judges: a plain loop, uninterrupted runs, the operating system (SIGTERM, SIGKILL), two processes.
"""

import copy
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as nnf
from lightning.pytorch import Callback
from torch import nn

from alcs.admm import ADMM
from alcs.finetuning import keep_masked, recalibrate_bn
from alcs.masks import Masks
from alcs.training import (
    Pruner,
    accuracy,
    agreement,
    batches,
    loss_gradients,
    run_finetune,
    usual_rho,
)
from effcv.errors import ArgumentError, Interrupted, TrainingError
from effcv.runtime.data_order import ResumableLoader, SeededSampler
from effcv.runtime.seed import derive, generator, seed_everything

SCRIPT = Path(__file__).with_name("pruning_worker.py")
worker = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What an uninterrupted run of ADMM ends with."""
    found, admm, result = worker.train(tmp_path_factory.mktemp("reference") / "run")
    assert result.steps == 28
    return worker.fingerprint(found, admm)


@pytest.fixture
def masked():
    """A subject and masks that keep some of it, from a projection at once."""
    subject = worker.subject()
    weights = {name: subject.weight(name) for name in subject.layers}
    return subject, Masks(weights, worker.projection()(weights)[1])


def epochs_of(count, seed=0):
    """The batches of `fit`, by epoch."""
    loader = ResumableLoader(worker.Blobs(), SeededSampler(50, batch_size=8, seed=seed))
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        yield epoch, loader


def optimizer_of(module, lr, weight_decay):
    strong = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": strong, "weight_decay": weight_decay}, {"params": rest}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def fine_tune(subject, masks, out, **options):
    defaults = {"epochs": 2, "batch_size": 8, "threads": 1, "device": "cpu", "progress": False}
    return run_finetune(subject, masks, worker.Blobs(), out=out, **defaults | options)


# --- ADMM ----------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_gives_the_same_bits_as_the_callback(reference):
    torch.set_num_threads(1)
    subject = worker.subject()
    weights = {name: subject.weight(name) for name in subject.layers}
    admm = ADMM(weights, worker.projection(), rho=0.05, rho_growth=1.3)
    optimizer, step = optimizer_of(subject.module, 0.05, 1e-4), 0
    subject.module.train()
    for _, loader in epochs_of(4):
        for index, (images, labels) in enumerate(loader):
            seed_everything(derive(0, "step", step, index, 0))
            loss = nnf.cross_entropy(subject.module(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            admm.penalty_grad_()
            optimizer.step()
            step += 1
        admm.epoch_end()
    assert worker.fingerprint(subject, admm) == reference


def test_what_it_ends_with_meets_the_budget_and_its_weights_have_come_nearer(reference):
    _, _, rho, history = reference
    assert [residuals.epoch for residuals in history] == [1, 2, 3, 4]
    assert all(residuals.latency_ms <= 1.2 + 1e-9 for residuals in history)
    assert history[-1].distance < history[0].distance
    assert rho == pytest.approx(0.05 * 1.3**4)


@pytest.mark.parametrize("stops", [[3], [7], [10, 12], [27]], ids=str)
def test_stopped_by_sigterm_and_resumed_it_ends_in_the_same_bits(tmp_path, reference, stops):
    for turn, stop in enumerate(stops):
        with pytest.raises(Interrupted) as stopped:
            worker.train(tmp_path, resume=turn > 0, callbacks=[worker.SignalAt(stop)])
        assert stopped.value.exit_code == 143
    found, admm, _ = worker.train(tmp_path, resume=True)
    assert worker.fingerprint(found, admm) == reference


@pytest.mark.parametrize("how", [{"taylor": True}, {"tighten": 3}], ids=str)
def test_so_it_does_by_gradients_of_taylor_and_while_the_budget_tightens(tmp_path, how):
    straight = worker.train(tmp_path / "straight", **how)
    with pytest.raises(Interrupted):
        worker.train(tmp_path / "stopped", **how, callbacks=[worker.SignalAt(10)])
    found, admm, _ = worker.train(tmp_path / "stopped", **how, resume=True)
    assert worker.fingerprint(found, admm) == worker.fingerprint(*straight[:2])


def test_a_tightening_budget_ends_as_asked_for_or_is_refused(tmp_path):
    _, admm, _ = worker.train(tmp_path / "run", tighten=4)
    times = [residuals.latency_ms for residuals in admm.history]
    assert times == sorted(times, reverse=True)
    assert times[-2] > 1.2 + 1e-3
    assert times[-1] <= 1.2 + 1e-9
    with pytest.raises(ArgumentError, match="over 5 epochs, expected 0 to 4"):
        worker.train(tmp_path / "refused", tighten=5)


def test_killed_outright_and_resumed_it_ends_in_the_same_bits(tmp_path, reference):
    command = [sys.executable, SCRIPT, tmp_path / "run", json.dumps({"kill_at": 17})]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)
    assert killed.returncode == -9
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 14
    found, admm, _ = worker.train(tmp_path / "run", resume=True)
    assert worker.fingerprint(found, admm) == reference


def test_an_epoch_that_a_limit_of_steps_cuts_short_is_not_projected(tmp_path, reference):
    _, admm, _ = worker.train(tmp_path, max_steps=10)
    assert len(admm.history) == 1
    found, admm, _ = worker.train(tmp_path, resume=True)
    assert worker.fingerprint(found, admm) == reference


def test_it_stops_when_it_has_converged_and_a_resumed_run_has_nothing_left_to_do(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ADMM, "converged", lambda self: len(self.history) >= 2)
    found, admm, result = worker.train(tmp_path)
    assert result.epochs == 2
    again, state, result = worker.train(tmp_path, resume=True)
    assert result.steps == 14
    assert worker.fingerprint(again, state) == worker.fingerprint(found, admm)


def test_a_loss_that_is_not_finite_stops_names_the_step_and_keeps_the_last_good_state(tmp_path):
    class Poison(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 9:
                batch[0].fill_(float("nan"))

    with pytest.raises(TrainingError, match="the loss is nan at step 9"):
        worker.train(tmp_path, callbacks=[Poison()])
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 7
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_the_checkpoint_holds_no_teacher(tmp_path):
    network = worker.subject()
    worker.train(tmp_path, network=network, teacher=copy.deepcopy(network.module), epochs=1)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("module.") for name in state} == set(network.module.state_dict())


@pytest.mark.slow
def test_two_processes_project_alike_and_as_one_does_with_twice_the_batch(tmp_path):
    options = {"devices": 2, "batch_size": 4, "plain": True}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    arguments = ["--rdzv-endpoint=localhost:0", SCRIPT, tmp_path / "two", json.dumps(options)]
    run = subprocess.run(
        [sys.executable, *launch, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True, timeout=500,
    )  # fmt: skip
    first, second = map(json.loads, run.stdout.splitlines())
    assert first == second  # weights, targets, duals and masks to the bit
    found, admm, _ = worker.train(tmp_path / "one", batch_size=8, plain=True)
    shares = worker.fingerprint(found, admm)[1]
    assert first[1] == {name: list(share) for name, share in shares.items()}


# --- fine-tuning ---------------------------------------------------------------------------------


def test_fine_tuning_keeps_every_zero_and_learns(tmp_path, masked):
    subject, masks = masked
    before = masks.weights["first"].detach().clone()
    fine_tune(subject, masks, tmp_path, epochs=4, lr=0.05)
    masks.check()
    kept = masks.kept("first")
    assert (masks.weights["first"].detach() != before)[kept].any()
    assert accuracy(subject.module, worker.Blobs()) > 0.9
    assert not subject.module.training


def test_it_is_the_plain_loop_with_a_cosine_on_recalibrated_statistics(tmp_path, masked):
    torch.set_num_threads(1)
    subject, masks = masked
    twin = copy.deepcopy(subject)
    fine_tune(subject, masks, tmp_path, lr=0.05)

    theirs = Masks({n: twin.weight(n) for n in twin.layers}, dict(masks.items()))
    theirs.apply_()
    recalibrate_bn(twin.module, next(epochs_of(1))[1])
    optimizer, step = optimizer_of(twin.module, 0.05, 0.0), 0
    twin.module.train()
    with keep_masked(optimizer, theirs):
        for _, loader in epochs_of(2):
            for index, (images, labels) in enumerate(loader):
                seed_everything(derive(0, "step", step, index, 0))
                for group in optimizer.param_groups:
                    group["lr"] = 0.05 * (1 + math.cos(math.pi * step / 14)) / 2
                optimizer.zero_grad()
                nnf.cross_entropy(twin.module(images), labels, label_smoothing=0.1).backward()
                optimizer.step()
                step += 1
    recalibrate_bn(twin.module, next(epochs_of(1))[1])
    for name, value in subject.module.state_dict().items():
        assert torch.equal(value, twin.module.state_dict()[name]), name


def test_stopped_in_fine_tuning_and_resumed_it_ends_in_the_same_bits(tmp_path, masked):
    subject, masks = masked
    straight, stopped, fresh = (copy.deepcopy(subject) for _ in range(3))
    fine_tune(straight, masks, tmp_path / "straight")
    with pytest.raises(Interrupted):
        fine_tune(stopped, masks, tmp_path / "run", callbacks=[worker.SignalAt(9)])
    fine_tune(fresh, masks, tmp_path / "run", resume=True)
    for name, value in straight.module.state_dict().items():
        assert torch.equal(value, fresh.module.state_dict()[name]), name


def test_masks_that_something_else_breaks_are_noticed(tmp_path, masked):
    class Restore(Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            with torch.no_grad():
                module.module[3].weight.add_(1e-3)

    subject, masks = masked
    with pytest.raises(TrainingError, match="removed weights of 'second'"):
        fine_tune(subject, masks, tmp_path, callbacks=[Restore()])


# --- what it learns from -------------------------------------------------------------------------


class Unlabelled(torch.utils.data.Dataset):
    """The images of `Blobs` without their classes."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return worker.Blobs()[index][0]


def test_without_labels_it_learns_from_the_dense_network(tmp_path, masked):
    subject, masks = masked
    teacher = copy.deepcopy(subject.module)
    teacher[7].weight.data.copy_(torch.randn((2, 8), generator=generator(0, "head")))
    subject.module[7].weight.data.zero_()
    options = {"epochs": 8, "batch_size": 8, "threads": 1, "device": "cpu", "lr": 0.1}
    masks.apply_()
    before = agreement(subject.module, teacher, Unlabelled())
    result = run_finetune(subject, masks, Unlabelled(), Unlabelled(), out=tmp_path,
                          teacher=teacher, progress=False, **options)  # fmt: skip
    after = agreement(subject.module, teacher, Unlabelled())
    assert after > before + 0.1
    assert result.metrics["agreement"] > before + 0.1  # before BatchNorm is measured once more
    assert not any(p.requires_grad for p in teacher.parameters())


def test_distillation_is_the_divergence_at_a_temperature_plus_the_square_of_the_logits():
    subject, teacher = worker.subject().module, worker.subject(scale=2.0).module
    images = torch.randn((5, 2, 6, 6), generator=generator(0, "images"))
    pruner = Pruner(subject, lr=0.1, teacher=teacher, temperature=3.0, logit_weight=0.5)
    found, wanted = subject(images), teacher(images)
    p, q = (wanted / 3).softmax(1), (found / 3).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    expected = 9 * divergence + 0.5 * (found - wanted).square().mean()
    torch.testing.assert_close(pruner.loss(images, found), expected)


def test_without_labels_and_without_a_teacher_it_says_what_is_missing(tmp_path, masked):
    subject, masks = masked
    with pytest.raises(ArgumentError, match=r"no labels.*a teacher"):
        run_finetune(subject, masks, Unlabelled(), out=tmp_path, epochs=1, batch_size=8,
                     device="cpu", progress=False)  # fmt: skip


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": 0.1, "temperature": -1.0}], ids=str)
def test_rates_that_cannot_train_are_refused(wrong):
    with pytest.raises(ArgumentError, match="positive"):
        Pruner(nn.Linear(2, 2), **wrong)


def test_the_usual_rho_is_the_published_one_at_the_published_rate_and_steps():
    assert usual_rho(0.005, steps=2500) == pytest.approx(0.01)  # arXiv 2110.08232
    assert usual_rho(0.005, steps=25) == pytest.approx(1.0)


def test_the_usual_rho_counts_the_steps_of_one_process_of_several(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        "alcs.training.training.fit", lambda *_, callbacks, **__: told.append(callbacks[0].admm.rho)
    )
    for devices in (1, 2):
        worker.train(tmp_path, rho=None, devices=devices, batch_size=5)  # of 50 images
    assert told == pytest.approx([usual_rho(0.05, steps=10), usual_rho(0.05, steps=5)])


def test_gradients_of_the_loss_are_those_of_autograd_and_leave_the_network_as_it_was():
    subject = worker.subject(dropout=0.0)
    subject.module.train()
    before = copy.deepcopy(subject.module.state_dict())
    found = loss_gradients(subject, worker.Blobs(), batch_size=50)
    assert subject.module.training
    assert all(torch.equal(v, before[n]) for n, v in subject.module.state_dict().items())
    items = [worker.Blobs()[index] for index in range(50)]
    images = torch.stack([image for image, _ in items])
    labels = torch.tensor([label for _, label in items])
    subject.module.eval()
    nnf.cross_entropy(subject.module(images), labels, label_smoothing=0.1).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, subject.weight(name).grad.abs())


def test_of_several_batches_they_are_the_root_of_the_mean_square():
    subject = worker.subject(dropout=0.0)
    found = loss_gradients(subject, worker.Blobs(), batch_size=25)
    squares = dict.fromkeys(found, 0.0)
    for images, labels in ResumableLoader(worker.Blobs(), SeededSampler(50, batch_size=25, seed=0)):
        subject.module.zero_grad()
        nnf.cross_entropy(subject.module(images), labels, label_smoothing=0.1).backward()
        for name in squares:
            squares[name] = squares[name] + subject.weight(name).grad.square() / 2
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.square(), squares[name])


def test_without_labels_they_are_of_labels_drawn_from_the_teacher():
    subject = worker.subject(dropout=0.0)
    certain = nn.Sequential(copy.deepcopy(subject.module), Times(1e6))
    found = loss_gradients(subject, worker.Blobs(), teacher=certain, batch_size=50)
    images = torch.stack([worker.Blobs()[index][0] for index in range(50)])
    logits = subject.module.eval()(images)
    nnf.cross_entropy(logits, logits.argmax(1), label_smoothing=0.1).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, subject.weight(name).grad.abs())


def test_of_a_network_that_is_its_own_teacher_they_are_not_nothing():
    subject = worker.subject(dropout=0.0)
    same = copy.deepcopy(subject.module)
    first, again = (loss_gradients(subject, worker.Blobs(), teacher=same) for _ in range(2))
    for name, gradient in first.items():
        assert gradient.max() > 1e-3
        assert torch.equal(gradient, again[name])


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, values):
        return values * self.factor


def test_without_labels_statistics_are_the_teachers_changed_by_pruning(tmp_path, masked):
    subject, masks = masked
    dense = copy.deepcopy(subject.module).eval()
    images = worker.Blobs()
    whole = Masks(masks.weights, {name: torch.ones_like(kept) for name, kept in masks.items()})
    run_finetune(subject, whole, images, out=tmp_path, epochs=1, lr=1e-9, batch_size=25,
                 teacher=dense, seed=0, progress=False)  # fmt: skip
    for name, value in dense.state_dict().items():  # nothing was removed, so nothing has changed
        if "running" in name:
            torch.testing.assert_close(
                subject.module.state_dict()[name], value, rtol=1e-3, atol=1e-4
            )


def test_a_teacher_of_another_kind_says_nothing_about_statistics(tmp_path, masked):
    subject, masks = masked
    teacher = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    teacher(torch.stack([worker.Blobs()[0][0]]))
    subject.module.eval()
    run_finetune(subject, masks, worker.Blobs(), out=tmp_path, epochs=1, batch_size=25,
                 teacher=teacher, progress=False)  # fmt: skip
    plain = copy.deepcopy(subject.module)
    recalibrate_bn(plain, batches(worker.Blobs(), 25))
    for name, value in plain.state_dict().items():
        assert torch.equal(subject.module.state_dict()[name], value), name
