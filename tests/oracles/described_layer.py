"""Oracle: the Global layer as section 3 of the paper and the docstring describe it, periodic, step by step.

Independent of the library: neighbours by torch.roll, norms by formula, one line per term of the scheme.
Of a layer it reads the state dict alone. Compared with: `GlobalLayer`, every option, both modes, in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class DescribedLayer:
    """The layer step by step, as its description has it; of `layer` only the weights are read."""

    def __init__(self, layer, *, act=F.relu, eps, coefficients="depthwise", training=False):
        self.w = layer.state_dict()
        self.act, self.eps, self.net, self.training = act, eps, coefficients, training

    def batch_norm(self, x, name, eps):
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, var = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
        scale = self.w[f"{name}.weight"] / torch.sqrt(var + eps)
        return (x - mean[:, None, None]) * scale[:, None, None] + self.w[f"{name}.bias"][:, None, None]

    def conv(self, x, name, groups=1):
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups)

    def coefficient(self, x, name):
        """BN(net(x)), before the activation."""
        net = f"{name}.net"
        if self.net == "depthwise":
            y = self.conv(x, net, groups=x.shape[1])
        elif self.net in ("full", "pointwise"):
            y = self.conv(x, net)
        elif self.net == "identity":
            y = x
        elif self.net == "shared-groups":  # one map for the channels of a group
            groups = self.w[f"{net}.conv.weight"].shape[0]
            y = self.batch_norm(self.conv(x, f"{net}.conv", groups=groups), f"{name}.norm", self.eps)
            return y.repeat_interleave(x.shape[1] // groups, dim=1)
        elif self.net == "half-resolution":  # one number for 2 x 2 pixels
            rows, columns = (range(0, n, 2) for n in x.shape[2:])
            means = [[x[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in columns] for i in rows]
            half = torch.stack([torch.stack(row, dim=-1) for row in means], dim=-2)
            y = self.batch_norm(self.conv(half, f"{net}.conv", groups=x.shape[1]), f"{name}.norm", self.eps)
            y = y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            return y[:, :, : x.shape[2], : x.shape[3]]
        elif self.net == "basic":
            y = F.relu(self.batch_norm(self.conv(x, f"{net}.branch.0"), f"{net}.branch.1", 1e-5))
            y = self.batch_norm(self.conv(y, f"{net}.branch.3"), f"{net}.branch.4", 1e-5)
            y = F.relu(x + y)
        else:
            assert self.net == "bottleneck"
            y = F.relu(self.batch_norm(self.conv(x, f"{net}.branch.0"), f"{net}.branch.1", 1e-5))
            y = F.relu(self.batch_norm(self.conv(y, f"{net}.branch.3"), f"{net}.branch.4", 1e-5))
            y = self.batch_norm(self.conv(y, f"{net}.branch.6"), f"{net}.branch.7", 1e-5)
            y = F.relu(x + y)
        return self.batch_norm(y, f"{name}.norm", self.eps)

    def pair(self, x, first, second, shared):
        g, g1 = self.coefficient(x, first), self.coefficient(x, second)
        if shared:
            product = self.act(g * self.act(g1))
            return product, product
        return self.act(g), self.act(g1)

    def __call__(
        self, f, h, *, pde, D=None, shared=False, velocity_from="h", start="f", source=True, residual=False
    ):
        """`h` is what the init block made of `f`."""
        if f.shape != h.shape:
            f = h
        H_old, H = (f if start == "f" else h), h
        u, v = self.pair(f if velocity_from == "f" else h, "velocity_x", "velocity_y", shared)
        Dx, Dy = self.pair(h, "diffusion_x", "diffusion_y", shared) if D is None else D
        dt, (dx, dy) = pde.dt, pde.spacing

        def s(A, d, axis):  # s(A, +d)[i] = A[i - d], periodic
            return torch.roll(A, d, dims=axis)

        ux = (s(u, dx, 2) - s(u, -dx, 2)) / (2 * dx)
        vy = (s(v, dy, 3) - s(v, -dy, 3)) / (2 * dy)
        Ax, Ay, Bx, By = u * dt / dx, v * dt / dy, Dx * dt / dx**2, Dy * dt / dy**2
        E = (ux + vy) * dt
        R = 1 / (1 + 2 * Bx + 2 * By)
        for _ in range(pde.steps):
            H_new = R * (
                (1 - 2 * Bx - 2 * By) * H_old
                - 2 * E * H
                + (2 * Bx - Ax) * s(H, dx, 2)
                + (2 * Bx + Ax) * s(H, -dx, 2)
                + (2 * By - Ay) * s(H, dy, 3)
                + (2 * By + Ay) * s(H, -dy, 3)
            )
            if source:
                H_new = H_new + 2 * dt * R * f
            H_old, H = H, H_new
        out = self.act(self.batch_norm(H, "norm", 1e-5))
        return out + f if residual else out
