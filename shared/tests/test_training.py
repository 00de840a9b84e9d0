"""Training can be stopped at any instant and goes on to the same bits.

Judges: uninterrupted runs, a plain PyTorch loop without Lightning, torch's own AveragedModel, and
the operating system (real signals, SIGKILL, file size limits).
"""

import json
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from effcv.errors import ArgumentError, CheckpointError, Interrupted, TrainingError
from effcv.runtime import callbacks, training
from effcv.runtime.data_order import SeededSampler
from effcv.runtime.seed import derive, seed_everything

SCRIPT = Path(__file__).with_name("train_worker.py")
worker = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def outcome(module, result):
    last = worker.checkpoint_fingerprint(result.checkpoint.with_name("last.ckpt"))
    return last, worker.fingerprint(module.state_dict()), result.steps, result.metrics


def with_stops(out, stops, **options):
    """Trains through the signals in ``stops``, resuming after each, in fresh objects."""
    for turn, stop in enumerate(stops):
        with pytest.raises(Interrupted) as stopped:
            worker.train(out, resume=turn > 0, callbacks=[worker.SignalAt(*stop)], **options)
        assert stopped.value.exit_code == 143
    return outcome(*worker.train(out, resume=bool(stops), **options))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return with_stops(tmp_path_factory.mktemp("reference") / "run", [])


# --- exact resume ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stops",
    [
        [(3, "step")],
        [(7, "step")],
        [(6, "step"), (9, "step")],
        [(7, "validation")],
        [(2, "step"), (3, "step"), (10, "step"), (14, "validation"), (15, "step")],
    ],
    ids=str,
)
def test_a_stopped_run_ends_in_the_bits_of_one_that_was_not(tmp_path, reference, stops):
    assert with_stops(tmp_path / "run", stops) == reference


