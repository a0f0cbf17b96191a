"""`evaluate`: the loss with what perplexity, accuracy and calibration need, from one visit to each row."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, SupportsFloat, SupportsIndex, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from softxent._counting import weigh_rows
from softxent._inputs import Pair, read_array, read_logits
from softxent._loss import visit
from softxent._options import (
    OF_LOGITS,
    OPTIONS,
    Call,
    Given,
    MeanCall,
    Options,
    RowsCall,
    SumCall,
    read_options,
    with_options,
)
from softxent.call._call import NONE_NEEDED, diagnostics_of

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Loss = TypeVar("Loss", bound=float | np.ndarray | None, covariant=True, default=float | np.ndarray | None)
else:
    from typing import TypeVar

    Loss = TypeVar("Loss", covariant=True)  # its default comes with Python 3.13


def in_memory(values: Any) -> bool:
    """Whether these are numbers, not a plan to compute them, as Dask has."""
    return isinstance(values, np.ndarray | np.generic)


class Evaluation(NamedTuple, Generic[Loss]):
    r"""The loss of a batch, and what is known of each row.

    In rows that do not count, since they are ignored or have no weight, `log_prob`, `lse`, `entropy`, `confidence` and
    `row_weight` are 0, `argmax` and `rank` are -1, and `correct` is False.

    Attributes
    ----------
    loss : float or ndarray or None
        As `cross_entropy` returns it; None without targets.
    log_prob : ndarray, shape (...), or None
        The logarithm of the label's probability, in nats; weights, smoothing and z-loss do not change it. For other
        targets :math:`t`, the sum of :math:`t_k \log p_k`. None without targets.
    lse : ndarray, shape (...)
        The logarithm of the sum of the exponentials of the logits, after temperature, softcap and mask.
    argmax : ndarray of int64, shape (...)
        The most probable class, the first of several; -1 if the logit of an allowed class is NaN.
    correct : ndarray of bool, shape (...), or None
        Whether `argmax` is the label; None if the targets are not labels.
    entropy : ndarray, shape (...)
        Of the row's probabilities, in nats.
    row_weight : ndarray of float64, shape (...)
        How much each row counts: its sample weight, or 1.
    confidence : ndarray, shape (...)
        The largest probability: NaN if a logit of an allowed class is NaN, or the largest is infinite.
    rank : ndarray of int64, shape (...), or None
        How many classes are ahead of the label: those with a larger logit, and those before it with the same. -1 if the
        logit of an allowed class is NaN; None if the targets are not labels.
    normalizer : float
        What the mean divides by: the total weight of the rows that count, or what was given.
    reduction : str
        What `loss` is.
    """

    loss: Loss
    log_prob: Any  # an array, unless there are no targets
    lse: np.ndarray
    argmax: np.ndarray
    correct: Any  # an array, if the targets are labels
    entropy: np.ndarray
    row_weight: np.ndarray
    confidence: np.ndarray
    rank: Any  # an array, if the targets are labels
    normalizer: float
    reduction: str

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative `log_prob` of the rows, weighted by `row_weight`; NaN if none counts."""
        with np.errstate(all="ignore"):
            return float(np.exp(-self._mean(self._known("log_prob", "targets"))))

    @property
    def accuracy(self) -> float:
        """The share of rows that are `correct`, weighted by `row_weight`; NaN if none counts."""
        return self._mean(self._known("correct", "class labels"))

    def top_k_accuracy(self, k: SupportsIndex) -> float:
        """The share of rows whose label is among the `k` most probable classes, weighted as in `accuracy`."""
        number = operator.index(k)
        if number < 1:
            raise ValueError(f"k must be positive, got {number}")
        rank = self._known("rank", "class labels")
        return self._mean((rank >= 0) & (rank < number))

    @classmethod
    def merge(cls, results: Iterable[Evaluation[Any]]) -> Evaluation[Any]:
        """The result for the rows of several batches together, in one axis, in their order.

        All must come from calls with the same `reduction` and the same kind of targets. The sum of the losses is that
        of the parts; the mean is that sum divided by the sum of the normalizers.
        """
        parts = list(results)
        if not parts:
            raise ValueError("merge needs at least one result, got none")
        if not all(in_memory(part.lse) for part in parts):
            raise TypeError("merge needs results that are computed: use dask.compute(results)[0]")
        merged: dict[str, Any] = {}
        for name in cls._fields:
            values = [getattr(part, name) for part in parts]
            if any((value is None) != (values[0] is None) for value in values):
                raise ValueError(f"results must come from the same kind of targets: some have no {name}")
            if name == "reduction":
                if len(set(values)) > 1:
                    raise ValueError(f"results must have the same reduction, got {' and '.join(sorted(set(values)))}")
                merged[name] = values[0]
            elif values[0] is None:
                merged[name] = None
            elif name == "normalizer":
                merged[name] = math.fsum(values)
            elif isinstance(values[0], np.ndarray):
                merged[name] = np.concatenate([np.ravel(value) for value in values])
        if "loss" not in merged:
            merged["loss"] = _merged_loss(parts, merged["normalizer"])
        return cls(**merged)

    def _known(self, name: str, needed: str) -> np.ndarray:
        values: np.ndarray | None = getattr(self, name)
        if values is None:
            raise ValueError(f"there is no {name} without {needed}")
        if not in_memory(values):
            raise TypeError(f"{name} is not computed yet: use dask.compute(result)[0]")
        return values

    def _mean(self, values: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            # The sum of weights near the largest number would overflow. To divide by a power of two rounds nothing.
            weights = np.ldexp(self.row_weight, -np.frexp(np.abs(self.row_weight).max(initial=0))[1])
            total = weights.sum()
            return float((weights * values).sum() / total) if total != 0 else float("nan")

    def __repr__(self) -> str:
        if not in_memory(self.lse):
            return f"<Evaluation: not computed yet, rows={self.lse.size}>"
        numbers: list[str] = []
        if self.loss is not None:
            loss = f"{self.loss:.6g}" if isinstance(self.loss, float) else "one a row"
            numbers += [f"loss={loss}", f"perplexity={self.perplexity:.6g}"]
        if self.correct is not None:
            numbers.append(f"accuracy={self.accuracy:.6g}")
        return f"<Evaluation: {', '.join([*numbers, f'rows={self.argmax.size}'])}>"

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal, NaN to NaN."""
        return isinstance(other, Evaluation) and all(
            np.array_equal(mine, its, equal_nan=True)
            if isinstance(mine, float | np.ndarray) and isinstance(its, float | np.ndarray)
            else type(mine) is type(its) and mine == its
            for mine, its in zip(self, other, strict=True)
        )

    def __ne__(self, other: object) -> bool:
        return not self == other


def _merged_loss(parts: list[Evaluation[Any]], normalizer: float) -> float:
    if parts[0].reduction == "sum":
        return math.fsum(part.loss for part in parts)
    if len(parts) == 1:
        return float(parts[0].loss)
    with np.errstate(all="ignore"):
        # A power of two brings the normalizers near 1, so that no product leaves the range.
        unit = -math.frexp(max(abs(part.normalizer) for part in parts))[1]
        total = np.sum([part.loss * np.ldexp(part.normalizer, unit) for part in parts])
        return float(total / np.ldexp(normalizer, unit)) if normalizer else 0.0


@overload
def evaluate(logits: ArrayLike, targets: None = None, **call: Unpack[Call]) -> Evaluation[None]: ...
@overload
def evaluate(logits: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[MeanCall]) -> Evaluation[float]: ...
@overload
def evaluate(logits: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[SumCall]) -> Evaluation[float]: ...
@overload
def evaluate(logits: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[RowsCall]) -> Evaluation[np.ndarray]: ...
@with_options
def evaluate(
    logits: ArrayLike,
    targets: ArrayLike | Pair | None = None,
    *,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> Evaluation:
    r"""Softmax cross-entropy loss with what perplexity, accuracy and calibration need, in one pass.

    Parameters
    ----------
    logits
        As in `cross_entropy`.
    targets : array_like, shape (...) or (..., C), or a pair of arrays, optional
        As in `cross_entropy`. Distributions and pairs take a second and a third pass. Without targets, only options
        that change the logits have a meaning, and `sample_weight`.
    axis, reduction, normalizer, n_threads, **options
        As in `cross_entropy`.

    Returns
    -------
    Evaluation
        A named tuple: the loss, and for each row `log_prob`, `lse`, `argmax`, `correct`, `entropy`, `row_weight`,
        `confidence` and `rank`, arrays of shape (...), the numbers of the dtype that `cross_entropy` returns for
        ``reduction="none"``; and `normalizer`. Its properties `perplexity` and `accuracy` and its method
        `top_k_accuracy` sum them up, and `Evaluation.merge` joins the results of several batches.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    With :math:`p` the softmax of a row, the entropy is :math:`-\sum_k p_k \log p_k`, computed as
    :math:`\log(1 + R) + \sum_k p_k (m - x_k)` from the largest logit :math:`m` and the sum :math:`R` of the other
    :math:`e^{x_k - m}`; perplexity is :math:`\exp(-\sum_i s_i \log p_{i y_i} / \sum_i s_i)` [1]_.

    References
    ----------
    .. [1] Jurafsky and Martin, *Speech and Language Processing*, section 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> result = sx.evaluate(np.log([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]]), [2, 1])
    >>> result.argmax
    array([2, 0])
    >>> result.log_prob.round(4)
    array([-0.5108, -2.3026])
    >>> round(result.perplexity, 4), result.accuracy, result.top_k_accuracy(2)
    (4.0825, 0.5, 1.0)

    Without targets:

    >>> sx.evaluate(np.log([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]])).confidence.round(4)
    array([0.6, 0.8])
    """
    x: Any = logits
    class_axis: Any = axis
    diagnostics: Any = diagnostics_of(x, class_axis)
    if diagnostics is None:
        x, class_axis = read_logits(logits, axis)
        diagnostics = diagnostics_of(x, class_axis)
    given = read_options(options) if options or normalizer is not None else None
    log_prob, lse, entropy, confidence, argmax, rank, correct, row_weight = diagnostics
    loss = None
    has_labels = targets is not None and _are_labels(targets, x.ndim - 1)
    if has_labels:
        loss, _ = visit(x, targets, class_axis, reduction, normalizer, n_threads, given, False, None, diagnostics)
    else:
        log_prob = rank = correct = None
        if targets is None:
            _refuse_loss(given, normalizer)
        of_logits = given and Given({name: value for name, value in given.__dict__.items() if name in OF_LOGITS})
        if targets is not None:
            loss, _ = visit(x, targets, class_axis, reduction, normalizer, n_threads, given, False)
            losses, _ = visit(x, targets, class_axis, "none", None, n_threads, of_logits, False)
            log_prob = np.asarray(np.negative(losses))
        visit(x, NONE_NEEDED, class_axis, "sum", None, n_threads, of_logits, False, None, diagnostics)
    divisor = float(row_weight.size)
    if given is not None:
        divisor = _weigh(row_weight, targets, given, x, class_axis % x.ndim, lse.dtype, has_labels)
        if not has_labels and given.sample_weight is not None:
            for values, nothing in ((log_prob, 0), (lse, 0), (entropy, 0), (confidence, 0), (argmax, -1)):
                if values is not None:
                    np.copyto(values, nothing, where=row_weight == 0)
    fields = (loss, log_prob, lse, argmax, correct, entropy, row_weight, confidence, rank, divisor, reduction)
    return tuple.__new__(Evaluation, fields)  # in half the time of Evaluation(*fields)


def _are_labels(targets: Any, n_axes: int) -> bool:
    """Whether targets are, or are meant to be, class labels: distributions and pairs have more axes than rows have."""
    return not isinstance(targets, tuple) and read_array(targets, "targets").ndim <= n_axes


def _refuse_loss(given: Given | None, normalizer: Any) -> None:
    """Refuse what changes a loss, where there are no targets."""
    for name, value in given.__dict__.items() if given else ():
        if name not in (*OF_LOGITS, "sample_weight") and (
            isinstance(value, np.ndarray) or value != OPTIONS[name].default
        ):
            raise ValueError(f"{name} needs targets")
    if normalizer is not None:
        raise ValueError("normalizer needs targets")


def _weigh(
    weights: np.ndarray, targets: Any, given: Given, x: np.ndarray, class_axis: int, dtype: np.dtype, has_labels: bool
) -> float:
    """Rows that count get their sample weight in place of 1; returns what the mean divides by."""
    share = weights
    if given.sample_weight is not None or given.weight is not None:
        fitted = given.fitted(x, class_axis, dtype)
        weighed = weigh_rows(targets, fitted, weights.shape, class_axis, has_labels)
        weights[...], share = weighed.of_rows, weighed.shares()
    with np.errstate(all="ignore"):
        return float(share.sum()) if given.normalizer is None else given.normalizer
