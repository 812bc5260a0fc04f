"""CRD: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699).

With v a sample's embedding on one side, m_k the other side's bank rows of the sample itself (k = 0) and of K images of
other classes, and N training images (equation 18, arithmetic from HobbitLong/RepDistiller @b84f547, `crd/`):

    P_k = exp(m_k . v / tau) / Z,   Z = N * mean of exp(m_k . v / tau) over the first batch, constant afterwards
    L = -mean over samples of [ log P_0 / (P_0 + K/N + eps) + sum_k log (K/N) / (P_k + K/N + eps) ]
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.kd import WithKD, kd_beside
from zoo import BadInput, Outputs, shapes

EPSILON = 1e-7  # `eps` of RepDistiller's crd/criterion.py; with N = 50,000 it adds 0.005 to L
UNSET = math.inf  # log Z before the first batch

# Hash rounds (logical shift, odd factor) by width: lowbias32 (C. Wellons, hash-prospector) without its last shift,
# which only moves low bits and so hardly ever the order, and the finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
ROUNDS = {
    torch.int32: ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)),
    torch.int64: ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1)),
}
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's step from one state to the next


def _hash_(x: Tensor) -> Tensor:
    """Scramble every integer in place, one to one; products wrap."""
    for shift, factor in ROUNDS[x.dtype]:
        high = x >> shift
        high &= (1 << torch.iinfo(x.dtype).bits - shift) - 1  # `>>` fills up with the sign
        x ^= high
        x *= factor
    return x


def draw_negatives(labels: Tensor, own: Tensor, count: int, stream: Tensor, draws: Tensor) -> Tensor:
    """Positions (B, count) in `labels` (N,) where the class is not `own` (B,), none twice in a row, in any order.

    At least `count` labels must differ from each own class. Rows, and calls with another `stream` or `draws` (int64
    scalars), are independent. Nothing but a hash of (stream, draws, row, column) is random: a replayed CUDA graph
    draws anew, every device draws the same, and a restart from the two numbers goes on alike.
    """
    rows = torch.arange(len(own), device=labels.device)
    seeds = _hash_(stream + GOLDEN * ((draws << 32) + rows))
    factor, offset = seeds[:, None].view(torch.int32).split(1, dim=1)
    columns = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
    keys = columns * (factor | 1)  # an odd factor, an offset and the hash are one to one: no two keys of a row tie
    keys += offset
    lowest = torch.iinfo(torch.int32).min  # is kept for the own class
    keys = _hash_(keys).clamp_(min=lowest + 1).masked_fill_(labels == own[:, None], lowest)
    return keys.topk(count, dim=1, sorted=False).indices


def log_scores(embedding: Tensor, bank: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """m_k . v / tau, (B, K+1), of embeddings (B, E) and the rows `indices` (B, K+1) of a bank (N, E).

    All N products first, then the choice: choosing first would copy B * (K+1) * E numbers, 537 MB in the usual case.
    """
    return ((embedding / temperature) @ bank.T).gather(1, indices)


def log_normaliser(scores: Tensor, images: int) -> Tensor:
    """log Z from the `log_scores` of a batch."""
    return scores.flatten().logsumexp(dim=0) + math.log(images / scores.numel())


def contrast_loss(scores: Tensor, log_z: Tensor, images: int) -> Tensor:
    """L of the module docstring from `log_scores` (B, K+1), the sample's own first."""
    negatives = scores.shape[1] - 1
    noise = negatives / images
    odds = log_z + math.log(noise + EPSILON) - scores  # log (K/N + eps) / P_k
    own, others = logsigmoid(-odds[:, 0]), logsigmoid(odds[:, 1:]).sum(dim=1)
    return negatives * math.log1p(EPSILON / noise) - (own + others).mean()


def update_(bank: Tensor, embedding: Tensor, indices: Tensor, momentum: float) -> None:
    """m <- momentum * m + (1 - momentum) * v, scaled to length 1, in rows `indices` (B,); of equal ones the last."""
    rows = normalize(momentum * bank[indices] + (1 - momentum) * embedding)
    order = torch.arange(len(indices), device=indices.device)
    last = ((indices[:, None] == indices) * order).amax(dim=1)
    bank.index_copy_(0, indices, rows[last])  # equal indices write equal rows, in whichever order


