"""A real round of Flower: the upload is captured, inverted, and blocked by the gate."""

import copy

import pytest
import torch

pytestmark = pytest.mark.filterwarnings(
    # flwr 1.41 through typer 0.20: click 8.4's streams
    "ignore:.click.utils.get_:DeprecationWarning"
)

LR = 0.05


@pytest.fixture
def victim():
    from april.adapters import spec_of
    from april.models import vit_b
    from april.pictures import photos as packaged

    model = vit_b(image_size=32, patch_size=8, width=96)
    spec = spec_of(model)
    return model, spec, packaged(2, spec.image_size)


def clients(model, spec, photos, gates, *, steps=1, momentum=0.0):
    from april.flower import vision_client

    return [
        vision_client(
            copy.deepcopy(model),
            [(spec.normalise(photo[None]), torch.tensor([place]))] * steps,
            lr=LR, momentum=momentum, mods=[gate] if gate else [],
        )
        for place, (photo, gate) in enumerate(zip(photos, gates, strict=True))
    ]  # fmt: skip


def test_the_server_reconstructs_the_picture_from_a_captured_message(victim):
    from april.auditing import audit
    from april.flower import federated_round, state_of
    from april.updates import from_state_dicts

    model, spec, photos = victim
    done = federated_round(model, clients(model, spec, photos, [None, None]))
    for reply, photo in zip(done.replies, photos, strict=True):
        report = audit(from_state_dicts(done.before, state_of(reply), lr=LR), spec, reference=photo)
        assert report.psnr_db > 40


def test_the_round_averages_as_flower_does(victim):
    """Judged by hand: the mean of the clients' weights, each with one picture."""
    from april.flower import federated_round, state_of

    model, spec, photos = victim
    done = federated_round(model, clients(model, spec, photos, [None, None]))
    states = [state_of(reply) for reply in done.replies]
    for name, value in model.state_dict().items():
        mean = (states[0][name] + states[1][name]) / 2
        assert torch.allclose(value, mean, atol=1e-6), name


def test_the_gate_measures_and_blocks_what_exceeds_the_limit(victim):
    from april.flower import BLOCKED, AuditMod, federated_round

    model, spec, photos = victim
    strict, lax = AuditMod(spec, lr=LR, max_psnr_db=20), AuditMod(spec, lr=LR)
    done = federated_round(model, clients(model, spec, photos, [strict, lax]))
    assert done.replies[0].has_error()
    assert done.replies[0].error.code == BLOCKED
    assert "allowed are 20 dB" in done.refused[0]
    assert not done.replies[1].has_error()
    assert lax.reports[0].psnr_db > 30
    assert lax.reports[0].psnr_from == "certificate"


def test_momentum_over_several_steps_on_one_picture_leaks_as_well(victim):
    from april.flower import AuditMod, federated_round

    model, spec, photos = victim
    gate = AuditMod(spec, lr=LR, momentum=0.9, steps=4)
    done = federated_round(model, clients(model, spec, photos[:1], [gate], steps=4, momentum=0.9))
    assert not done.refused
    assert gate.reports[0].psnr_db > 30


def test_an_upload_of_nan_is_blocked_by_a_gate(victim):
    from april.flower import AuditMod, federated_round

    model, spec, photos = victim
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    gate = AuditMod(spec, lr=LR, max_psnr_db=20)
    done = federated_round(model, clients(model, spec, photos[:1], [gate]))
    assert "cannot be audited" in done.refused[0]
    assert not gate.reports


def test_evaluation_messages_pass_the_gate_untouched(victim):
    from flwr.app import ArrayRecord, Context, Message, RecordDict

    from april.flower import AuditMod, LocalGrid

    model, spec, _ = victim
    gate, seen = AuditMod(spec, lr=LR, max_psnr_db=0), []
    with LocalGrid([]):
        content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
        message = Message(content, 1, "evaluate")
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    assert gate(message, context, lambda m, c: seen.append(m) or m) is message
    assert seen == [message]


