#!/usr/bin/env python3
"""Goes on from a checkpoint of this program in PyTorch, float64, and compares the losses with those the program itself logged.

The whole loop a second time, from the files alone: the order of the data (Philox and the Feistel permutation of the design), model,
gradients, clipping, schedule, Spectron and AdamW. A tool for people; the test suite does not run it. Losses drift apart slowly, as
fp32 rounding is amplified by training: below 1e-7 relative over 20 steps of a tiny model run with `[device] precision = "fp32"`.

  Debian 12: apt-get install python3-torch python3-h5py python3-numpy
  /usr/bin/python3 tests/reference/train_reference.py runs/tiny/checkpoints/step-00000005.h5 --steps 20

Reads the job from the checkpoint and metrics.jsonl from the run's folder. Without presets: the job must name layers' shapes that the
tensors do not show (heads). Exits 1 if a loss differs by more than --tolerance.
"""
import argparse
import glob
import json
import math
import os
import sys
import tomllib

import h5py
import numpy as np
import torch

import model_reference
import spectron_reference

MASK32, MASK64 = 2**32 - 1, 2**64 - 1


def philox(seed, stream, counter):
    """Philox4x32-10: four 32-bit words."""
    k0, k1 = seed & MASK32, seed >> 32
    c = [counter & MASK32, counter >> 32, stream & MASK32, stream >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & MASK32, (p0 >> 32) ^ c[3] ^ k1, p0 & MASK32]
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c


def random_bits(seed, stream, index):
    words = philox(seed, stream, index >> 1)
    return words[2] << 32 | words[3] if index & 1 else words[0] << 32 | words[1]