@register
class CRD(Method):
    """L = w_ce CE + w_crd (L_s + L_t) on embeddings Linear(D, E) of the pooled features, scaled to length 1, trained.

    L_s scores the student's embedding against the teacher's bank, L_t the teacher's against the student's. L_t trains
    the teacher's embedding alone. After scoring, each bank takes in its own side's embeddings.
    RepDistiller and mdistiller: CE 1, CRD 0.8, E 128, K 16384, tau 0.07 (the paper 0.1 on CIFAR), momentum 0.5.
    """

    name = "crd"
    label = "CRD"
    group = "feature"
    row = 3

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        crd_weight: NonNegativeFloat
        """Weight of the two contrastive terms."""
        embedding: PositiveInt
        """Width of the embeddings."""
        negatives: PositiveInt
        """Samples of other classes that each sample is contrasted with."""
        temperature: PositiveFloat
        """tau, which cosines of embeddings are divided by."""
        bank_momentum: Annotated[float, Field(ge=0, lt=1)]
        """Share of a memory's row that stays when it takes in the sample's new embedding."""

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        p, labels = self.params, train_set.labels
        images = len(labels)
        # Labels without storage cannot be counted: at best the classes are even.
        largest = -(-images // train_set.num_classes) if labels.is_meta else int(labels.bincount().max())
        if p.negatives > images - largest:
            raise BadInput(
                f"negatives {p.negatives}: only {images - largest} of {images} training images are outside "
                f"the largest class: set it to {images - largest} or less"
            )
        self.student_embedding = nn.Linear(shapes(student).pooled, p.embedding)
        self.teacher_embedding = nn.Linear(shapes(teacher).pooled, p.embedding)
        bound = math.sqrt(3 / p.embedding)  # rows of length about 1
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", torch.empty(images, p.embedding).uniform_(-bound, bound))
            self.register_buffer(f"{side}_log_z", torch.tensor(UNSET))
        self.register_buffer("labels", labels.to(torch.int32), persistent=False)
        self.register_buffer("stream", torch.randint(2**63 - 1, (), dtype=torch.int64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        with torch.autocast(student.pooled.device.type, enabled=False):
            v_s = _embed(self.student_embedding, student.pooled)
            v_t = _embed(self.teacher_embedding, teacher.pooled)
            negatives = draw_negatives(self.labels, self.labels[batch.indices], p.negatives, self.stream, self.draws)
            self.draws += 1
            indices = torch.cat([batch.indices[:, None], negatives], dim=1)
            student_loss = self._contrast(v_s, self.teacher_bank, self.student_log_z, indices)
            teacher_loss = self._contrast(v_t, self.student_bank, self.teacher_log_z, indices)
            with torch.no_grad():
                update_(self.student_bank, v_s, batch.indices, p.bank_momentum)
                update_(self.teacher_bank, v_t, batch.indices, p.bank_momentum)
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "crd_student": p.crd_weight * student_loss,
            "crd_teacher": p.crd_weight * teacher_loss,
            **kd_beside(p, student, teacher),
        }

    def _contrast(self, embedding: Tensor, bank: Tensor, log_z: Tensor, indices: Tensor) -> Tensor:
        """L of one side; sets log Z in the first step.

        The gradient is taken here: a backward pass after this step's update of the bank would come too late for it.
        """
        images = len(bank)
        with torch.enable_grad():
            v = embedding.detach().requires_grad_()
            scores = log_scores(v, bank, indices, self.params.temperature)
            log_z.copy_(torch.where(log_z == UNSET, log_normaliser(scores.detach(), images), log_z))
            loss = contrast_loss(scores, log_z, images)
            (gradient,) = torch.autograd.grad(loss, v)
        return loss.detach() + ((embedding - embedding.detach()) * gradient).sum()  # the second part is zero


def _embed(linear: nn.Linear, pooled: Tensor) -> Tensor:
    """Embeddings (B, E) of length 1, in the precision of the weights."""
    return normalize(linear(pooled.to(linear.weight.dtype)))
