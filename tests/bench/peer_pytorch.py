#!/usr/bin/env python3
"""The same training step in PyTorch: the peer that tests/bench/run.sh measures against.

Written to be as fast as PyTorch's own means make it on a CPU: scaled_dot_product_attention, fused q|k|v and gate|up (the
low-rank ones share one product with the B factors), fused AdamW, Newton-Schulz in batches of equal shapes and in bf16 where
the rest is, bf16 autocast with the weights cast once a pass, torch.compile (whole model) where asked for. The work is the
trainer's: forward, backward, Spectron on the factor pairs, AdamW on the rest. Prints one JSON object: seconds of every step,
peak memory, memory after the import of torch, versions.

  peer_pytorch.py --shape tiny --precision bf16 --mode compile [--dense] [--steps 4] [--warmup 2] [--threads 2]
  peer_pytorch.py --version-only

Tried without gain (2.15, two Zen 4 cores): separate products for q, k, v; SDPA's math path, one compiled by hand and contiguous
heads; linear_cross_entropy in chunks and a hand-written fused one (slower, though smaller); max-autotune-no-cudagraphs;
huge pages in the allocator. flex_attention has no backward on CPUs. fp32 products stay in fp32.
"""
import argparse
import json
import platform
import re
import resource
import time

import torch
import torch.nn.functional as F

SHAPES = {  # hidden, layers, heads, ffn, vocab, seq_len, sequences
    "tiny": (256, 8, 8, 768, 4096, 512, 16),
    "s": (768, 12, 12, 2048, 32000, 2048, 4),
}
RATIO = 0.25


class Shared(torch.nn.Module):
    """1 to 3 matrices that share an input. Low-rank: t = x·[B_0|B_1|B_2] in one product, then one product each with A_jᵀ."""

    def __init__(self, n, outs, dense):
        super().__init__()
        self.outs, self.dense = outs, dense
        if dense:
            self.w = torch.nn.Parameter(torch.randn(sum(outs), n) * 0.02)
            return
        self.ranks = [max(1, min(int(RATIO * n), m, n)) for m in outs]
        self.b = torch.nn.ParameterList([torch.randn(n, r) * 0.02 ** 0.5 * n ** -0.25 for r in self.ranks])
        self.a = torch.nn.ParameterList([torch.randn(m, r) * 0.02 ** 0.5 * n ** -0.25 for m, r in zip(outs, self.ranks)])

    def forward(self, x):
        if self.dense:
            return F.linear(x, self.w).split(self.outs, dim=-1)
        t = x.flatten(0, -2) @ (torch.cat(list(self.b), 1) if len(self.b) > 1 else self.b[0])
        return [F.linear(part, a).view(*x.shape[:-1], -1) for part, a in zip(t.split(self.ranks, dim=-1), self.a)]


