"""Losses of both stages, all in float32.

Stage 1: ``L1 = L_KD + 0.5 · L_CE(answer)``; stage 2: ``L2 = L_CE + λ_VA · Σ_p ½ Σ_{v,a} (1 − CCC) + λ_NLL + λ_E · KL(raters ‖ ŷ)``.
"""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

MIN_CCC_LABELS = 32  # below this many valid labels a batch's CCC is too noisy to follow: Huber instead


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """``τ² / |M| · Σ_{t∈M} KL( softmax(z_V,t / τ) ‖ softmax(z_A,t / τ) )``, forward KL (Hinton et al. 2015).

    Both (M, vocab): logits at the answer positions only, gathered before the LM head. The teacher gets no gradient.
    """
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def ccc(prediction: Tensor, target: Tensor) -> Tensor:
    """Concordance correlation coefficient (Lin 1989, Biometrics 45:255) of two (n,) tensors, a scalar in [-1, 1]."""
    prediction, target = prediction.float(), target.float()
    mean_p, mean_t = prediction.mean(), target.mean()
    covariance = ((prediction - mean_p) * (target - mean_t)).mean()
    variances = prediction.var(unbiased=False) + target.var(unbiased=False)
    return 2 * covariance / (variances + (mean_p - mean_t) ** 2 + 1e-8)


def gather_with_gradient(values: Tensor) -> Tensor:
    """(b, ...) of this process → (B, ...) of all, through which gradients flow back; itself when there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
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
    return torch.where(valid, loss, 0.0).sum() / valid.sum().clamp_min(1)


def rater_divergence(logits: Tensor, distribution: Tensor) -> Tensor:
    """Mean ``KL(raters ‖ ŷ)``; rows without a distribution (NaN) are masked. logits, distribution: (b, categories)."""
    valid = torch.isfinite(distribution).all(-1)
    if not valid.any():
        return logits.sum() * 0.0
    return F.kl_div(logits[valid].float().log_softmax(-1), distribution[valid].float(), reduction="batchmean")
