#!/usr/bin/env python3
"""The optimizer of arXiv:2602.12429 (Alg. 1-3) and its ablations in PyTorch: the reference for tests/test_spectron_golden.c.

Written from the paper, with no part of this project's C code; AdamW is torch.optim's. Run as a program it writes one golden file:
initial values, 20 gradients per tensor, and what every method makes of them in float64.

Newton-Schulz multiplies a singular value near 0 by 3.4445 per iteration and its rounding error with it, so agreement in fp32 means
something only if the momentum is well-conditioned. Gradients are therefore a slowly rotating orthonormal matrix plus noise below half
its size, times a random scale. The same steps are run here in fp32 too; the distance (`fp32_spread`, printed and stored) shows how
much of a tolerance is rounding.

  Debian 12: apt-get install python3-torch python3-h5py python3-numpy   (CPU only; PyPI's torch works too)
  /usr/bin/python3 tests/reference/spectron_reference.py --seed 20261 tests/reference
"""
import argparse
import decimal
import math
import os
import sys
from dataclasses import asdict, dataclass

import h5py
import numpy as np
import torch

STEPS = 20
SKIPPED = 6  # this step's update is not applied (as after a non-finite gradient); data and schedule go on
# (m, n, r): tall, two of one shape (a batch), a wide A, r = 1, square, r a multiple of 8
PAIRS = [(37, 11, 5), (13, 29, 7), (13, 29, 7), (9, 23, 14), (17, 19, 1), (12, 12, 12), (24, 40, 8)]
# Dense matrices (m, n), which follow the method as matrices: one factor, rho = eta
DENSE = [(14, 31), (26, 9)]
# name -> (shape, weight decay applies)
OTHERS = {"embed": ((7, 10), True), "gain": ((1, 10), False)}


@dataclass
class Method:
    method: str
    lr: float
    momentum: float = 0.95
    weight_decay: float = 0.1
    grad_clip: float = 0.0
    newton_schulz_steps: int = 5
    power_steps: int = 1
    variant: str = "quintic"
    coefficient_a: float = 3.4445
    coefficient_b: float = -4.7750
    coefficient_c: float = 2.0315
    adamw_lr: float = -1.0  # < 0: eta_t
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    kind: str = "cosine"
    warmup: float = 0.125  # ceil(2.5) = 3 steps
    final: float = 0.1


# Rates are large enough that the factors change by a good part of themselves in 20 steps.
CASES = {
    "spectron": Method("spectron", lr=0.3),
    "spectron_clipped": Method("spectron", lr=0.3, momentum=0.8, weight_decay=0.0, grad_clip=6.0, newton_schulz_steps=3, power_steps=2,
                               adamw_lr=0.02, kind="linear", warmup=0.0, final=0.0),
    "muon": Method("muon", lr=0.05),
    "renorm": Method("renorm", lr=0.5, power_steps=3),
    "sgd": Method("sgd", lr=0.05, kind="constant"),
    "polar_express": Method("spectron", lr=0.3, variant="polar-express", newton_schulz_steps=6),
    "coefficients": Method("muon", lr=0.05, newton_schulz_steps=7, coefficient_a=1.875, coefficient_b=-1.25, coefficient_c=0.375),
    "adamw": Method("adamw", lr=0.02, grad_clip=6.0),
}


