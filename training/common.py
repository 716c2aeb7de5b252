"""What the training commands share: resumable checkpoints, EMA, schedules, devices.

Every command is deterministic from its seed: the batch of step `i` is drawn from (seed, i), so a run that is
killed and resumed sees the same data as one that was not.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(dev: torch.device):
    """bfloat16 where it pays: tensor cores, AMX, AVX512. A processor without them emulates it, several times slower."""
    pays = dev.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(dev.type, dtype=torch.bfloat16, enabled=pays)


def rng(seed: int, step: int) -> random.Random:
    return random.Random(f"{seed}/{step}")


def generator(seed: int, step: int, dev: torch.device) -> torch.Generator:
    return torch.Generator(dev).manual_seed((seed * 1_000_003 + step) % (2**63))


def arguments(doc: str, *, steps: int, batch: int, lr: float, out: str) -> argparse.ArgumentParser:
    """The options that every training command has."""
    ap = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--steps", type=int, default=steps, help="length of the run; the learning rate decays over it")
    ap.add_argument("--until", type=int, help="stop after this step and save; the same command without it goes on")
    ap.add_argument("--batch", type=int, default=batch)
    ap.add_argument("--lr", type=float, default=lr)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--out", type=Path, default=Path(out), help="folder of checkpoint and result")
    return ap


def cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then cosine decay to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    t = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t))


def timesteps(n: int, g: torch.Generator, dev: torch.device) -> Tensor:
    """[n] in 0..1, half logit-normal and half uniform: what is placed where is settled near 1, which the first half
    alone seldom sees."""
    normal = torch.randn(n, generator=g, device=dev).sigmoid()
    uniform = torch.rand(n, generator=g, device=dev)
    return torch.where(torch.rand(n, generator=g, device=dev) < 0.5, uniform, normal)


class EMA:
    """Exponential moving average of the weights; short at first, `decay` in the long run."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.weights = {k: v.detach().float().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        torch._foreach_lerp_(list(self.weights.values()), [state[k].float() for k in self.weights], 1 - d)


class Run:
    """One resumable training run in a folder: `state.safetensors` holds weights, EMA, Adam moments and step."""

    def __init__(self, a: argparse.Namespace, module: nn.Module, optimizer: torch.optim.Optimizer, ema_decay: float):
        folder, steps, until = a.out, a.steps, a.until
        self.folder, self.module, self.optimizer = folder, module, optimizer
        folder.mkdir(parents=True, exist_ok=True)
        self.params = [p for g in optimizer.param_groups for p in g["params"]]
        self.ema = EMA(module, ema_decay)
        self.step = 0
        self.file = folder / "state.safetensors"
        self.steps = steps
        self.stop = min(steps, until) if until is not None else steps
        if self.file.exists():
            self._load()
        self._saved = time.monotonic()

    def _load(self) -> None:
        state = load_file(self.file)
        part = lambda p: {k[len(p) :]: v for k, v in state.items() if k.startswith(p)}  # noqa: E731
        self.module.load_state_dict(part("model."))
        self.ema.weights = {k: v.to(self.ema.weights[k].device) for k, v in part("ema.").items()}
        self.step = int(state["step"])
        for i, p in enumerate(self.params):
            if f"m.{i}" in state:
                self.optimizer.state[p] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": state[f"m.{i}"].to(p.device),
                    "exp_avg_sq": state[f"v.{i}"].to(p.device),
                }
        print(f"resumed {self.folder} at step {self.step}", flush=True)

    def save(self) -> None:
        state: dict[str, Tensor] = {"step": torch.tensor(self.step)}
        state |= {"model." + k: v for k, v in self.module.state_dict().items()}
        state |= {"ema." + k: v for k, v in self.ema.weights.items()}
        for i, p in enumerate(self.params):
            if p in self.optimizer.state:
                state[f"m.{i}"] = self.optimizer.state[p]["exp_avg"]
                state[f"v.{i}"] = self.optimizer.state[p]["exp_avg_sq"]
        part = self.file.with_suffix(".part")
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, part)
        part.replace(self.file)

    def update(self, loss: Tensor, lr: float, clip: float = 1.0) -> float:
        """One optimiser step; saves every two minutes."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.params, clip)
        if torch.isfinite(norm):
            for g in self.optimizer.param_groups:
                g["lr"] = lr
            self.optimizer.step()
        self.step += 1
        self.ema.update(self.module, self.step)
        if time.monotonic() - self._saved > 120:
            self.save()
            self._saved = time.monotonic()
        return float(norm)

    def paused(self) -> bool:
        """Save; True if the run was told to stop before its end, so that nothing is exported."""
        self.save()
        return self.stop < self.steps

    def averaged(self) -> dict[str, Tensor]:
        """The EMA weights in the module's own dtypes."""
        own = self.module.state_dict()
        return {k: v.to(own[k].dtype) for k, v in self.ema.weights.items()}


class Log:
    """Prints the mean of what it was told every `every` steps, with samples per second."""

    def __init__(self, steps: int, batch: int, every: int = 100):
        self.steps, self.batch, self.every = steps, batch, every
        self.sums: dict[str, float] = {}
        self.n, self.start = 0, time.monotonic()

    def __call__(self, step: int, **values: float) -> None:
        self.n += 1
        for k, v in values.items():
            self.sums[k] = self.sums.get(k, 0.0) + float(v)
        if self.n == self.every or step == self.steps:
            speed = self.n * self.batch / (time.monotonic() - self.start)
            means = "  ".join(f"{k} {v / self.n:.4g}" for k, v in self.sums.items())
            print(f"step {step}/{self.steps}  {means}  {speed:.0f}/s", flush=True)
            self.sums, self.n, self.start = {}, 0, time.monotonic()


def adamw(module: nn.Module | Iterable, lr: float, weight_decay: float = 0.01, betas=(0.9, 0.99)):
    params = module.parameters() if isinstance(module, nn.Module) else module
    return torch.optim.AdamW([p for p in params if p.requires_grad], lr=lr, weight_decay=weight_decay, betas=betas)
