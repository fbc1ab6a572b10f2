"""Losses of both stages, all in float32.

Stage 1: ``L1 = L_KD + 0.5 · L_CE(answer)``.
Stage 2: ``L2 = L_CE + λ_VA · Σ_p ½ Σ_{v,a} (1 − CCC) + λ_NLL + λ_E · KL(raters ‖ ŷ) + λ_S · L_sign``.
Sizes in the shapes: M answer tokens, b rows of this process, B rows of all processes, E emotions.
"""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

MIN_CCC_LABELS = 32  # with fewer valid labels a batch's CCC is too noisy; Huber's loss replaces it


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """Compute ``Σ total / Σ count`` over all processes, scaled by their number; 0 for no terms at all.

    total: scalar sum of this process; count: number of its terms. With that scale the average of the
    processes' gradients is the gradient of the mean.
    """
    counts = torch.as_tensor(count, dtype=torch.float32, device=total.device)  # scalar
    if not _distributed():
        return total / counts.clamp_min(1)
    torch.distributed.all_reduce(counts)
    return total * (torch.distributed.get_world_size() / counts.clamp_min(1))


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Compute ``τ² / |M| · Σ_{t∈M} KL( softmax(z_V,t / τ) ‖ softmax(z_A,t / τ) )``, a scalar.

    Both logits (M, vocab) stand at the answer positions alone, gathered before the LM head. The teacher
    gets no gradient. The factor τ² keeps the size of the gradient independent of the temperature. Source:
    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network"; forward KL.
    """
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)  # (M, vocab)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)  # (M, vocab)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)  # scalar, KL(teacher ‖ student)
    return temperature**2 * global_mean(divergence, len(student))


def token_discrepancy(audio: Tensor, visual: Tensor, paired: Tensor) -> Tensor:
    """Compute the mean squared MMD between audio and visual tokens of each pair, a scalar.

    audio: (B, N_a, D), visual: (B, N_v, D), paired: (B,) bool, the pairs that count. Gaussian kernels at
    five bandwidths around the mean squared distance. The visual tokens get no gradient. Source: Gretton et
    al. 2012, "A Kernel Two-Sample Test", eq. 5; for audio and image tokens: "An Eye for an Ear", NeurIPS
    2024.
    """
    tokens = torch.cat([audio.float(), visual.detach().float()], dim=1)  # (B, N, D)
    squares = torch.cdist(tokens, tokens).square()  # (B, N, N)
    mean = squares.detach().mean(dim=(1, 2), keepdim=True).clamp_min(1e-6)  # (B, 1, 1)
    kernel = torch.stack([torch.exp(-squares / (mean * scale)) for scale in (0.25, 0.5, 1, 2, 4)]).sum(0)
    n = audio.shape[1]
    within_audio, within_visual = kernel[:, :n, :n].mean((1, 2)), kernel[:, n:, n:].mean((1, 2))  # (B,) each
    across = kernel[:, :n, n:].mean((1, 2))  # (B,)
    discrepancy = torch.where(paired, within_audio + within_visual - 2 * across, 0.0)
    return global_mean(discrepancy.sum(), paired.sum())


def answer_loss(logits: Tensor, targets: Tensor, ignore: int = -100) -> Tensor:
    """Compute the mean cross-entropy, a scalar; targets equal to ``ignore`` do not count.

    logits: (n, classes); targets: (n,).
    """
    total = F.cross_entropy(logits.float(), targets, ignore_index=ignore, reduction="sum")  # scalar
    return global_mean(total, (targets != ignore).sum())


def masked_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error over the entries that have a target, a scalar.

    Both have the same shape; NaN in the target marks an entry without one.
    """
    known = torch.isfinite(target)
    error = torch.where(known, prediction.float() - target.nan_to_num(), 0.0)
    return global_mean((error**2).sum(), known.sum())