def test_flowers_own_local_privacy_mod_stands_inside_the_gate(victim):
    """LocalDpMod clips and adds noise before the gate measures, and the gate sees it."""
    from flwr.clientapp.mod import LocalDpMod

    from april.flower import AuditMod, federated_round, vision_client

    model, spec, photos = victim
    batch = (spec.normalise(photos[:1]), torch.tensor([0]))
    found = []
    for mods in ([], [LocalDpMod(clipping_norm=1.0, sensitivity=0.01, epsilon=10.0, delta=1e-5)]):
        gate = AuditMod(spec, lr=LR)
        app = vision_client(copy.deepcopy(model), [batch], lr=LR, mods=[gate, *mods])
        federated_round(copy.deepcopy(model), [app])
        found.append(gate.reports[0])
    plain, noisy = found
    assert plain.psnr_db > 40
    assert noisy.psnr_db < plain.psnr_db - 20
    assert noisy.consistency.noise > 100 * plain.consistency.noise


def replacing(change):
    """A mod that changes the weights in a reply."""
    from flwr.app import ArrayRecord

    from april.flower import state_of

    def mod(message, context, call_next):
        reply = call_next(message, context)
        reply.content["arrays"] = ArrayRecord(change(state_of(message), state_of(reply)))
        return reply

    return mod


@pytest.mark.parametrize("what", ["delta", "gradient"])
def test_an_upload_that_is_no_weights_does_not_pass_for_noise(victim, what):
    """A delta taken for weights would leave a large residual, and dl/dE untouched inside."""
    from april.flower import AuditMod, federated_round, vision_client

    model, spec, photos = victim
    factor = 1.0 if what == "delta" else -1 / LR
    for limit in (20.0, None):
        gate = AuditMod(spec, lr=LR, max_psnr_db=limit)
        batch = (spec.normalise(photos[:1]), torch.tensor([0]))
        change = replacing(lambda old, new: {n: factor * (new[n] - old[n]) for n in new})
        app = vision_client(copy.deepcopy(model), [batch], lr=LR, mods=[gate, change])
        done = federated_round(copy.deepcopy(model), [app])
        assert "not a delta or a gradient" in gate.failures[0]
        assert bool(done.refused) == (limit is not None)


def test_without_a_limit_a_reply_that_cannot_be_audited_still_leaves(victim):
    from april.flower import AuditMod, federated_round

    model, spec, photos = victim
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    gate = AuditMod(spec, lr=LR)
    done = federated_round(model, clients(model, spec, photos[:1], [gate]))
    assert not done.refused
    assert "NaN" in gate.failures[0]


def test_a_frozen_position_embedding_passes_the_gate_as_withheld(victim):
    from april.flower import AuditMod, federated_round

    model, spec, photos = victim
    model.pos_embed.requires_grad_(False)
    gate = AuditMod(spec, lr=LR, max_psnr_db=20)
    done = federated_round(model, clients(model, spec, photos[:1], [gate]))
    assert gate.reports[0].verdict == "withheld"
    assert not done.refused


def test_a_gate_keeps_only_the_tensors_that_leak(victim):
    from april.flower import AuditMod, federated_round

    model, spec, photos = victim
    gate = AuditMod(spec, lr=LR)
    federated_round(model, clients(model, spec, photos[:1], [gate]))
    kept = gate.reports[0].update.gradients
    assert spec.position in kept
    assert not any("mlp" in name for name in kept)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr > 0"),
        ({"lr": LR, "max_psnr_db": float("nan")}, "a limit in dB"),
        ({"lr": LR, "optimizer": "adam"}, "linear in the gradients"),
        ({"lr": LR, "steps": 0}, "steps"),
    ],
)
def test_a_gate_with_wrong_settings_is_refused_before_any_round(victim, settings, message):
    from april.flower import AuditMod
    from effcv.errors import ArgumentError

    with pytest.raises(ArgumentError, match=message):
        AuditMod(victim[1], **settings)
    with pytest.raises(ArgumentError, match="ViTSpec"):
        AuditMod(None, lr=LR)


def test_a_strategy_of_flower_runs_its_rounds_over_the_grid(victim):
    """FedAvg.start, as a ServerApp calls it: two rounds, both clients in each."""
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    from april.flower import LocalGrid

    model, spec, photos = victim
    with LocalGrid(clients(model, spec, photos, [None, None])) as grid:
        result = FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(model.state_dict()), 2)
        assert list(grid.pull_messages(["0", "3"])) == [grid.received[0], grid.received[3]]
    assert len(grid.received) == 4
    final = result.arrays.to_torch_state_dict()
    assert not torch.equal(final["pos_embed"], model.state_dict()["pos_embed"])
