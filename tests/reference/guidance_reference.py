#!/usr/bin/env python3
"""Twenty steps of self-guided training (Wei et al. 2024; arXiv:2602.12429, App. C) in PyTorch, float64: the reference for tests/test_guidance_golden.c.

The model is model_reference.py's; alphas, draws, AdamW (torch.optim's) and Muon as the paper and the design print them, with no part of this project's
C code. Two micro-batches a step; guidance ends at step 11 of 20. Written: initial factors, tokens, and for each case the losses by step, and the parameters
after the last step (guides: after the last step with them).

  Debian 12: apt-get install python3-torch python3-h5py python3-numpy   (CPU only; PyPI's torch works too)
  /usr/bin/python3 tests/reference/guidance_reference.py --seed 20262 tests/reference
"""
import argparse
import math
import os
import sys

import h5py
import numpy as np
import torch

import model_reference
from train_reference import random_bits, stream_of

STEPS, GUIDED, MICRO_BATCHES, SEQUENCES = 20, 11, 2, 2  # ceil(0.55 * 20) = 11
RUN_SEED = 41
CONFIG = model_reference.Config(32, 1, 2, 2, 40, 31, 16, 10000.0, 1e-5, 0.28, guided=True)
MATRICES = [f"self_attn.{name}" for name in model_reference.ATTENTION] + [f"mlp.{name}" for name in model_reference.FFN]
DECAY, MOMENTUM, BETAS, EPS = 0.1, 0.95, (0.9, 0.95), 1e-8
# name -> (method, learning rate, stochastic)
CASES = {
    "adamw": ("adamw", 0.01, False),
    "adamw_stochastic": ("adamw", 0.01, True),
    "muon": ("muon", 0.02, False),
    "muon_stochastic": ("muon", 0.02, True),
}


def alpha_of(step):
    """Cosine from 1 to 0 over the guided steps."""
    return 0.5 * (1 + math.cos(math.pi * step / GUIDED)) if step < GUIDED else 0.0


def alphas_of(step, batch, stochastic):
    """Eq. 17, or Eq. 19: the guide of a matrix is used in a micro-batch where a draw p is below alpha."""
    alpha = alpha_of(step)
    count = CONFIG.layers * len(MATRICES)
    alphas = [alpha] * count
    if stochastic:
        stream = random_bits(RUN_SEED, stream_of("guidance"), step)
        draws = [(random_bits(RUN_SEED, stream, batch * count + i) >> 11) / 2**53 for i in range(count)]
        alphas = [alpha if p < alpha else 0.0 for p in draws]
    return np.array(alphas).reshape(CONFIG.layers, len(MATRICES))


def newton_schulz(m):
    x = m / (torch.linalg.norm(m) + 1e-7)
    x = x.T if m.shape[0] > m.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if m.shape[0] > m.shape[1] else x


def is_matrix(name):
    return ".layers." in name and "layernorm" not in name


def run(start, tokens, method, lr, stochastic, dtype):
    """Final parameters and the losses by step."""
    parameters = {name: value.to(dtype).clone().requires_grad_() for name, value in start.items()}
    by_muon = [name for name in parameters if method == "muon" and is_matrix(name)]
    rest = [name for name in parameters if name not in by_muon]
    momentum = {name: torch.zeros_like(parameters[name]) for name in by_muon}
    groups = [{"params": [parameters[name]], "weight_decay": 0.0 if parameters[name].dim() == 1 else DECAY} for name in rest]
    adamw = torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS)
    losses = []
    for step in range(STEPS):
        for parameter in parameters.values():
            parameter.grad = None
        total = 0.0
        for batch in range(MICRO_BATCHES):
            alphas = alphas_of(step, batch, stochastic).astype(np.float32)  # as the program passes them on
            ids, targets = tokens[step, batch, :, :-1], tokens[step, batch, :, 1:]
            value = model_reference.loss(CONFIG, model_reference.with_alphas(CONFIG, parameters, alphas), ids, targets) / MICRO_BATCHES
            value.backward()
            total += value.item()
        losses.append(total)
        for name, parameter in parameters.items():
            freed = name.endswith(".guide") and step >= GUIDED
            if parameter.grad is None and not freed:
                parameter.grad = torch.zeros_like(parameter)  # no micro-batch drew it: an update all the same
            elif freed:
                parameter.grad = None  # AdamW leaves it alone
        adamw.step()
        with torch.no_grad():
            for name in by_muon:
                if parameters[name].grad is None:
                    continue
                momentum[name] = MOMENTUM * momentum[name] + (1 - MOMENTUM) * parameters[name].grad
                parameters[name] *= 1 - lr * DECAY
                parameters[name] -= lr * newton_schulz(momentum[name])
    return {name: parameter.detach() for name, parameter in parameters.items()}, losses


def distance(x, reference, base):
    return (torch.linalg.norm(x.double() - reference) / torch.linalg.norm(reference - base)).item()


def write_case(file, name, start, tokens, method, lr, stochastic):
    final, losses = run(start, tokens, method, lr, stochastic, torch.float64)
    rounded, rounded_losses = run(start, tokens, method, lr, stochastic, torch.float32)
    spread = max(distance(rounded[tensor], final[tensor], start[tensor]) for tensor in final)
    case = file.create_group(f"cases/{name}")
    case.attrs.update({"method": method, "lr": lr, "stochastic": stochastic, "fp32_spread": spread})
    case["losses"] = np.array(losses)
    for tensor, value in final.items():
        case[f"model/{tensor}"] = value.numpy().astype(np.float32)
    used = sum(int((alphas_of(step, batch, stochastic) > 0).sum()) for step in range(STEPS) for batch in range(MICRO_BATCHES))
    print(f"{name}: fp32 spread {spread:.1e}, of losses {max(abs(a / b - 1) for a, b in zip(rounded_losses, losses)):.1e}, loss {losses[0]:.4f} to "
          f"{losses[-1]:.4f}, {used} uses of a guide in {STEPS * MICRO_BATCHES * CONFIG.layers * len(MATRICES)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, h5py {h5py.__version__}, numpy {np.__version__}, seed {arguments.seed}")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(arguments.seed)
    start = {name: value.detach() for name, value in model_reference.random_parameters(CONFIG, generator).items()}
    for name in start:
        if name.endswith(".guide"):
            start[name] = start[name[:-6] + ".A"] @ start[name[:-6] + ".B"].T  # Eq. 18
    tokens = torch.randint(CONFIG.vocab, (STEPS, MICRO_BATCHES, SEQUENCES, CONFIG.seq_len + 1), generator=generator)
    path = os.path.join(arguments.folder, "guidance_steps.h5")
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs.update({"format": "spectron-golden-guidance", "seed": arguments.seed, "torch": str(torch.__version__),
                           "script": os.path.basename(__file__), "steps": STEPS, "guided": GUIDED, "micro_batches": MICRO_BATCHES,
                           "sequences": SEQUENCES, "run_seed": RUN_SEED, "weight_decay": DECAY, "momentum": MOMENTUM})
        file.attrs.update({key: value for key, value in vars(CONFIG).items() if key not in ("parameterization", "guided")})
        file["tokens"] = tokens.numpy().astype(np.int32)
        for tensor, value in start.items():
            if not tensor.endswith(".guide"):
                file[f"model/{tensor}"] = value.numpy().astype(np.float32)
        for name, case in CASES.items():
            write_case(file, name, start, tokens, *case)
    print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
