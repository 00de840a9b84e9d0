"""Against others: numpy in float64, the released recipe in torch's own layers, onnxruntime,
safetensors, timm, torch.compile and torch.export."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from cgd.functional import VARIANTS, cgd_gate, spatial_pool
from cgd.modules import CGD
from cgd.spacetime import SpatialCGD, TemporalCGD


def numpy_gate(avg, peak, w, b, variant):
    """Table 2 once more, in numpy; ``w`` and ``b`` have one or three rows."""

    def soft(v):
        e = np.exp(v - v.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def stage(g, f, i):
        return np.tanh(np.einsum("bc,c->b", f, w[i])[:, None] * g + b[i])

    single = {
        "v1": (avg, avg),
        "v2": (avg, soft(avg)),
        "v3": (soft(avg), avg),
        "v4": (avg, peak),
        "v5": (peak, avg),
        "v6": (soft(avg), peak),
        "v7": (soft(peak), avg),
    }
    if variant in single:
        return stage(*single[variant], 0)
    first, second = {"v8": ("v3", "v7"), "v9": ("v1", "v7"), "v10": ("v3", "v6")}[variant]
    return stage(stage(*single[first], 0), stage(*single[second], 1), 2)


@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 9),
    variant=st.sampled_from(sorted(VARIANTS)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_every_variant_agrees_with_numpy(batch, channels, variant, seed):
    rng = np.random.default_rng(seed)
    avg = rng.normal(size=(batch, channels))
    peak = avg + np.abs(rng.normal(size=avg.shape))
    vectors = 3 if variant in ("v8", "v9", "v10") else 1
    w, b = rng.normal(size=(2, vectors, channels))
    z = cgd_gate(*map(torch.from_numpy, (avg, peak, w, b)), variant=variant)
    np.testing.assert_allclose(z.numpy(), numpy_gate(avg, peak, w, b, variant), atol=1e-12)


class Released(nn.Module):
    """v10 as the released code computes it: AdaptiveMaxPool2d, Softmax, one inner product each."""

    def __init__(self, module):
        super().__init__()
        for name, parameter in module.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        self.avgpool, self.maxpool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.softmax, self.tanh = nn.Softmax(dim=1), nn.Tanh()

    def forward(self, x):
        a, m = self.avgpool(x).flatten(1), self.maxpool(x).flatten(1)
        q = self.softmax(a)
        p = self.tanh((a @ self.w0).unsqueeze(1) * q + self.b0)
        r = self.tanh((m @ self.w1).unsqueeze(1) * q + self.b1)
        z = self.tanh((r @ self.w2).unsqueeze(1) * p + self.b2)
        return x * (1 + z)[:, :, None, None]


@pytest.mark.parametrize("ties", [False, True])
def test_outputs_and_gradients_equal_the_released_recipe(ties):
    torch.manual_seed(3)
    module = CGD(6, pool="maxpool", dtype=torch.float64)
    for p in module.parameters():
        nn.init.normal_(p)
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    x = x.clamp(max=0.5) if ties else x
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    released = Released(module)
    y, expected = module(ours), released(theirs)
    torch.testing.assert_close(y, expected)
    y.cos().sum().backward()
    expected.cos().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, getattr(released, name).grad)


def test_amax_shares_the_gradient_of_ties_and_maxpool_gives_it_to_the_first():
    grads = {}
    for pool in ("amax", "maxpool"):
        x = torch.ones(1, 1, 2, 2, requires_grad=True)
        spatial_pool(x, pool)[1].sum().backward()
        grads[pool] = x.grad.flatten().tolist()
    assert grads == {"amax": [0.25] * 4, "maxpool": [1, 0, 0, 0]}


@pytest.mark.parametrize("pool", ["amax", "maxpool"])
@pytest.mark.parametrize("variant", ["v1", "v10"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradcheck(dims, variant, pool):
    torch.manual_seed(0)
    module = CGD(3, variant, dims=dims, pool=pool, dtype=torch.float64)
    x = torch.randn(2, 3, *(3, 2, 2)[:dims], dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *module.parameters()))


def test_gradcheck_in_space_and_time():
    torch.manual_seed(0)
    clip = torch.randn(1, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    for module in (
        TemporalCGD(2, 2),
        TemporalCGD(2, 2, share=True),
        SpatialCGD((3, 2), frames=2),
    ):
        assert torch.autograd.gradcheck(module.double(), (clip,))


def test_the_shared_frame_form_is_equation_12():
    rng = torch.Generator().manual_seed(0)
    module = TemporalCGD(4, 3, share=True, variant="v1", dtype=torch.float64)
    for frames in (4, 6):
        clip = torch.randn(2, 3, frames, 5, 5, generator=rng, dtype=torch.float64)
        pooled = clip.mean((3, 4)).unbind(2)  # T of (B, C)
        z = sum((a @ module.w0)[:, None] * a for a in pooled)
        torch.testing.assert_close(module(clip), clip * (1 + z.tanh())[:, :, None, None, None])


def test_the_frame_form_is_a_channel_gate_of_all_frames():
    torch.manual_seed(0)
    module, gate = TemporalCGD(4, 3), CGD(12)
    gate.load_state_dict(module.state_dict())
    clip = torch.randn(2, 3, 4, 5, 5)
    torch.testing.assert_close(module(clip), gate(clip.flatten(1, 2)).view(clip.shape))


@pytest.mark.parametrize("frames", [None, 2])
def test_the_spatial_gate_is_an_outer_product_of_two_numpy_descriptors(frames):
    rng = np.random.default_rng(0)
    module = SpatialCGD((4, 3), frames=frames)
    for p in module.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    x = rng.normal(size=(2, 5, frames or 1, 4, 3)).astype(np.float32)

    def profile(descriptor, axis):
        avg, peak = (pool(x, axis=(1, axis)).reshape(2, -1) for pool in (np.mean, np.max))
        w, b = ([v.detach().numpy() for v in vs] for vs in (descriptor.weights, descriptor.biases))
        return np.arctanh(numpy_gate(avg, peak, w, b, "v10")).reshape(2, 1, frames or 1, -1)

    rows, columns = profile(module.rows, 4), profile(module.columns, 3)
    expected = x * (1 + np.tanh(rows[..., None] * columns[..., None, :]))
    given = torch.from_numpy(x if frames else x[:, :, 0])
    got = module(given).detach().numpy()
    np.testing.assert_allclose(got.reshape(x.shape), expected, rtol=1e-3, atol=1e-5)


def test_onnxruntime_computes_the_same(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), CGD(8)).eval()
    for p in module[1].parameters():
        nn.init.normal_(p)
    path, x = tmp_path / "gate.onnx", torch.randn(2, 3, 9, 9)
    torch.onnx.export(
        module,
        (x,),
        path,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 9, 9), (1, 3, 17, 12), (5, 3, 4, 31)):
        x = torch.randn(shape)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_takes_the_gate_whole(backend):
    torch.manual_seed(0)
    module, x = CGD(16), torch.randn(2, 16, 6, 6)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


def test_torch_export_takes_the_gate():
    module, x = CGD(4), torch.randn(2, 4, 6, 6)
    batch, height = torch.export.Dim("batch"), torch.export.Dim("height")
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch, 2: height},))
    x = torch.randn(3, 4, 11, 6)
    torch.testing.assert_close(program.module()(x), module(x))


def test_safetensors_keep_a_gate(tmp_path):
    module, other, x = CGD(6), CGD(6), torch.randn(2, 6, 4, 4)
    save_file(module.state_dict(), tmp_path / "gate.safetensors")
    other.load_state_dict(load_file(tmp_path / "gate.safetensors"))
    assert torch.equal(module(x), other(x))


def test_timm_takes_the_class_as_attention_layer():
    import timm

    model = timm.create_model("resnet18", block_args={"attn_layer": CGD}, num_classes=3)
    gates = [m for m in model.modules() if isinstance(m, CGD)]
    assert [gate.length for gate in gates] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3)
