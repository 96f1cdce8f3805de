#!/usr/bin/env python3
"""The model of the design in PyTorch, float64, by the textbook: the reference for tests/test_golden.c.

Written from the published LLaMA-3 shape and Hugging Face's conventions, with no part of this project's C code, so that an
error has to be made twice to go unseen. Run as a program it writes one golden file per case: random parameters and tokens, the
mean cross-entropy, and its gradient with respect to every tensor by autograd.

  Debian 12: apt-get install python3-torch python3-h5py python3-numpy   (CPU only; PyPI's torch works too)
  /usr/bin/python3 tests/reference/model_reference.py --seed 20260 tests/reference
"""
import argparse
import decimal
import os
import sys
from dataclasses import asdict, dataclass

import h5py
import numpy as np
import torch
import torch.nn.functional as F

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")


@dataclass
class Config:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    seq_len: int
    rope_theta: float
    norm_eps: float
    rank_ratio: float
    parameterization: str = "low-rank"
    tie_embeddings: bool = False
    guided: bool = False


# Ranks 13 and 22 are no multiple of 8. The variants carry another theta and an epsilon that is felt, each in one layer.
CASES = {
    "low_rank": Config(48, 2, 3, 3, 80, 97, 37, 10000.0, 1e-5, 0.28),
    "low_rank_gqa": Config(48, 1, 3, 1, 80, 97, 37, 500.0, 0.05, 0.28),
    "dense": Config(48, 1, 3, 3, 80, 97, 37, 10000.0, 1e-5, 0.28, parameterization="dense"),
    "low_rank_ffn": Config(48, 1, 3, 3, 80, 97, 37, 10000.0, 0.05, 0.28, parameterization="low-rank-ffn"),
    "low_rank_tied": Config(48, 1, 3, 3, 80, 97, 37, 10000.0, 1e-5, 0.28, tie_embeddings=True),
    "guided": Config(32, 1, 2, 1, 40, 31, 37, 10000.0, 1e-5, 0.28, guided=True),
    "guided_mixed": Config(24, 2, 2, 2, 40, 31, 37, 10000.0, 1e-5, 0.28, guided=True),
    "guided_ffn": Config(24, 1, 2, 2, 40, 31, 37, 10000.0, 1e-5, 0.28, parameterization="low-rank-ffn", guided=True),
}
# alpha by layer and matrix, in the order of ATTENTION and FFN; one number: of all
ALPHAS = {"guided": 0.3, "guided_mixed": [[0.3, 0, 1, 0.75, 0, 0.5, 0.25], [0, 0, 0, 1, 0.125, 0.9, 0]], "guided_ffn": 0.6}
SEQUENCES = 2


def factor_rank(ratio, m, n):
    """r = max(1, min(floor(ratio * n), m, n)), the ratio an exact decimal, n the input width."""
    return max(1, min(int(decimal.Decimal(str(ratio)) * n), m, n))


