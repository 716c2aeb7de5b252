"""Parity adapter of method `ren`: entropies of given attention, their ROC lines, and the mitigated attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor, nn

from oracle import Case, adapter
from unleak.copies.detect.detect import entropy, late_entropy, summary_entropy
from unleak.core.anatomy import Site
from unleak.core.attention import AttentionCall, Layout
from unleak.core.edits import KeyScale
from unleak.core.rows import Rows
from unleak.core.scores import default_scale
from unleak.engine.execute import execute


@adapter("ren")
def ren(case: Case) -> dict[str, Tensor]:
    params, inputs = case.spec["params"], case.inputs
    out: dict[str, Tensor] = {}
    groups = [name.removeprefix("attention_") for name in sorted(inputs) if name.startswith("attention_")]
    for group in groups:
        attention, lengths = inputs[f"attention_{group}"], inputs[f"prompt_length_{group}"]  # [T,P,layers,H,K], [P]
        summary = torch.arange(attention.shape[-1]) >= lengths[:, None] - 1
        p = attention[:, :, _layers(params["D_layers"])].mean((2, 3))
        out[f"entropy_per_step_{group}"] = entropy(p)
        out[f"summary_entropy_per_step_{group}"] = summary_entropy(p, summary)
        out[f"D_{group}"] = late_entropy(p, summary, params["D_steps"])
        out[f"E_{group}"] = entropy(attention[params["E_step"], :, params["E_layer"]].mean(1))
    for metric in "DE":
        out[f"{metric}_summary_line"] = _summary_line(*(out[f"{metric}_{group}"] for group in groups))
    if "mitigation_query" in inputs:
        q, k, v, mask = (inputs[f"mitigation_{name}"] for name in ("query", "key", "value", "mask"))
        identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)  # values that show the weights
        out["mitigation_output"] = _mitigated(q, k, v, mask, params["mitigation_c1"])
        out["mitigation_weights"] = _mitigated(q, k, identity, mask, params["mitigation_c1"])
    return out


def _layers(which: Any) -> Any:
    return slice(None) if isinstance(which, str) else which


def _summary_line(memorized: Tensor, ordinary: Tensor) -> Tensor:
    """AUROC, and TPR at the ROC point nearest to each false-positive rate (the first of equals)."""
    truth = np.repeat([1, 0], [len(memorized), len(ordinary)])
    scores = torch.cat([memorized, ordinary]).numpy()
    fpr, tpr, _ = roc_curve(truth, scores)
    nearest = [tpr[np.abs(fpr - rate).argmin()] for rate in (0.01, 0.03, 0.05, 0.10)]
    return torch.tensor([roc_auc_score(truth, scores), *nearest], dtype=torch.float64)


def _mitigated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, c1: float) -> Tensor:
    """Masked attention with the BOS logit of the cond rows times c1, as the core executes it."""
    batch = Rows(("uncond", "cond") * (len(q) // 2), tuple(i // 2 for i in range(len(q))))
    call = AttentionCall(
        site=Site("ren", nn.Identity()), q=q, k=k, v=v, mask=mask, scale=default_scale(q, None),
        layout=Layout.cross(q.shape[2], k.shape[2]), grid=None, rows=batch, plain_call=lambda: q,
    )  # fmt: skip

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=call.scale)

    return execute(call, [KeyScale([0], c1, rows="cond")], kernel)