def ccc(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the concordance correlation coefficient of two (n,) tensors, a scalar in [-1, 1].

    Source: Lin 1989, Biometrics 45:255.
    """
    prediction, target = prediction.float(), target.float()  # (n,)
    mean_p, mean_t = prediction.mean(), target.mean()
    covariance = ((prediction - mean_p) * (target - mean_t)).mean()
    variances = prediction.var(unbiased=False) + target.var(unbiased=False)
    return 2 * covariance / (variances + (mean_p - mean_t) ** 2 + 1e-8)


def gather_with_gradient(values: Tensor) -> Tensor:
    """Gather (b, ...) of each process into (B, ...) of all, through which gradients flow back.

    With one process, return ``values``.
    """
    if not _distributed():
        return values
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(values)))


def concordance_loss(prediction: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Compute ``½ Σ_{v,a} (1 − CCC)`` over the gathered batch, a scalar: the mean over its sources.

    Each source is compared with itself alone: differences between sources would count as agreement.
    prediction, target: (b, 2) valence and arousal, NaN in the target where there is no label.
    source: (b,) int. Where a source has fewer than ``MIN_CCC_LABELS`` labels of a dimension, Huber's loss
    replaces 1 − CCC.
    """
    prediction, target, source = (gather_with_gradient(t) for t in (prediction, target, source))  # (B, ...)
    losses: list[Tensor] = []
    for this in source.unique():
        rows = source == this  # (B,) bool
        for dimension in range(2):
            valid = rows & torch.isfinite(target[:, dimension])  # (B,) bool
            if not valid.any():
                continue
            predicted, wanted = prediction[valid, dimension], target[valid, dimension]  # (n,)
            enough = len(wanted) >= MIN_CCC_LABELS
            losses.append(1 - ccc(predicted, wanted) if enough else F.huber_loss(predicted, wanted))
    return torch.stack(losses).mean() if losses else prediction.sum() * 0.0


def gaussian_nll(prediction: Tensor, spread: Tensor, target: Tensor) -> Tensor:
    """Compute the mean negative log-likelihood of Gaussians without its constant, a scalar.

    All (b, 2); NaN targets are masked.
    """
    valid = torch.isfinite(target)  # (b, 2)
    error = torch.where(valid, target - prediction, 0.0).float()
    loss = 0.5 * (error / spread.float()) ** 2 + spread.float().log()  # (b, 2)
    return global_mean(torch.where(valid, loss, 0.0).sum(), valid.sum())


def sign_loss(prediction: Tensor, spread: Tensor, sign: Tensor) -> Tensor:
    """Compute the mean of ``log(1 + exp(−1.702 · s · ŷ / σ))`` over labels that are only a sign, a scalar.

    All (b, 2); ``sign`` is -1, 1 or NaN. This is the negative log-likelihood of the sign of a Gaussian
    N(ŷ, σ): its distribution function is the logistic one of 1.702 · ŷ / σ within 0.01 (Bowling et al. 2009,
    J. Ind. Eng. Manag. 2:114). So it is measured as ``gaussian_nll`` is, says nothing more once ŷ is
    two σ on its side, and costs at most in proportion to the error where a rater was wrong, where the exact
    one costs its square. σ gets no gradient: a sign does not say how far off ŷ is.
    """
    valid = torch.isfinite(sign)  # (b, 2)
    margin = sign.nan_to_num().float() * prediction.float() / spread.detach().float()  # (b, 2)
    return global_mean(torch.where(valid, F.softplus(-1.702 * margin), 0.0).sum(), valid.sum())


def rater_divergence(logits: Tensor, distribution: Tensor) -> Tensor:
    """Compute the mean ``KL(raters ‖ ŷ)``, a scalar; rows without a distribution (NaN) are masked.

    logits, distribution: (b, E).
    """
    valid = torch.isfinite(distribution).all(-1)  # (b,)
    raters = distribution.float().nan_to_num()  # (b, E)
    divergence = F.kl_div(logits.float().log_softmax(-1), raters, reduction="none").sum(-1)  # (b,)
    return global_mean(torch.where(valid, divergence, 0.0).sum(), valid.sum())
