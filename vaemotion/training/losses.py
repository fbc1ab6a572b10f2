"""Losses of both stages, all in float32.

Stage 1: ``L1 = L_KD + 0.5 · L_CE(answer)``; stage 2: ``L2 = L_CE + λ_VA · Σ_p ½ Σ_{v,a} (1 − CCC) + λ_NLL + λ_E · KL(raters ‖ ŷ)``.
"""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

MIN_CCC_LABELS = 32  # below this many valid labels a batch's CCC is too noisy to follow: Huber instead


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """``Σ total / Σ count`` over all processes, times what makes the average of the processes' gradients the gradient of that mean.

    total: scalar sum of this process; count: how many terms it has. 0 where no process has any.
    """
    counts = torch.as_tensor(count, dtype=torch.float32, device=total.device)
    if not _distributed():
        return total / counts.clamp_min(1)
    torch.distributed.all_reduce(counts)
    return total * (torch.distributed.get_world_size() / counts.clamp_min(1))


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """``τ² / |M| · Σ_{t∈M} KL( softmax(z_V,t / τ) ‖ softmax(z_A,t / τ) )``, forward KL (Hinton et al. 2015).

    Both (M, vocab): logits at the answer positions only, gathered before the LM head. The teacher gets no gradient.
    """
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return temperature**2 * global_mean(divergence, len(student))


def answer_loss(logits: Tensor, targets: Tensor, ignore: int = -100) -> Tensor:
    """Mean cross-entropy in float32; targets equal to ``ignore`` do not count. logits: (n, classes); targets: (n,)."""
    total = F.cross_entropy(logits.float(), targets, ignore_index=ignore, reduction="sum")
    return global_mean(total, (targets != ignore).sum())


def masked_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the entries that have a target (NaN: none). Equal shapes."""
    known = torch.isfinite(target)
    error = torch.where(known, prediction.float() - target.nan_to_num(), 0.0)
    return global_mean((error**2).sum(), known.sum())


def ccc(prediction: Tensor, target: Tensor) -> Tensor:
    """Concordance correlation coefficient (Lin 1989, Biometrics 45:255) of two (n,) tensors, a scalar in [-1, 1]."""
    prediction, target = prediction.float(), target.float()
    mean_p, mean_t = prediction.mean(), target.mean()
    covariance = ((prediction - mean_p) * (target - mean_t)).mean()
    variances = prediction.var(unbiased=False) + target.var(unbiased=False)
    return 2 * covariance / (variances + (mean_p - mean_t) ** 2 + 1e-8)


def gather_with_gradient(values: Tensor) -> Tensor:
    """(b, ...) of this process → (B, ...) of all, through which gradients flow back; itself when there is one process."""
    if not _distributed():
        return values
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(values)))


def concordance_loss(prediction: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """``½ Σ_{v,a} (1 − CCC)`` over the gathered batch, per source and averaged over sources, never over mixed ones.

    prediction, target: (b, 2) valence and arousal, NaN in the target where there is no label; source: (b,) int. Where
    a source has fewer than ``MIN_CCC_LABELS`` labels of a dimension, Huber's loss takes the place of 1 − CCC.
    """
    prediction, target, source = (gather_with_gradient(t) for t in (prediction, target, source))
    losses: list[Tensor] = []
    for this in source.unique():
        rows = source == this
        for dimension in range(2):
            valid = rows & torch.isfinite(target[:, dimension])
            if not valid.any():
                continue
            predicted, wanted = prediction[valid, dimension], target[valid, dimension]
            enough = len(wanted) >= MIN_CCC_LABELS
            losses.append(1 - ccc(predicted, wanted) if enough else F.huber_loss(predicted, wanted))
    return torch.stack(losses).mean() if losses else prediction.sum() * 0.0


def gaussian_nll(prediction: Tensor, spread: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of Gaussians without the constant; NaN targets are masked. All (b, 2)."""
    valid = torch.isfinite(target)
    error = torch.where(valid, target - prediction, 0.0).float()
    loss = 0.5 * (error / spread.float()) ** 2 + spread.float().log()
    return global_mean(torch.where(valid, loss, 0.0).sum(), valid.sum())


def rater_divergence(logits: Tensor, distribution: Tensor) -> Tensor:
    """Mean ``KL(raters ‖ ŷ)``; rows without a distribution (NaN) are masked. logits, distribution: (b, categories)."""
    valid = torch.isfinite(distribution).all(-1)
    raters = distribution.float().nan_to_num()
    divergence = F.kl_div(logits.float().log_softmax(-1), raters, reduction="none").sum(-1)  # (b,)
    return global_mean(torch.where(valid, divergence, 0.0).sum(), valid.sum())