def tensor_shapes(c):
    """Name -> shape of every parameter, Hugging Face names."""
    head_dim = c.hidden // c.heads
    shapes = {"model.embed_tokens.weight": (c.vocab, c.hidden)}
    matrices = {
        "self_attn.q_proj": (c.hidden, c.hidden),
        "self_attn.k_proj": (c.kv_heads * head_dim, c.hidden),
        "self_attn.v_proj": (c.kv_heads * head_dim, c.hidden),
        "self_attn.o_proj": (c.hidden, c.hidden),
        "mlp.gate_proj": (c.ffn, c.hidden),
        "mlp.up_proj": (c.ffn, c.hidden),
        "mlp.down_proj": (c.hidden, c.ffn),
    }
    for layer in range(c.layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (c.hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (c.hidden,)
        for name, (m, n) in matrices.items():
            low_rank = c.parameterization == "low-rank" or (c.parameterization == "low-rank-ffn" and name.startswith("mlp"))
            if low_rank:
                r = factor_rank(c.rank_ratio, m, n)
                shapes[prefix + name + ".A"] = (m, r)
                shapes[prefix + name + ".B"] = (n, r)
                if c.guided:
                    shapes[prefix + name + ".guide"] = (m, n)
            else:
                shapes[prefix + name + ".weight"] = (m, n)
    shapes["model.norm.weight"] = (c.hidden,)
    if not c.tie_embeddings:
        shapes["lm_head.weight"] = (c.vocab, c.hidden)
    return shapes


def rms_norm(x, gain, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def linear(parameters, name, x):
    """y = x W^T with W = A B^T, or the dense W. Where parameters has an alpha for it: alpha W x + (1 - alpha) A B^T x (Eq. 17), W the guide."""
    if name + ".A" in parameters:
        y = x @ (parameters[name + ".A"] @ parameters[name + ".B"].T).T
        alpha = parameters.get(name + ".alpha", 0.0)
        return alpha * (x @ parameters[name + ".guide"].T) + (1 - alpha) * y if alpha else y
    return x @ parameters[name + ".weight"].T


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rope(x, theta):
    """x (batch, heads, T, head_dim); Hugging Face's half-split rotation."""
    length, dim = x.shape[-2:]
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=x.dtype) / dim)
    angles = torch.outer(torch.arange(length, dtype=x.dtype), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return x * angles.cos() + rotate_half(x) * angles.sin()


def attention(c, parameters, prefix, h):
    batch, length, _ = h.shape
    head_dim = c.hidden // c.heads

    def heads(name, count):
        return linear(parameters, prefix + name, h).view(batch, length, count, head_dim).transpose(1, 2)

    q, k, v = heads("q_proj", c.heads), heads("k_proj", c.kv_heads), heads("v_proj", c.kv_heads)
    q, k = rope(q, c.rope_theta), rope(k, c.rope_theta)
    k, v = (t.repeat_interleave(c.heads // c.kv_heads, dim=1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / head_dim**0.5
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)
    o = scores.masked_fill(mask, float("-inf")).softmax(-1) @ v
    return linear(parameters, prefix + "o_proj", o.transpose(1, 2).reshape(batch, length, c.hidden))


def logits(c, parameters, ids):
    """ids (batch, T) -> (batch, T, vocab)."""
    x = F.embedding(ids, parameters["model.embed_tokens.weight"])
    for layer in range(c.layers):
        prefix = f"model.layers.{layer}."
        h = rms_norm(x, parameters[prefix + "input_layernorm.weight"], c.norm_eps)
        x = x + attention(c, parameters, prefix + "self_attn.", h)
        h = rms_norm(x, parameters[prefix + "post_attention_layernorm.weight"], c.norm_eps)
        gated = F.silu(linear(parameters, prefix + "mlp.gate_proj", h)) * linear(parameters, prefix + "mlp.up_proj", h)
        x = x + linear(parameters, prefix + "mlp.down_proj", gated)
    x = rms_norm(x, parameters["model.norm.weight"], c.norm_eps)
    head = "model.embed_tokens.weight" if c.tie_embeddings else "lm_head.weight"
    return x @ parameters[head].T


def loss(c, parameters, ids, targets):
    """Mean cross-entropy over all tokens."""
    return F.cross_entropy(logits(c, parameters, ids).flatten(0, 1), targets.flatten())


def random_parameters(c, generator):
    """Activations and attention scores of order one, so that every part of the network is felt in loss and gradients.
    Rounded to bfloat16 values: exact in fp32 and in bf16 alike."""
    parameters = {}
    for name, shape in tensor_shapes(c).items():
        value = torch.randn(shape, dtype=torch.float64, generator=generator)
        if len(shape) == 1:
            value = 1 + 0.2 * value
        elif name.endswith(".A"):
            value *= 1.2 * shape[1] ** -0.5  # maps r inputs
        elif name.endswith(".B"):
            value *= shape[0] ** -0.5  # maps n inputs
        elif name == "model.embed_tokens.weight":
            value *= 0.4 if c.tie_embeddings else 1.0
        else:
            value *= 1.2 * shape[1] ** -0.5
        parameters[name] = value.to(torch.bfloat16).double().requires_grad_()
    return parameters


def with_alphas(c, parameters, alphas):
    """The parameters and, under <matrix>.alpha, the alphas (layers, 7)."""
    names = [f"self_attn.{name}" for name in ATTENTION] + [f"mlp.{name}" for name in FFN]
    return parameters | {f"model.layers.{layer}.{name}.alpha": float(alphas[layer][i]) for layer in range(c.layers) for i, name in enumerate(names)}


def write_case(path, name, c, seed):
    generator = torch.Generator().manual_seed(seed)
    parameters = random_parameters(c, generator)
    tokens = torch.randint(c.vocab, (SEQUENCES, c.seq_len + 1), generator=generator)
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    alphas = np.broadcast_to(np.array(ALPHAS.get(name, 0.0)), (c.layers, len(ATTENTION + FFN))).astype(np.float32)
    value = loss(c, with_alphas(c, parameters, alphas), ids, targets)
    value.backward()
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad  # a guide that is not used

    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs.update({"format": "spectron-golden-model", "seed": seed, "torch": str(torch.__version__), "script": os.path.basename(__file__)})
        case = file.create_group(f"cases/{name}")
        case.attrs.update(asdict(c))
        case.attrs["sequences"] = SEQUENCES
        case.attrs["loss"] = value.item()
        case["ids"] = ids.numpy().astype(np.int32)
        case["targets"] = targets.numpy().astype(np.int32)
        if c.guided:
            case["alphas"] = alphas
        for tensor, parameter in parameters.items():
            case[f"model/{tensor}"] = parameter.detach().numpy().astype(np.float32)
            case[f"gradients/{tensor}"] = parameter.grad.numpy().astype(np.float32)
    count = sum(p.numel() for p in parameters.values())
    smallest = min(p.grad.norm().item() / p.numel() ** 0.5 for p in parameters.values())
    print(f"{path}: {count} parameters, loss {value.item():.12f}, smallest rms gradient {smallest:.2e}, {os.path.getsize(path)} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, h5py {h5py.__version__}, numpy {np.__version__}, seed {arguments.seed}")
    torch.set_num_threads(1)
    for index, (name, c) in enumerate(CASES.items()):
        write_case(os.path.join(arguments.folder, f"model_{name}.h5"), name, c, arguments.seed + index)


if __name__ == "__main__":
    main()
