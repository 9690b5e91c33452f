"""Every network whose authors' names are known, against its forward written out from these names.

What is written here shares nothing with the library: functions of a state dict under the names of the
released code, one line per layer, neighbours by `roll`. Every entry of the state dict must be read. Weights
are drawn as for the reference logits in `test_authors`.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from globalcnn import create_model, list_models
from globalcnn.models import model_info
from globalcnn.nn.implicit.equilibrium import Equilibrium
from globalcnn.reproduce import load_authors_state_dict
from globalcnn.reproduce.authors import authors_names


class State:
    """A state dict that knows what was read; `at` goes into a part of it."""

    def __init__(self, entries, prefix="", read=None):
        self.entries, self.prefix = entries, prefix
        self.read = set() if read is None else read

    def __getitem__(self, name):
        self.read.add(self.prefix + name)
        return self.entries[self.prefix + name]

    def get(self, name):
        return self[name] if self.prefix + name in self.entries else None

    def at(self, part):
        return State(self.entries, f"{self.prefix}{part}.", self.read)

    def has(self, part):
        return any(n.startswith(f"{self.prefix}{part}.") for n in self.entries)


def conv(s, x, stride=1, padding=None, groups=1, dilation=1):
    weight = s["weight"]
    if padding is None:
        padding = dilation * (weight.shape[2] // 2)
    return F.conv2d(x, weight, s.get("bias"), stride, padding, dilation, groups)


def depthwise(s, x, stride=1, dilation=1):
    return conv(s, x, stride, groups=x.shape[1], dilation=dilation)


def norm(s, x, eps=1e-5):
    scale = s["weight"] / (s["running_var"] + eps).sqrt()
    return (x - s["running_mean"][:, None, None]) * scale[:, None, None] + s["bias"][:, None, None]


def linear(s, x):
    return x @ s["weight"].T + s["bias"]


def pooled(x):
    return x.mean((2, 3))


def evolved(h, f, u, v, Dx, Dy, K, dt, d):
    h_old = f
    ux = (u.roll(d, 2) - u.roll(-d, 2)) / (2 * d)
    vy = (v.roll(d, 3) - v.roll(-d, 3)) / (2 * d)
    Ax, Ay, Bx, By = u * dt / d, v * dt / d, Dx * dt / d**2, Dy * dt / d**2
    for _ in range(K):
        new = (1 - 2 * Bx - 2 * By) * h_old - 2 * (ux + vy) * dt * h + 2 * dt * f
        new = new + (2 * Bx - Ax) * h.roll(d, 2) + (2 * Bx + Ax) * h.roll(-d, 2)
        new = new + (2 * By - Ay) * h.roll(d, 3) + (2 * By + Ay) * h.roll(-d, 3)
        h_old, h = h, new / (1 + 2 * Bx + 2 * By)
    return h


@dataclass(frozen=True)
class Setup:
    """Of a Global layer: steps, time step, offset, constant diffusion, shared product, eps, activation."""

    K: int = 1
    dt: float = 0.2
    d: int = 1
    D: float | None = None
    dot: bool = False
    eps: float | None = None
    act: object = F.relu


def global_layer(s, f, h, p):
    if h.shape != f.shape:
        f = h
    eps = f.shape[1] if p.eps is None else p.eps

    def coefficients(conv_a, norm_a, conv_b, norm_b):
        a = norm(s.at(norm_a), depthwise(s.at(conv_a), h), eps)
        b = norm(s.at(norm_b), depthwise(s.at(conv_b), h), eps)
        return (p.act(a * p.act(b)),) * 2 if p.dot else (p.act(a), p.act(b))

    u, v = coefficients("convg", "bng", "convg1", "bng1")
    Dx, Dy = (p.D, p.D) if p.D is not None else coefficients("convDx", "bnDx", "convDy", "bnDy")
    return p.act(norm(s.at("bn_out"), evolved(h, f, u, v, Dx, Dy, p.K, p.dt, p.d)))


def resnet(s, x, depths):
    x = F.relu(norm(s.at("bn1"), conv(s.at("conv1"), x)))
    for i, depth in enumerate(depths, start=1):
        for j in range(depth):
            block, stride = s.at(f"layer{i}.{j}"), 2 if i > 1 and j == 0 else 1
            y = F.relu(norm(block.at("bn1"), conv(block.at("conv1"), x, stride)))
            y = norm(block.at("bn2"), conv(block.at("conv2"), y))
            if block.has("downsample"):
                x = norm(block.at("downsample.1"), conv(block.at("downsample.0"), x, stride))
            x = F.relu(y + x)
        if i < 4 and s.has(f"global{i}"):
            x = global_layer(s.at(f"global{i}"), x, x, Setup())
    return linear(s.at("fc"), pooled(x))


def dense_layer(s, x):
    x = conv(s.at("conv1"), F.relu(norm(s.at("norm1"), x)))
    return conv(s.at("conv2"), F.relu(norm(s.at("norm2"), x)))


def densenet(s, x, depth):
    classifier, s = s.at("classifier"), s.at("features")
    x = conv(s.at("conv0"), x)
    for i in (1, 2, 3):
        for j in range(depth):
            x = torch.cat([x, dense_layer(s.at(f"denseblock{i}.denselayer{j + 1}"), x)], 1)
        if i < 3:
            t = s.at(f"transition{i}")
            x = F.avg_pool2d(conv(t.at("conv"), F.relu(norm(t.at("norm"), x))), 2)
            if s.has(f"global{i}"):
                g = s.at(f"global{i}")
                x = global_layer(g, x, dense_layer(g.at("init_h"), x), Setup(K=3))
    return linear(classifier, pooled(F.relu(norm(s.at("norm_final"), x))))


def relu_conv_norm(s, x):
    return norm(s.at("op.2"), conv(s.at("op.1"), F.relu(x)))


def factorised_reduce(s, x):
    x = F.relu(x)
    halves = [conv(s.at("conv_1"), x, 2), conv(s.at("conv_2"), x[:, :, 1:, 1:], 2)]
    return norm(s.at("bn"), torch.cat(halves, 1))


def separable(s, x, first, dilation=1):
    y = depthwise(s.at(f"op.{first}"), F.relu(x), dilation=dilation)
    return norm(s.at(f"op.{first + 2}"), conv(s.at(f"op.{first + 1}"), y))


def cell(s, s0, s1, reduction):
    before = factorised_reduce if s.has("preprocess0.conv_1") else relu_conv_norm
    a, b = before(s.at("preprocess0"), s0), relu_conv_norm(s.at("preprocess1"), s1)
    if reduction:
        a, b = F.max_pool2d(a, 3, 2, 1), F.max_pool2d(b, 3, 2, 1)
        n0 = a + b
        return torch.cat([n0, n0 + b, a + n0, n0 + b], 1)

    def sep(j, x):
        op = s.at(f"_ops.{j}")
        return separable(op, separable(op, x, 1), 5)

    n0 = sep(0, a) + sep(1, b)
    n3 = a + separable(s.at("_ops.7"), n0, 1, dilation=2)
    return torch.cat([n0, sep(2, a) + sep(3, b), sep(4, b) + a, n3], 1)


def darts(s, x, layers, setup=None):
    s0 = s1 = norm(s.at("stem.1"), conv(s.at("stem.0"), x))
    at = 0
    for i in range(layers):
        reduction = i in (layers // 3, 2 * layers // 3)
        if reduction and setup is not None:
            g = s.at(f"cells.{at}")
            s0, s1 = s1, global_layer(g, s1, cell(g.at("init_h"), s0, s1, False), setup)
            at += 1
        s0, s1 = s1, cell(s.at(f"cells.{at}"), s0, s1, reduction)
        at += 1
    return linear(s.at("classifier"), pooled(s1))


def hard_swish(x):
    return x * (x + 3).clamp(0, 6) / 6


def relu6(x):
    return x.clamp(0, 6)


def squeeze(s, x, act, gate):
    y = act(conv(s.at("conv_reduce"), x.mean((2, 3), keepdim=True)))
    return x * gate(conv(s.at("conv_expand"), y))


@dataclass(frozen=True)
class Net:
    """Of a mobile network: activation, that of the squeeze and its gate; blocks by stage, see `mobile`."""

    act: object
    stages: tuple
    inner: object = None
    gate: object = torch.sigmoid
    rounded: bool = False
    pool_first: bool = False


def inverted_residual(s, x, stride, act, net):
    y = x
    if s.has("conv_pw") and s.has("conv_pwl"):
        y = act(norm(s.at("bn1"), conv(s.at("conv_pw"), y)))
        y = act(norm(s.at("bn2"), depthwise(s.at("conv_dw"), y, stride)))
        last = ("conv_pwl", "bn3")
    else:
        y = act(norm(s.at("bn1"), depthwise(s.at("conv_dw"), y, stride)))
        last = ("conv_pw", "bn2")
    if s.has("se"):
        width = s.entries[f"{s.prefix}se.conv_reduce.weight"].shape[0]
        share = y.shape[1] / 4 if net.rounded else x.shape[1] / 4
        if net.rounded:
            eighths = int(share + 4) // 8 * 8
            share = eighths + 8 if eighths < 0.9 * share else eighths
        assert width == round(share)
        y = squeeze(s.at("se"), y, net.inner or act, net.gate)
    y = norm(s.at(last[1]), conv(s.at(last[0]), y))
    return y + x if stride == 1 and y.shape == x.shape else y


def mobile(s, x, net):
    """Blocks are (channels, kernel, stride, activation), a Global layer has its `Setup` as a fifth."""
    x = net.act(norm(s.at("bn1"), conv(s.at("conv_stem"), x, 2)))
    for i, stage in enumerate(net.stages):
        for j, (channels, kernel, stride, act, *setup) in enumerate(stage):
            block = s.at(f"blocks.{i}.{j}")
            init = block.at("init_h") if setup else block
            if block.has("conv"):
                y = act(norm(block.at("bn1"), conv(block.at("conv"), x)))
            else:
                y = inverted_residual(init, x, stride, act, net)
                assert s.entries[f"{init.prefix}conv_dw.weight"].shape[2] == kernel
            x = global_layer(block, x, y, setup[0]) if setup else y
            assert x.shape[1] == channels
    if net.pool_first:
        x = net.act(conv(s.at("conv_head"), x.mean((2, 3), keepdim=True))).flatten(1)
    else:
        x = pooled(net.act(norm(s.at("bn2"), conv(s.at("conv_head"), x))))
    return linear(s.at("classifier"), x)


relu, silu, hswish = F.relu, F.silu, hard_swish
flat = partial(Setup, D=1.0, eps=1e-5)


def v2_stage(c, stride, act):
    return ((c, 3, stride, relu6), (c, 3, 1, act, flat(act=act)))


MOBILENETV2 = Net(
    relu6,
    (
        ((16, 3, 1, relu6),),
        v2_stage(24, 2, relu),
        v2_stage(32, 2, relu),
        v2_stage(64, 2, relu),
        v2_stage(96, 1, relu6),
        v2_stage(160, 2, relu6),
        ((320, 3, 1, relu6),),
    ),
)
MOBILENETV3 = Net(
    hswish,
    (
        ((16, 3, 1, relu),),
        ((24, 3, 2, relu), (24, 3, 1, relu, flat(act=relu))),
        ((40, 5, 2, relu), (40, 5, 1, relu, flat(act=relu, dot=True))),
        ((80, 3, 2, hswish), (80, 3, 1, hswish, flat(act=hswish, dot=True))),
        ((112, 3, 1, hswish), (112, 3, 1, hswish, flat(act=hswish, dot=True))),
        ((160, 5, 2, hswish, flat(act=hswish, dot=True)),),
        ((960, 1, 1, hswish),),
    ),
    inner=relu,
    gate=lambda x: (x + 3).clamp(0, 6) / 6,
    rounded=True,
    pool_first=True,
)


def b0_stage(c, kernel, stride, **setup):
    return ((c, kernel, stride, silu), (c, kernel, 1, silu, flat(act=silu, dot=True, **setup)))


EFFICIENTNET_B0 = Net(
    silu,
    (
        ((16, 3, 1, silu),),
        ((24, 3, 2, silu), (24, 3, 1, silu, Setup(D=2.0, dt=0.1, eps=1e-5, act=silu, dot=True))),
        ((40, 5, 2, silu), (40, 5, 1, silu, Setup(D=2.0, dt=0.1, d=2, eps=1e-5, act=silu, dot=True))),
        b0_stage(80, 3, 2),
        b0_stage(112, 5, 1),
        b0_stage(192, 5, 2),
        ((320, 3, 1, silu),),
    ),
)


def groups(s, x, count=32):
    n, c, *size = x.shape
    y = x.reshape(n, count, -1)
    y = (y - y.mean(2, keepdim=True)) / (y.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return y.reshape(n, c, *size) * s["weight"][:, None, None] + s["bias"][:, None, None]


def mnist(s, x, body, blocks):
    x = F.relu(groups(s.at(1), conv(s.at(0), x, padding=0)))
    x = F.relu(groups(s.at(4), conv(s.at(3), x, 2, padding=1)))
    x = conv(s.at(6), x, 2, padding=1)
    for i in range(blocks):
        x = body(s.at(7 + i), x)
    return linear(s.at(11 + blocks), pooled(F.relu(groups(s.at(7 + blocks), x))))


def preactivation(s, x):
    y = conv(s.at("conv1"), F.relu(groups(s.at("norm1"), x)))
    return x + conv(s.at("conv2"), F.relu(groups(s.at("norm2"), y)))


def neural_ode(s, x):
    odeint = pytest.importorskip("torchdiffeq").odeint
    s = s.at("odefunc")

    def timed(t, part, y):
        return conv(s.at(f"{part}._layer"), torch.cat([torch.full_like(y[:, :1], float(t)), y], 1))

    def slope(t, y):
        y = timed(t, "conv1", F.relu(groups(s.at("norm1"), y)))
        return groups(s.at("norm3"), timed(t, "conv2", F.relu(groups(s.at("norm2"), y))))

    return odeint(slope, x, torch.tensor([0.0, 1.0], dtype=x.dtype), rtol=1e-3, atol=1e-3)[1]


def digits(s, x, kind):
    c = s.at("conv")
    f = conv(c.at("f"), F.relu(norm(c.at("bn_f1"), x)))
    h = conv(c.at("g"), F.relu(norm(c.at("bn_g"), f)))
    if kind == "residual":
        h = f + h
    if kind == "global":
        h = evolved(f, f, h, h, 1.0, 1.0, 5, 0.2, 1)
    if kind != "conv":
        h = F.relu(norm(c.at("bn_out"), h))
    return linear(s.at("fc"), F.avg_pool2d(F.relu(h), 4).flatten(1))


def weight_normed(s, x, stride=1):
    v = s["weight_v"]
    weight = v * s["weight_g"] / v.square().sum((1, 2, 3), keepdim=True).sqrt()
    return F.conv2d(x, weight, None, stride, weight.shape[2] // 2)


def plain_norm(s, x):
    return (x - s["running_mean"][:, None, None]) / (s["running_var"][:, None, None] + 1e-5).sqrt()


def mdeq_cell(s, z, injection):
    r = []
    for i, state in enumerate(z):
        b = s.at(f"branches.{i}.blocks.0")
        y = weight_normed(b.at("conv2"), F.relu(groups(b.at("gn1"), weight_normed(b.at("conv1"), state), 8)))
        y = groups(b.at("gn2"), y + injection if i == 0 else y, 8)
        r.append(groups(b.at("gn3"), F.relu(y + state), 8))
    out = []
    for i in range(len(z)):
        total = r[i]
        for j in range(len(z)):
            path, y = s.at(f"fuse_layers.{i}.{j}.net"), r[j]
            if j > i:
                y = groups(path.at("gnorm"), conv(path.at("conv"), y), 8)
                total = total + y.repeat_interleave(2 ** (j - i), 2).repeat_interleave(2 ** (j - i), 3)
            if j < i:
                for k in range(i - j):
                    y = F.relu(y) if k else y
                    y = groups(path.at(f"{k}.gnorm"), conv(path.at(f"{k}.conv"), y, 2), 8)
                total = total + y
        last = s.at(f"post_fuse_layers.{i}")
        out.append(groups(last.at("gnorm"), weight_normed(last.at("conv"), F.relu(total)), 4))
    return out


def mdeq(s, x, widths, stride):
    for i in (0, 3):
        x = F.relu(norm(s.at(f"downsample.{i + 1}"), conv(s.at(f"downsample.{i}"), x, stride)))
    injection = F.relu(norm(s.at("stage0.1"), conv(s.at("stage0.0"), x)))
    n, _, h, w = injection.shape
    z = [injection.new_zeros(n, c, h >> i, w >> i) for i, c in enumerate(widths)]
    for _ in range(ITERATIONS):
        z = mdeq_cell(s.at("fullstage"), z, injection)
    y = None
    for i, state in enumerate(z):
        b = s.at(f"incre_modules.{i}.0")
        t = F.relu(plain_norm(b.at("bn1"), conv(b.at("conv1"), state)))
        t = F.relu(plain_norm(b.at("bn2"), conv(b.at("conv2"), t)))
        t = plain_norm(b.at("bn3"), conv(b.at("conv3"), t))
        t = F.relu(t + norm(b.at("downsample.1"), conv(b.at("downsample.0"), state)))
        if y is not None:
            d = s.at(f"downsamp_modules.{i - 1}")
            t = t + F.relu(norm(d.at(1), conv(d.at(0), y, 2)))
        y = t
    y = F.relu(norm(s.at("final_layer.1"), conv(s.at("final_layer.0"), y)))
    return linear(s.at("classifier"), pooled(y))


ITERATIONS = 3
WRITTEN_OUT = {
    "resnet32_cifar": partial(resnet, depths=(5, 5, 5)),
    "resnet56_cifar": partial(resnet, depths=(9, 9, 9)),
    "resnet_global_cifar": partial(resnet, depths=(1, 1, 1, 1)),
    "resnet_global_large_cifar": partial(resnet, depths=(2, 2, 2, 2)),
    "resnet_tiny_cifar": partial(resnet, depths=(3, 3, 3, 3)),
    "resnet_global_tiny_cifar": partial(resnet, depths=(1, 1, 1, 1)),
    "wide_resnet_cifar": partial(resnet, depths=(6, 6, 6)),
    "wide_resnet_tiny_cifar": partial(resnet, depths=(6, 6, 6)),
    "wide_resnet_global_cifar": partial(resnet, depths=(6, 6, 6)),
    "wide_resnet_global_tiny_cifar": partial(resnet, depths=(1, 1, 1)),
    "densenet_cifar": partial(densenet, depth=16),
    "densenet_global_cifar": partial(densenet, depth=8),
    "densenet_global_large_cifar": partial(densenet, depth=12),
    "darts_cifar": partial(darts, layers=20),
    "darts_tiny_cifar": partial(darts, layers=20),
    "darts_global_cifar": partial(darts, layers=6, setup=Setup(K=5, D=1.0)),
    "darts_global_large_cifar": partial(darts, layers=9, setup=Setup()),
    "darts_global_tiny_cifar": partial(darts, layers=7, setup=Setup(D=1.0)),
    "mobilenetv2_global": partial(mobile, net=MOBILENETV2),
    "mobilenetv3_global": partial(mobile, net=MOBILENETV3),
    "efficientnet_b0_global": partial(mobile, net=EFFICIENTNET_B0),
    "resnet_mnist": partial(mnist, body=preactivation, blocks=6),
    "global_mnist": partial(mnist, body=lambda s, x: global_layer(s, x, x, Setup()), blocks=1),
    "neural_ode_mnist": partial(mnist, body=neural_ode, blocks=1),
    "digits_conv": partial(digits, kind="conv"),
    "digits_residual": partial(digits, kind="residual"),
    "digits_global": partial(digits, kind="global"),
    "mdeq_cifar": partial(mdeq, widths=(16, 32, 64), stride=1),
    "mdeq_large_cifar": partial(mdeq, widths=(32, 64, 128, 256), stride=1),
    "mdeq_small": partial(mdeq, widths=(32, 64, 128, 256), stride=2),
}


def drawn(name, shape, gain):
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.long)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if leaf == "running_var":
        values = 0.5 + rng.random(shape)
    elif leaf in ("running_mean", "bias"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1 or leaf == "weight_g":
        k = 0.1 if any(n in name for n in ("bng", "bnDx", "bnDy")) else gain
        values = k * (0.5 + rng.random(shape))
    else:
        values = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).double()


# with a shared product a velocity is a square of what comes in, and much larger weights overflow
GAINS = {"mobilenetv2_global": 1.6, "mobilenetv3_global": 0.9, "efficientnet_b0_global": 1.1}


def built(name):
    """(the network with the weights drawn, the state dict under the authors' names)."""
    model = create_model(name, num_classes=7).double().eval()
    for module in model.modules():
        if isinstance(module, Equilibrium):
            module.unroll = ITERATIONS
    names = authors_names(model)
    theirs = {
        names[n]: drawn(names[n], tuple(A.shape), GAINS.get(name, 0.7)) for n, A in model.state_dict().items()
    }
    load_authors_state_dict(model, theirs)
    return model, theirs


def left_out(name):
    return name.startswith("auxiliary_head.") or name.endswith("num_batches_tracked")


OWN = {f"resnet_{block}{size}_cifar" for block in ("sweeps", "depthwise") for size in ("", "_tiny")}


def test_all_published_networks_but_reconstructions_without_names_are_written_out():
    assert set(list_models()) - set(WRITTEN_OUT) == {"neupde_mnist", "neupde_cifar"} | OWN


def compared(name, written_out):
    """(logits of the network, logits written out, the state dict, what was read of it)."""
    model, theirs = built(name)
    channels, side, _ = model_info(name).input_size
    side = min(side, 64)
    images = np.random.default_rng(0).standard_normal((2, channels, side, side)).astype(np.float32)
    x = torch.from_numpy(images).double()
    state = State(theirs)
    return model(x), written_out(state, x), theirs, state.read


@pytest.mark.parametrize("name", WRITTEN_OUT)
@torch.no_grad()
def test_logits_are_those_of_the_forward_written_out(name):
    found, expected, theirs, read = compared(name, WRITTEN_OUT[name])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with torch.enable_grad():  # module by module, where without gradients a Global layer is one operator
        found = compared(name, WRITTEN_OUT[name])[0]
    torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-9)
    assert {n for n in theirs if not left_out(n)} == {n for n in read if not left_out(n)}
    assert expected.std(0).mean() > 1e-3  # the images make a difference


