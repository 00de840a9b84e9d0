"""Properties of the modules: layouts, precision, copies, threads, statistics."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import cgd
from cgd.functional import VARIANTS
from cgd.modules import CGD, StaticGate
from cgd.spacetime import SpatialCGD, TemporalCGD
from cgd.stats import gate_stats

IMAGE, CLIP = (2, 6, 5, 4), (2, 6, 3, 5, 4)
MODULES = {
    **{variant: (lambda variant=variant: CGD(6, variant), IMAGE) for variant in VARIANTS},
    "maxpool": (lambda: CGD(6, pool="maxpool"), IMAGE),
    "warm": (lambda: CGD(6, temperature=2.0), IMAGE),
    "sound": (lambda: CGD(6, dims=1), (2, 6, 9)),
    "video": (lambda: CGD(6, dims=3), CLIP),
    "static": (lambda: StaticGate(6), IMAGE),
    "temporal": (lambda: TemporalCGD(3, 6), CLIP),
    "shared": (lambda: TemporalCGD(3, 6, share=True), CLIP),
    "spatial": (lambda: SpatialCGD((5, 4)), IMAGE),
    "spatial video": (lambda: SpatialCGD((5, 4), frames=3), CLIP),
}


@pytest.fixture(params=MODULES)
def case(request):
    """A module with large weights and an input for it."""
    torch.manual_seed(0)
    make, shape = MODULES[request.param]
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module, torch.randn(shape)


def test_forward_is_a_scale_by_one_plus_z_and_changes_nothing_else(case):
    module, x = case
    before, state, random = x.clone(), copy.deepcopy(module.state_dict()), torch.get_rng_state()
    y, z = module(x), module.gate(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    torch.testing.assert_close(y, x * (1 + z.view(z.shape + (1,) * (x.ndim - z.ndim))))
    assert z.abs().max() <= 1
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())


def test_copies_and_pickles_compute_the_same(case):
    module, x = case
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))


def test_samples_do_not_see_each_other(case):
    module, x = case
    torch.testing.assert_close(module(x)[:1], module(x[:1]))


def test_eight_threads_compute_what_one_does(case):
    module, x = case
    inputs = [x * scale for scale in range(1, 17)]
    with torch.no_grad():
        serial = [module(one) for one in inputs]

        def run(one):
            with torch.no_grad():
                return module(one)

        with ThreadPoolExecutor(8) as pool:
            parallel = list(pool.map(run, inputs))
    assert all(map(torch.equal, serial, parallel))


def test_repr_names_the_arguments():
    assert repr(CGD(8, pool="maxpool", temperature=0.5)) == (
        "CGD(8, variant='v10', init='paper', temperature=0.5, dims=2, pool='maxpool')"
    )


def test_channels_last_in_is_channels_last_out():
    module, x = CGD(6), torch.randn(2, 6, 5, 4)
    y = module(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, module(x))


def test_the_gate_stays_fp32_under_autocast():
    module, x = CGD(6), 300 * torch.randn(2, 6, 5, 4)
    nn.init.normal_(module.w2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, y = module.gate(x.bfloat16()), module(x.bfloat16())
    assert z.dtype == torch.float32
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(z, module.gate(x.bfloat16().float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_modules_run(dtype):
    module, x = CGD(6).to(dtype), torch.randn(2, 6, 5, 4).to(dtype)
    y = module(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), module.float()(x.float()), rtol=2e-2, atol=2e-2)


def test_a_single_position_pools_to_itself():
    module, x = CGD(4, "v4"), torch.randn(3, 4, 1, 1)
    other = CGD(4, "v1")
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x), other(x))


def test_large_activations_do_not_overflow_the_softmax():
    assert CGD(4)(1e30 * torch.ones(1, 4, 2, 2)).isfinite().all()


def test_what_is_not_finite_goes_through():
    x = torch.ones(1, 4, 2, 2)
    x[0, 0, 0, 0] = torch.nan
    assert CGD(4)(x).isnan().any()


def test_a_low_temperature_gives_all_mass_to_the_largest_mean():
    x = torch.arange(4.0).view(1, 4, 1, 1)
    module = CGD(4, "v3", temperature=1e-3)
    nn.init.ones_(module.w0)
    z = module.gate(x)[0]
    assert z[3] > 0.99
    assert not z[:3].any()


def test_device_and_dtype_reach_the_parameters():
    module = CGD(4, device="meta", dtype=torch.float16)
    assert all(p.is_meta and p.dtype == torch.float16 for p in module.parameters())


def test_the_spatial_identity_start_is_exact_and_alive():
    module, x = SpatialCGD((5, 4), init="identity"), torch.randn(2, 3, 5, 4)
    y = module(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert module.rows.w2.grad.any()


def test_gate_stats_tell_a_static_gate_from_a_living_one():
    torch.manual_seed(0)
    model = nn.Sequential(StaticGate(4), CGD(4)).train()
    nn.init.constant_(model[0].b2, 0.5)
    for parameter in model[1].parameters():
        nn.init.normal_(parameter)
    inputs = torch.randn(12, 4, 3, 3)
    whole = gate_stats(model, [inputs])
    parts = gate_stats(model, [(inputs[:5], 0), (inputs[5:], 0)])
    assert model.training
    assert list(whole) == ["0", "1"]
    assert whole["0"].mean_abs == pytest.approx(torch.tanh(torch.tensor(0.5)).item())
    assert whole["0"].dynamic == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        z = model[1].gate(model[0](inputs)).double()
    assert whole["1"].samples == 12
    assert whole["1"].mean_abs == pytest.approx(z.abs().mean().item())
    assert whole["1"].std == pytest.approx(z.var(0, correction=0).mean().sqrt().item())
    share = z.var(0, correction=0).sum() / z.square().mean(0).sum()
    assert whole["1"].dynamic == pytest.approx(share.item())
    assert vars(whole["1"]) == pytest.approx(vars(parts["1"]))


def test_gate_stats_of_an_identity_are_zero():
    stats = gate_stats(nn.Sequential(CGD(4, init="identity")), [torch.randn(2, 4, 3, 3)])
    assert (stats["0"].mean_abs, stats["0"].std, stats["0"].dynamic) == (0, 0, 0)


def test_the_package_loads_without_torch():
    code = "import sys, cgd; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves():
    assert all(getattr(cgd, name) is not None for name in cgd.__all__)
    assert set(dir(cgd)) == set(cgd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'CGDD'"):
        _ = cgd.CGDD