def stream_of(name):
    """FNV-1a 64."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK64
    return value


def permute(seed, epoch, count, index):
    """Feistel network of 8 rounds, walked until the value falls inside [0, count)."""
    half = 1
    while half < 31 and 4**half < count:
        half += 1
    mask, stream, value = 2**half - 1, stream_of("data order") ^ epoch, index
    while True:
        left, right = value >> half, value & mask
        for step in range(8):
            left, right = right, left ^ (random_bits(seed, stream, step << 32 | right) & mask)
        value = left << half | right
        if value < count:
            return value


class Data:
    """The global batch of any step."""

    def __init__(self, job, folder, seq_len):
        patterns = job["data"]["train"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        paths = sorted({path for pattern in patterns for path in glob.glob(os.path.join(folder, pattern))}, key=os.fsencode)
        if not paths:
            sys.exit(f"no token shard matches {patterns} from {folder} (name the job's folder with --folder)")
        shards = []
        for path in paths:
            with h5py.File(path, "r") as file:
                shards.append(file["tokens"][:])
        self.tokens = torch.from_numpy(np.concatenate(shards).astype(np.int64))
        self.seed = job["data"].get("seed", job["run"].get("seed", 0))
        self.seq_len, self.sequences = seq_len, job["batch"]["sequences"]
        self.windows = (len(self.tokens) - 1) // seq_len

    def batch(self, step):
        rows = []
        for index in range(self.sequences):
            sample = step * self.sequences + index
            window = permute(self.seed, sample // self.windows, self.windows, sample % self.windows)
            rows.append(self.tokens[window * self.seq_len : (window + 1) * self.seq_len + 1])
        rows = torch.stack(rows)
        return rows[:, :-1], rows[:, 1:]


def read_config(job, tensors):
    model = job["model"]
    if "preset" in model or "heads" not in model:
        sys.exit("the job must give [model] heads and no preset")
    vocab, hidden = tensors["model.embed_tokens.weight"].shape
    config = model_reference.Config(
        hidden=hidden, layers=1 + max(int(name.split(".")[2]) for name in tensors if ".layers." in name), heads=model["heads"],
        kv_heads=model.get("kv_heads", model["heads"]),
        ffn=next(t.shape[0] for name, t in tensors.items() if name.startswith(("model.layers.0.mlp.gate_proj.A", "model.layers.0.mlp.gate_proj.weight"))),
        vocab=vocab, seq_len=model.get("seq_len", 2048), rope_theta=model.get("rope_theta", 10000.0), norm_eps=model.get("norm_eps", 1e-5),
        rank_ratio=model.get("rank_ratio", 0.25), parameterization=model.get("parameterization", "low-rank"),
        tie_embeddings=model.get("tie_embeddings", False))
    expected = model_reference.tensor_shapes(config)
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != {name: (1, *shape) if len(shape) == 1 else shape for name, shape in expected.items()}:  # a gain is (1, hidden)
        sys.exit(f"tensors differ from the model's: {sorted(set(found.items()) ^ set(expected.items()))[:4]}")
    return config


def read_method(job):
    o, adamw, schedule = job.get("optimizer", {}), job.get("optimizer", {}).get("adamw", {}), job["schedule"]
    return spectron_reference.Method(
        method=o.get("method", "spectron"), lr=o.get("lr", 0.01), momentum=o.get("momentum", 0.95), weight_decay=o.get("weight_decay", 0.1),
        grad_clip=o.get("grad_clip", 0.0), newton_schulz_steps=o.get("newton_schulz_steps", 5), power_steps=o.get("power_steps", 1),
        adamw_lr=adamw.get("lr", -1.0), beta1=adamw.get("beta1", 0.9), beta2=adamw.get("beta2", 0.95), eps=adamw.get("eps", 1e-8),
        kind=schedule.get("kind", "cosine"), warmup=schedule.get("warmup", 0.05), final=schedule.get("final", 0.0))


class Trainer:
    def __init__(self, path, folder):
        with h5py.File(path, "r") as file:
            self.job = tomllib.loads(file["job"][()].decode())
            self.step, self.applied = int(file.attrs["step"]), int(file.attrs["applied_updates"])
            tensors = {name: torch.from_numpy(file["model"][name][:]).double() for name in file["model"]}
            state = {name: {kind: torch.from_numpy(dataset[:]).double() for kind, dataset in group.items()} for name, group in file["optimizer"].items()}
        self.config, self.method = read_config(self.job, tensors), read_method(self.job)
        shapes = model_reference.tensor_shapes(self.config)
        self.parameters = {name: t.reshape(shapes[name]).requires_grad_() for name, t in tensors.items()}
        self.data = Data(self.job, folder, self.config.seq_len)
        self.steps = self.job["schedule"]["steps"]
        self.pairs = {name[:-2]: self._pair(name[:-2], state) for name in tensors if name.endswith(".A") and self.method.method != "adamw"}
        self.rest = [name for name in tensors if name[:-2] not in self.pairs]
        groups = [{"params": [self.parameters[name]], "weight_decay": 0.0 if self.parameters[name].dim() == 1 else self.method.weight_decay}
                  for name in self.rest]
        self.adamw = torch.optim.AdamW(groups, lr=1.0, betas=(self.method.beta1, self.method.beta2), eps=self.method.eps)
        for name in self.rest:
            moments = [state[name][kind].reshape(shapes[name]) for kind in ("adam_m", "adam_v")]
            self.adamw.state[self.parameters[name]] = {"step": torch.tensor(float(self.applied)), "exp_avg": moments[0], "exp_avg_sq": moments[1]}

    def _pair(self, base, state):
        a, b = base + ".A", base + ".B"
        pair = spectron_reference.Pair(self.method, self.parameters[a].detach(), self.parameters[b].detach(),
                                       *(state[name].get("power_u", torch.ones(1)).flatten() for name in (a, b)))
        pair.momentum = [state[name]["momentum"] for name in (a, b)]
        return pair

    def train_step(self):
        """One step; returns its loss, before the update."""
        for parameter in self.parameters.values():
            parameter.grad = None
        value = model_reference.loss(self.config, self.parameters, *self.data.batch(self.step))
        value.backward()
        norm = math.sqrt(sum(p.grad.pow(2).sum().item() for p in self.parameters.values()))
        limit = self.method.grad_clip
        clip = limit / (norm + 1e-6) if 0 < limit < norm else 1.0
        factor = spectron_reference.schedule_factor(self.method, self.step, self.steps)
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.grad *= clip
            for base, pair in self.pairs.items():
                names = (base + ".A", base + ".B")
                pair.step([self.parameters[name].grad for name in names], self.method.lr * factor)
                for name, w in zip(names, pair.factors):
                    self.parameters[name].copy_(w)
        for group in self.adamw.param_groups:
            group["lr"] = (self.method.lr if self.method.adamw_lr < 0 else self.method.adamw_lr) * factor
        self.adamw.step()
        self.step += 1
        return value.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative, of a loss")
    parser.add_argument("--folder", help="what relative paths of the job start from (the run's folder)")
    arguments = parser.parse_args()
    run = os.path.dirname(os.path.dirname(os.path.abspath(arguments.checkpoint)))
    trainer = Trainer(arguments.checkpoint, arguments.folder or run)
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        logged = {record["step"]: record["loss"] for record in map(json.loads, file)}
    compared, worst = 0, 0.0
    for _ in range(min(arguments.steps, trainer.steps - trainer.step)):
        value = trainer.train_step()
        if logged.get(trainer.step) is None:
            continue
        difference = logged[trainer.step] / value - 1
        compared, worst = compared + 1, max(worst, abs(difference))
        print(f"step {trainer.step}: reference {value:.9f}, program {logged[trainer.step]:.9f}, difference {difference:+.1e}")
    if not compared:
        sys.exit("metrics.jsonl holds none of these steps")
    print(f"{compared} losses compared, largest difference {worst:.1e}")
    sys.exit(not worst <= arguments.tolerance)


if __name__ == "__main__":
    main()
