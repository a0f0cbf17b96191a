"""`evaluate`: the loss with what perplexity, accuracy and calibration need, from one visit to each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, SupportsFloat, SupportsIndex, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from softxent import _loss
from softxent._inputs import read_logits, result_dtypes, shape_without, taken_as
from softxent._options import MeanCall, Options, RowsCall, SumCall, read_options, with_options

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Loss = TypeVar("Loss", bound=float | np.ndarray, covariant=True, default=float | np.ndarray)
else:
    from typing import TypeVar

    Loss = TypeVar("Loss", covariant=True)  # its default comes with Python 3.13


class Evaluation(NamedTuple, Generic[Loss]):
    """The loss of a batch, and what is known of each row.

    In rows that do not count, since they are ignored or have no weight, `log_prob`, `lse`, `entropy` and `row_weight`
    are 0, `argmax` is -1 and `correct` False.

    Attributes
    ----------
    loss : float or ndarray
        As `cross_entropy` returns it.
    log_prob : ndarray, shape (...)
        The logarithm of the label's probability, in nats; weights, smoothing and z-loss do not change it.
    lse : ndarray, shape (...)
        The logarithm of the sum of the exponentials of the logits, after temperature, softcap and mask.
    argmax : ndarray of int64, shape (...)
        The most probable class, the first of several; -1 if the logit of an allowed class is NaN.
    correct : ndarray of bool, shape (...)
        Whether `argmax` is the label.
    entropy : ndarray, shape (...)
        Of the row's probabilities, in nats.
    row_weight : ndarray of float64, shape (...)
        How much each row counts: its sample weight, or 1.
    """

    loss: Loss
    log_prob: np.ndarray
    lse: np.ndarray
    argmax: np.ndarray
    correct: np.ndarray
    entropy: np.ndarray
    row_weight: np.ndarray

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative `log_prob` of the rows, weighted by `row_weight`; NaN if none counts."""
        with np.errstate(all="ignore"):
            return float(np.exp(-self._mean(self.log_prob)))

    @property
    def accuracy(self) -> float:
        """The share of rows that are `correct`, weighted by `row_weight`; NaN if none counts."""
        return self._mean(self.correct)

    def _mean(self, values: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            # The sum of weights near the largest number would overflow. To divide by a power of two rounds nothing.
            weights = np.ldexp(self.row_weight, -np.frexp(np.abs(self.row_weight).max(initial=0))[1])
            total = weights.sum()
            return float((weights * values).sum() / total) if total != 0 else float("nan")

    def __repr__(self) -> str:
        loss = f"{self.loss:.6g}" if isinstance(self.loss, float) else "one a row"
        return (
            f"<Evaluation: loss={loss}, perplexity={self.perplexity:.6g}, accuracy={self.accuracy:.6g}, "
            f"rows={self.argmax.size}>"
        )

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal, NaN to NaN."""
        return isinstance(other, Evaluation) and all(
            np.array_equal(np.asarray(mine), np.asarray(its), equal_nan=True)
            for mine, its in zip(self, other, strict=True)
        )

    def __ne__(self, other: object) -> bool:
        return not self == other


@overload
def evaluate(logits: ArrayLike, targets: ArrayLike, **call: Unpack[MeanCall]) -> Evaluation[float]: ...
@overload
def evaluate(logits: ArrayLike, targets: ArrayLike, **call: Unpack[SumCall]) -> Evaluation[float]: ...
@overload
def evaluate(logits: ArrayLike, targets: ArrayLike, **call: Unpack[RowsCall]) -> Evaluation[np.ndarray]: ...
@with_options
def evaluate(
    logits: ArrayLike,
    targets: ArrayLike,
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
    targets : array_like, shape (...)
        Class labels, of any integer dtype, in ``[0, C)``.
    axis, reduction, normalizer, n_threads, **options
        As in `cross_entropy`.

    Returns
    -------
    Evaluation
        A named tuple: the loss, and for each row `log_prob`, `lse`, `argmax`, `correct`, `entropy` and `row_weight`,
        arrays of shape (...), the numbers of the dtype that `cross_entropy` returns for ``reduction="none"``. Its
        properties `perplexity` and `accuracy` sum them up.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; and a ValueError if the targets are distributions, in which no class is the right one.

    Notes
    -----
    With :math:`p` the softmax of a row, the entropy is :math:`-\sum_k p_k \log p_k`, computed as
    :math:`\log(1 + R) + \sum_k p_k (m - x_k)` from the largest logit :math:`m` and the sum :math:`R` of the other
    :math:`e^{x_k - m}`; perplexity is :math:`\exp(-\sum_i s_i \log p_{i y_i} / \sum_i s_i)` [1]_.

    References
    ----------
    .. [1] D. Jurafsky and J. H. Martin, *Speech and Language Processing*, section 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> result = sx.evaluate(np.log([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]]), [2, 1])
    >>> result.argmax
    array([2, 0])
    >>> result.log_prob.round(4)
    array([-0.5108, -2.3026])
    >>> round(result.perplexity, 4), result.accuracy
    (4.0825, 0.5)
    """
    x, class_axis = read_logits(logits, axis)
    leading, dtype = shape_without(x.shape, class_axis), result_dtypes(x)[1]
    given = read_options(options) if options else None
    numbers, argmax = np.empty((3, *leading), dtype), np.empty(leading, np.int64)
    loss, _ = _loss.visit(
        x, targets, class_axis, reduction, normalizer, n_threads, given, with_grad=False, diagnostics=(numbers, argmax)
    )
    labels = np.asarray(targets)
    correct = np.asarray(argmax == labels)
    row_weight = np.ones(leading)
    if given is not None:
        if given.sample_weight is not None:
            row_weight[...] = taken_as(given.sample_weight, np.float64)
        if given.ignore_index is not None:
            row_weight[labels == given.ignore_index] = 0
        correct = np.asarray(correct & (row_weight != 0))
    log_prob, lse, entropy = numbers if leading else map(np.asarray, numbers)
    return Evaluation(loss, log_prob, lse, argmax, correct, entropy, row_weight)