def setups(net, **changes):
    """The same mobile network with something else in all of its Global layers."""
    stages = tuple(
        tuple((*block[:4], *(replace(p, **changes) for p in block[4:])) for block in stage)
        for stage in net.stages
    )
    return partial(mobile, net=replace(net, stages=stages))


@pytest.mark.parametrize(
    ("name", "otherwise"),
    [
        ("darts_global_cifar", partial(darts, layers=6, setup=Setup(K=4, D=1.0))),
        ("darts_global_large_cifar", partial(darts, layers=9, setup=Setup(eps=1e-5))),
        ("darts_global_tiny_cifar", partial(darts, layers=7, setup=Setup(D=1.01))),
        ("mobilenetv2_global", setups(MOBILENETV2, act=relu)),
        ("mobilenetv2_global", setups(MOBILENETV2, dot=True)),
        ("mobilenetv2_global", partial(mobile, net=replace(MOBILENETV2, act=relu))),
        ("mobilenetv3_global", setups(MOBILENETV3, dot=False)),
        ("mobilenetv3_global", partial(mobile, net=replace(MOBILENETV3, gate=torch.sigmoid))),
        ("mobilenetv3_global", partial(mobile, net=replace(MOBILENETV3, inner=hswish))),
        ("efficientnet_b0_global", setups(EFFICIENTNET_B0, dt=0.2)),
        ("efficientnet_b0_global", setups(EFFICIENTNET_B0, D=1.0)),
        ("efficientnet_b0_global", setups(EFFICIENTNET_B0, d=1)),
        ("efficientnet_b0_global", setups(EFFICIENTNET_B0, eps=1e-3)),
    ],
)
@torch.no_grad()
def test_another_convention_would_be_seen(name, otherwise):
    found, expected, _, _ = compared(name, otherwise)
    assert not torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