# The Polar Express (arXiv:2505.16932), Algorithm 1; 1.01 is its factor of safety.
POLAR_EXPRESS = [(8.28721201814563, -23.595886519098837, 17.300387312530933), (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
                 (3.9486908534822946, -2.908902115962949, 0.5518191394370137), (3.3184196573706015, -2.488488024314874, 0.51004894012372),
                 (2.300652019954817, -1.6689039845747493, 0.4188073119525673), (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
                 (1.8750014808534479, -1.2500016453999487, 0.3750001645474248)]


def newton_schulz(g, method):
    """Alg. 2; the Gram matrix on the short side. Or the Polar Express."""
    polar = method.variant == "polar-express"
    x = g / ((1.01 if polar else 1) * (torch.linalg.norm(g) + 1e-7))
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for step in range(method.newton_schulz_steps):
        a, b, c = method.coefficient_a, method.coefficient_b, method.coefficient_c
        if polar and step < len(POLAR_EXPRESS):
            a, b, c = (p / 1.01**power for p, power in zip(POLAR_EXPRESS[step], (1, 3, 5)))
        elif polar:
            a, b, c = 1.875, -1.25, 0.375
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def power_iteration(w, u, steps):
    """Alg. 3 -> sigma, u."""
    u = u / torch.linalg.norm(u)
    for _ in range(steps):
        v = w.T @ u
        v = v / torch.linalg.norm(v)
        u = w @ v
        u = u / torch.linalg.norm(u)
    return torch.dot(u, w @ v), u


def schedule_factor(method, t, steps=STEPS):
    warm = math.ceil(decimal.Decimal(str(method.warmup)) * steps)
    if t < warm:
        return (t + 1) / warm
    progress = (t - warm) / (steps - warm)
    if method.kind == "cosine":
        return method.final + (1 - method.final) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - (1 - method.final) * progress if method.kind == "linear" else 1.0


class Pair:
    """A factor pair under spectron, muon, renorm or sgd (Alg. 1 lines 7-16 and Table 2's rows); without u a dense matrix by itself."""

    def __init__(self, method, factors, u=()):
        self.method, self.factors, self.u = method, list(factors), list(u)
        self.momentum = [torch.zeros_like(w) for w in factors]
        self.sigma = [0.0, 0.0]

    def step(self, gradients, lr):
        method = self.method
        self.momentum = [method.momentum * m + (1 - method.momentum) * g for m, g in zip(self.momentum, gradients)]
        if method.method in ("spectron", "muon"):
            updates = [newton_schulz(m, method) for m in self.momentum]
        elif method.method == "renorm":
            updates = [m / (torch.linalg.norm(m) + 1e-7) for m in self.momentum]
        else:
            updates = self.momentum
        rho = lr
        if method.method in ("spectron", "renorm") and self.u:
            (sigma_a, u_a), (sigma_b, u_b) = (power_iteration(w, u, method.power_steps) for w, u in zip(self.factors, self.u))
            self.u, self.sigma = [u_a, u_b], [sigma_a.item(), sigma_b.item()]
            rho = lr / (sigma_a + sigma_b + 1)
        self.factors = [(1 - lr * method.weight_decay) * w - rho * o for w, o in zip(self.factors, updates)]


def table():
    """Name -> (shape, decay), in the order of the flat datasets."""
    tensors = {}
    for i, (m, n, r) in enumerate(PAIRS):
        tensors[f"pair{i}.A"] = ((m, r), True)
        tensors[f"pair{i}.B"] = ((n, r), True)
    for i, shape in enumerate(DENSE):
        tensors[f"dense{i}"] = (shape, True)
    tensors.update(OTHERS)
    return tensors


def random_problem(seed):
    """Initial values, initial u and gradients (STEPS, …) by name, exactly representable in fp16."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    values, u, gradients = {}, {}, {}
    for name, ((rows, cols), _) in table().items():
        values[name] = normal(rows, cols) * 1.5 / (rows**0.5 + cols**0.5)
        direction = torch.linalg.qr(normal(max(rows, cols), min(rows, cols)))[0]
        direction = direction if rows >= cols else direction.T
        spin = normal(rows, rows)
        skew = (spin - spin.T) / max(1e-9, torch.linalg.norm(spin - spin.T, 2).item())  # zero for a single row
        rotation = torch.matrix_exp(0.1 * skew)
        series = []
        for _ in range(STEPS):
            direction = rotation @ direction
            noise = 0.45 * normal(rows, cols) / (rows**0.5 + cols**0.5)
            series.append(torch.exp(0.5 * normal(1)) * (direction + noise))
        gradients[name] = torch.stack(series)
        assert torch.isfinite(gradients[name]).all()
        if name.startswith("pair"):
            start = normal(rows)
            u[name] = (start / torch.linalg.norm(start)).float().double()
    round_half = {name: g.half().double() for name, g in gradients.items()}
    return {name: v.half().double() for name, v in values.items()}, u, round_half


def run(method, values, u, gradients, dtype):
    """All STEPS steps in `dtype`. Returns the final state by kind and name, and the series by step."""
    cast = {name: v.to(dtype) for name, v in values.items()}
    as_pairs = method.method != "adamw"
    names = [[f"pair{i}.A", f"pair{i}.B"] for i in range(len(PAIRS))] + [[f"dense{i}"] for i in range(len(DENSE))]
    pairs = [Pair(method, [cast[n] for n in group], [u[n].to(dtype) for n in group if n in u]) for group in names] if as_pairs else []
    elementwise = {name: cast[name].clone().requires_grad_() for name in table() if not (as_pairs and name.startswith(("pair", "dense")))}
    groups = [{"params": [p], "weight_decay": method.weight_decay if table()[name][1] else 0.0} for name, p in elementwise.items()]
    adamw = torch.optim.AdamW(groups, lr=method.lr, betas=(method.beta1, method.beta2), eps=method.eps)
    series = {key: [] for key in ("lr_factor", "sum_squares", "clip", "apply", "sigma")}
    smallest = math.inf
    for t in range(STEPS):
        g = {name: gradients[name][t].to(dtype) for name in table()}
        sum_squares = sum(x.double().pow(2).sum().item() for x in g.values())
        clip = min(1.0, method.grad_clip / sum_squares**0.5) if method.grad_clip > 0 else 1.0
        factor = schedule_factor(method, t)
        apply = t != SKIPPED
        if apply:
            for group, pair in zip(names, pairs):
                pair.step([clip * g[name] for name in group], method.lr * factor)
                for m in pair.momentum:
                    singular = torch.linalg.svdvals(m.double())
                    smallest = min(smallest, (singular[-1] / torch.linalg.norm(m.double())).item())
            for (name, p), group in zip(elementwise.items(), adamw.param_groups):
                p.grad = clip * g[name]
                group["lr"] = (method.lr if method.adamw_lr < 0 else method.adamw_lr) * factor
            adamw.step()
        for key, value in (("lr_factor", factor), ("sum_squares", sum_squares), ("clip", clip), ("apply", float(apply)),
                           ("sigma", [pair.sigma for pair in pairs if pair.u])):
            series[key].append(value)
    state = {"value": {}, "momentum": {}, "power_u": {}, "adam_m": {}, "adam_v": {}}
    for group, pair in zip(names, pairs):
        for j, name in enumerate(group):
            state["value"][name], state["momentum"][name] = pair.factors[j], pair.momentum[j]
            if method.method in ("spectron", "renorm") and pair.u:
                state["power_u"][name] = pair.u[j]
    for name, p in elementwise.items():
        state["value"][name] = p.detach()
        state["adam_m"][name], state["adam_v"][name] = (adamw.state[p][key] for key in ("exp_avg", "exp_avg_sq"))
    return state, series, smallest


def distance(x, reference, base=None):
    """Relative Frobenius distance; for a parameter relative to how far it has moved from `base`."""
    scale = reference if base is None else reference - base
    return (torch.linalg.norm(x.double() - reference) / torch.linalg.norm(scale)).item()


def flatten(tensors):
    """In table order, those that are there."""
    return np.concatenate([tensors[name].numpy().ravel() for name in table() if name in tensors]).astype(np.float32)


def write_case(file, name, method, problem):
    values, _, _ = problem
    state, series, smallest = run(method, *problem, torch.float64)
    rounded, _, _ = run(method, *problem, torch.float32)
    spread = max(distance(rounded[kind][tensor], x, values[tensor] if kind == "value" else None)
                 for kind in state for tensor, x in state[kind].items())
    assert math.isfinite(spread) and all(torch.isfinite(x).all() for tensors in state.values() for x in tensors.values())
    moved = [distance(x, values[tensor]) for tensor, x in state["value"].items()]
    case = file.create_group(f"cases/{name}")
    case.attrs.update(asdict(method))
    case.attrs["fp32_spread"] = spread
    for kind, tensors in state.items():
        if tensors:
            case[f"final/{kind}"] = flatten(tensors)
    for key, value in series.items():
        if key != "sigma" or method.method in ("spectron", "renorm"):
            case[key] = np.array(value, dtype=np.float64)
    print(f"{name}: fp32 spread {spread:.1e}, relative change of a tensor {min(moved):.2f} to {max(moved):.2f}, "
          f"smallest singular value of a momentum over its Frobenius norm {smallest:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, h5py {h5py.__version__}, numpy {np.__version__}, seed {arguments.seed}")
    torch.set_num_threads(1)
    values, u, gradients = problem = random_problem(arguments.seed)
    path = os.path.join(arguments.folder, "spectron_steps.h5")
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs.update({"format": "spectron-golden-steps", "seed": arguments.seed, "torch": str(torch.__version__),
                           "script": os.path.basename(__file__), "steps": STEPS})
        file["pairs"] = np.array(PAIRS, dtype=np.int64)
        file["dense"] = np.array(DENSE, dtype=np.int64)
        file["others"] = np.array([[*shape, decay] for shape, decay in OTHERS.values()], dtype=np.int64)
        file["initial/value"], file["initial/power_u"] = flatten(values), flatten(u)
        file["gradients"] = np.stack([flatten({name: g[t] for name, g in gradients.items()}) for t in range(STEPS)]).astype(np.float16)
        for name, method in CASES.items():
            write_case(file, name, method, problem)
    print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