class Layer(torch.nn.Module):
    def __init__(self, hidden, heads, ffn, dense):
        super().__init__()
        self.heads, self.d = heads, hidden // heads
        self.norm1 = torch.nn.Parameter(torch.ones(hidden))
        self.norm2 = torch.nn.Parameter(torch.ones(hidden))
        self.qkv = Shared(hidden, [hidden] * 3, dense)
        self.o = Shared(hidden, [hidden], dense)
        self.gate_up = Shared(hidden, [ffn] * 2, dense)
        self.down = Shared(ffn, [hidden], dense)

    def forward(self, x, cos, sin):
        batch, length, hidden = x.shape
        h = F.rms_norm(x, (hidden,), self.norm1, 1e-5)
        q, k, v = [z.view(batch, length, self.heads, self.d).transpose(1, 2) for z in self.qkv(h)]
        rotate = lambda z: z * cos + torch.cat((-z[..., self.d // 2:], z[..., :self.d // 2]), -1) * sin
        o = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.o(o.transpose(1, 2).reshape(batch, length, hidden))[0]
        gate, up = self.gate_up(F.rms_norm(x, (hidden,), self.norm2, 1e-5))
        return x + self.down(F.silu(gate) * up)[0]


class Llama(torch.nn.Module):
    def __init__(self, hidden, layers, heads, ffn, vocab, seq_len, dense):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab, hidden)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = torch.nn.ModuleList([Layer(hidden, heads, ffn, dense) for _ in range(layers)])
        self.norm = torch.nn.Parameter(torch.ones(hidden))
        self.head = torch.nn.Parameter(torch.randn(vocab, hidden) * 0.02)
        d = hidden // heads
        angle = torch.arange(seq_len)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), -1))
        self.register_buffer("sin", torch.cat((angle.sin(), angle.sin()), -1))

    def forward(self, ids, targets, cast):
        x = self.embedding(ids)
        cos, sin = self.cos.to(cast), self.sin.to(cast)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, 1e-5), self.head)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def newton_schulz(x):
    """Alg. 2 on a batch of equal shapes, the Gram matrix on the short side."""
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Spectron:
    """Alg. 1 on factor pairs, in stacks of equal shape."""

    def __init__(self, model, cast):
        self.cast, self.stacks = cast, {}
        for module in model.modules():
            if isinstance(module, Shared) and not module.dense:
                for a, b in zip(module.a, module.b):
                    self.stacks.setdefault((a.shape, b.shape), []).append((a, b))
        self.state = {key: [[torch.zeros(len(pairs), *s), F.normalize(torch.randn(len(pairs), s[0], 1), dim=1)] for s in key]
                      for key, pairs in self.stacks.items()}

    @torch.no_grad()
    def step(self, lr=0.01, decay=0.1, beta=0.95):
        for key, pairs in self.stacks.items():
            directions, weights, sigmas = [], [], []
            for side, state in enumerate(self.state[key]):
                momentum, u = state
                momentum.lerp_(torch.stack([p[side].grad for p in pairs]), 1 - beta)
                norm = torch.linalg.matrix_norm(momentum, keepdim=True) + 1e-7
                directions.append(newton_schulz((momentum / norm).to(self.cast)))
                weights.append(torch.stack([p[side] for p in pairs]))
                v = F.normalize(weights[side].mT @ u, dim=1)
                u = weights[side] @ v
                sigmas.append(torch.linalg.vector_norm(u, dim=1, keepdim=True))
                state[1] = u / sigmas[side]
            rho = lr / (sigmas[0] + sigmas[1] + 1)
            for side in range(2):
                updated = weights[side] * (1 - lr * decay) - rho * directions[side]
                for pair, value in zip(pairs, updated):
                    pair[side].copy_(value)


def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def versions():
    library = re.search(r"MKL-DNN v([0-9.]+)", torch.__config__.show())
    return {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads(),
            "onednn": library.group(1) if library else "none", "capability": torch.backends.cpu.get_cpu_capability()}


def main():
    imported_mib = resident_mib()
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--mode", choices=("eager", "compile"), default="eager")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro", type=int, default=0, help="sequences of a pass, gradients accumulated; 0: all")
    parser.add_argument("--version-only", action="store_true", help="print the versions and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.version_only:
        print(json.dumps(versions()))
        return
    torch.manual_seed(1)
    hidden, layers, heads, ffn, vocab, seq_len, sequences = SHAPES[args.shape]
    model = Llama(hidden, layers, heads, ffn, vocab, seq_len, args.dense)
    cast = torch.bfloat16 if args.precision == "bf16" else torch.float32
    spectron = Spectron(model, cast)
    factors = {id(p) for pairs in spectron.stacks.values() for pair in pairs for p in pair}
    adamw = torch.optim.AdamW([p for p in model.parameters() if id(p) not in factors], lr=0.01, fused=True)
    forward = torch.compile(model, dynamic=False) if args.mode == "compile" else model
    seconds, loss = [], None
    for _ in range(args.warmup + args.steps):
        ids = torch.randint(vocab, (sequences, seq_len + 1))
        began = time.perf_counter()
        for part in ids.split(args.micro or sequences):
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                loss = forward(part[:, :-1], part[:, 1:], cast) * (len(part) / sequences)
            loss.backward()
        spectron.step()
        adamw.step()
        model.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"mode": args.mode, "tokens_per_step": sequences * seq_len, "seconds": seconds[args.warmup:],
                      "warmup_seconds": seconds[:args.warmup], "loss": loss.detach().item(),
                      "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "imported_mib": imported_mib,
                      "parameters": sum(p.numel() for p in model.parameters()), **versions()}))


if __name__ == "__main__":
    main()