def test_workers_make_no_difference_to_that(tmp_path, reference):
    assert with_stops(tmp_path / "run", [(3, "step"), (13, "step")], workers=2) == reference


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "epoch"},
        {"schedule": "plateau"},
        {"ema": None, "val": False},
        {"max_steps": 17, "epochs": 100},
        {"accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_nor_do_schedules_limits_and_accumulation(tmp_path, options):
    accumulated = "accumulate_grad_batches" in options
    stops = [(1, "step"), (3, "step"), (5, "step")]
    if not accumulated:
        stops = [(3, "step"), (10, "step"), (13, "step"), (15, "step")]
    straight = with_stops(tmp_path / "straight", [], **options)
    assert with_stops(tmp_path / "stopped", stops, **options) == straight


@pytest.mark.parametrize("first", [{"epochs": 2}, {"max_steps": 10}], ids=str)
def test_more_later_equals_as_much_at_once(tmp_path, reference, first):
    worker.train(tmp_path, **first)
    assert outcome(*worker.train(tmp_path, resume="last")) == reference


def test_an_epoch_that_another_callback_cuts_short_is_saved(tmp_path):
    class Enough(Callback):
        def on_validation_end(self, trainer, module):
            trainer.should_stop = trainer.global_step == 10

    _, result = worker.train(tmp_path, callbacks=[Enough()], val_check_interval=3)
    assert result.steps == 10
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 10


def test_a_finished_run_resumes_to_itself(tmp_path, reference):
    worker.train(tmp_path)
    assert outcome(*worker.train(tmp_path, resume=tmp_path / "last.ckpt")) == reference


def test_a_loop_without_lightning_gives_the_same_bits(tmp_path, reference):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    module = worker.Net()
    average = AveragedModel(module, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    setup = module.configure_optimizers()
    optimizer, scheduler = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    data, step = worker.loader(), 0
    for epoch in range(3):
        data.sampler.set_epoch(epoch)
        for index, batch in enumerate(data):
            seed_everything(derive(0, "step", step, index, 0))
            loss = module.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            average.update_parameters(module)
            step += 1
    torch.set_num_threads(threads)
    assert worker.fingerprint(average.module.state_dict()) == reference[1]


# --- signals -----------------------------------------------------------------------------------


def test_sigterm_to_a_script_and_its_workers_saves_and_ends_with_143_quietly(tmp_path):
    command = [sys.executable, SCRIPT, tmp_path / "run", '{"epochs": 3000, "workers": 2}']
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as script:
        for line in script.stdout:
            if int(line) == 10:
                os.killpg(script.pid, signal.SIGTERM)
        errors = script.stderr.read()
    assert (script.returncode, errors) == (143, "")
    step = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"]
    assert step > 10
    epochs = step // 7 + 2
    resumed = outcome(*worker.train(tmp_path / "run", epochs=epochs, resume=True))
    assert resumed == outcome(*worker.train(tmp_path / "straight", epochs=epochs))
    assert sorted(os.listdir(tmp_path)) == ["run", "straight"]


def test_sigint_ends_with_130_and_a_second_signal_at_once(tmp_path):
    class Stuck(Callback):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 5:
                (tmp_path / "stuck").touch()
                time.sleep(60)

    number = signal.SIGINT
    once = worker.in_child(
        lambda: worker.train(tmp_path / "once", callbacks=[worker.SignalAt(4, "step", number)])
    )
    twice = worker.in_child(lambda: worker.train(tmp_path / "twice", callbacks=[Stuck()]))
    once.join(60)
    assert once.exitcode == 130
    assert torch.load(tmp_path / "once" / "last.ckpt", weights_only=True)["global_step"] == 5
    while not (tmp_path / "stuck").exists():
        time.sleep(0.05)
    os.kill(twice.pid, number)
    time.sleep(1.2)
    assert twice.is_alive()
    os.kill(twice.pid, number)
    twice.join(20)
    assert twice.exitcode == 130
    assert not (tmp_path / "twice" / "last.ckpt").exists()


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_sigkill_at_any_instant_leaves_a_run_that_resumes(tmp_path, kills):
    def run():
        resume = (tmp_path / "killed" / "last.ckpt").exists()
        worker.train(tmp_path / "killed", resume=resume, epochs=200, save_minutes=0)

    def written():
        return kept.stat().st_mtime_ns if kept.exists() else 0

    kept = tmp_path / "killed" / "last.ckpt"
    draw, epochs = random.Random(3), 0
    for kill in range(kills):
        before, child = written(), worker.in_child(run)
        while kill % 2 and written() == before and child.is_alive():  # however slow the machine is
            time.sleep(0.01)
        child.join(draw.uniform(0.1, 0.4))  # most of which it spends writing a checkpoint
        child.kill()
        child.join()
        if kept.exists():
            epochs = torch.load(kept, weights_only=True)["epoch"] + 1
    assert 0 < epochs < 200
    resumed = outcome(*worker.train(tmp_path / "killed", resume=True, epochs=epochs + 1))
    assert resumed == outcome(*worker.train(tmp_path / "straight", epochs=epochs + 1))


def test_fit_leaves_the_process_as_it_was(tmp_path):
    def settings():
        handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        return handlers, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    before = settings()
    filters = list(warnings.filters)
    worker.train(tmp_path / "a", epochs=1)
    with pytest.raises(Interrupted):
        worker.train(tmp_path / "b", callbacks=[worker.SignalAt(2)])
    assert settings() == before
    assert warnings.filters == filters


# --- what goes wrong ---------------------------------------------------------------------------


class Sick(worker.Net):
    """Its loss, or the gradient of it, is not finite at step 9."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 9:
            zero = 0 * loss
            loss = loss + (zero + float("nan") if self.where == "loss" else zero.sqrt())
        return loss


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_what_is_not_finite_stops_before_it_reaches_the_weights(tmp_path, where):
    sampler = SeededSampler(50, batch_size=8)
    sampler.set_epoch(1)
    with pytest.raises(TrainingError) as stopped:
        worker.train(tmp_path, net=Sick(where))
    assert f"the {where} is nan at step 9 (learning rate 0.0" in str(stopped.value)
    assert f"samples {list(sampler)[2]}" in str(stopped.value)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7


def test_a_full_disk_is_one_error_and_the_previous_checkpoint_survives(tmp_path):
    class Fill(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    def run():
        try:
            worker.train(tmp_path, val=False, callbacks=[Fill()])
        except CheckpointError as error:
            assert "last.ckpt could not be written: File too large" in str(error)  # noqa: PT017
            os._exit(44)

    child = worker.in_child(run)
    child.join(30)
    assert child.exitcode == 44
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "metrics.jsonl"]


def test_a_read_only_folder_is_refused_before_any_step():
    def run(out):
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            worker.train(out)
        except ArgumentError as error:
            assert str(error) == f"{out} cannot be written: Permission denied"  # noqa: PT017
            os._exit(44)

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        for out in (Path(folder), Path(folder) / "new"):
            child = worker.in_child(run, out)
            child.join(30)
            assert child.exitcode == 44


def test_folders_and_checkpoints_that_cannot_be_used_are_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="file cannot be written: File exists"):
        worker.train(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"no run to resume: .*last\.ckpt does not exist"):
        worker.train(tmp_path / "none", resume=True)
    with pytest.raises(ArgumentError, match="Lightning refuses these settings"):
        worker.train(tmp_path / "new", precision="7-bit")
    worker.train(tmp_path / "run", epochs=1)
    with pytest.raises(ArgumentError, match="holds a run already: resume it"):
        worker.train(tmp_path / "run")
    other = worker.Net(batch_norm=False)
    with pytest.raises(CheckpointError, match=r"is not of this model: .*net\.1\.weight"):
        worker.train(tmp_path / "run", net=other, resume=True)
    (tmp_path / "run" / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be resumed from"):
        worker.train(tmp_path / "run", resume=True)


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_checkpoint_with_code_is_neither_run_nor_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt cannot be resumed from"):
        worker.train("run", resume="evil.ckpt")
    assert not Path("executed").exists()
    module = worker.Net()
    module.save_hyperparameters({"root": Path("data")})
    with pytest.raises(CheckpointError, match=r"last\.ckpt would hold pathlib\.PosixPath"):
        worker.train("run", net=module, val=False)


# --- what a run leaves, and the pieces ---------------------------------------------------------


def test_a_run_writes_its_three_files_and_nothing_else_nowhere(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    _, result = worker.train("run", log_every_n_steps=5)
    assert os.listdir() == ["run"]
    assert sorted(os.listdir("run")) == ["best.ckpt", "last.ckpt", "metrics.jsonl"]
    assert capfd.readouterr() == ("", "")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "grad_norm" in line] == [4, 9, 14, 19]
    assert lines[-1]["val_loss"] == pytest.approx(result.metrics["val_loss"])
    assert result.checkpoint == Path("run/best.ckpt")
    assert (result.steps, result.epochs) == (21, 3)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_goes_by_the_monitored_metric(tmp_path, mode):
    class Score(Callback):
        def on_validation_epoch_end(self, trainer, module):
            module.log("score", [2.0, 9.0, 1.0, 5.0][trainer.current_epoch])

    _, result = worker.train(tmp_path, epochs=4, monitor="score", mode=mode, callbacks=[Score()])
    best = torch.load(result.checkpoint, weights_only=True)
    assert best["epoch"] == {"min": 2, "max": 1}[mode]
    with pytest.raises(ArgumentError, match="did you mean 'score'"):
        worker.train(tmp_path / "new", monitor="scor", callbacks=[Score()])


def test_progress_is_shown_on_a_terminal_only(tmp_path, monkeypatch, capfd):
    silent = training.trainer(out=tmp_path, epochs=1, device="cpu")
    assert silent.progress_bar_callback is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    worker.train(tmp_path / "run")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Epoch 2/2" in shown.err


def test_the_pieces_work_in_a_trainer_of_ones_own(tmp_path):
    def run(**options):
        engine = Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callbacks.StepSeeding(0), callbacks.Checkpoints(tmp_path)],
            plugins=callbacks.AtomicCheckpointIO(),
        )
        module = worker.Net()
        engine.fit(module, worker.loader(), worker.loader(shuffle=False), **options)
        return worker.fingerprint(module.state_dict())

    assert run() == run(ckpt_path=tmp_path / "last.ckpt")


# --- several processes --------------------------------------------------------------------------

PLAIN = {"val": False, "length": 48, "ema": None}  # and without batch norm and dropout


def torchrun(out, **options):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--local-addr=127.0.0.1", "--nproc-per-node=2"]
    keywords = json.dumps(PLAIN | {"plain": True, "batch_size": 4} | options)
    command = [*launcher, SCRIPT, out, keywords]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_equals_one_process(out, alone, epochs):
    net = worker.Net(batch_norm=False, dropout=0.0)
    module, result = worker.train(alone, net=net, batch_size=8, epochs=epochs, **PLAIN)
    saved = torch.load(out / "last.ckpt", weights_only=True)
    assert saved["global_step"] == result.steps == 6 * epochs
    for name, value in module.state_dict().items():
        torch.testing.assert_close(saved["state_dict"][name], value, rtol=0, atol=1e-5)


def test_two_processes_of_torchrun_equal_one_with_the_whole_batch(tmp_path):
    with torchrun(tmp_path / "two") as run:
        _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert_equals_one_process(tmp_path / "two", tmp_path / "one", epochs=3)
    assert sorted(os.listdir(tmp_path / "two")) == ["last.ckpt", "metrics.jsonl"]
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [9]  # rank 0 writes, once


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    with torchrun(tmp_path / "two", epochs=3000) as run:
        for count, _ in enumerate(run.stdout):  # lines of two processes, at times run together
            if count == 20:
                run.send_signal(signal.SIGTERM)
        run.stderr.read()
    assert run.returncode != 0
    stopped = torch.load(tmp_path / "two" / "last.ckpt", weights_only=True)["global_step"]
    assert stopped > 5
    epochs = stopped // 6 + 2
    with torchrun(tmp_path / "two", epochs=epochs, resume=True) as run:
        _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert_equals_one_process(tmp_path / "two", tmp_path / "one", epochs=epochs)
