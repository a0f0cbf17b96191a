"""What an evaluation wants besides the loss, from the same visit to each row."""

from typing import NamedTuple, SupportsFloat, SupportsIndex

import numpy as np
import numpy.typing as npt

from softxent import _loss
from softxent._inputs import (
    ONE,
    ZERO,
    read_ignore_index,
    read_labels,
    read_logits,
    result_dtypes,
    shape_without,
    taken_as,
)


class Evaluation(NamedTuple):
    """The loss of a batch, and what is known of each row.

    In rows that do not count, since they are ignored or have no weight, `log_prob`, `lse`, `entropy` and `row_weight`
    are 0, `argmax` is -1 and `correct` False.

    Attributes
    ----------
    loss : float or ndarray
        As `cross_entropy` returns it.
    log_prob : ndarray, shape (...)
        The logarithm of the label's probability, in nats; neither weights nor smoothing nor z-loss enter it.
    lse : ndarray, shape (...)
        The logarithm of the sum of the exponentials of the logits (of those that the softmax is taken of).
    argmax : ndarray of int64, shape (...)
        The most probable class, the first of several; NaNs are passed over, and -1 stands where there is nothing else.
    correct : ndarray of bool, shape (...)
        Whether that is the label.
    entropy : ndarray, shape (...)
        Of the row's probabilities, in nats.
    row_weight : ndarray of float64, shape (...)
        How much each row counts: its sample weight, or 1.
    """

    loss: float | np.ndarray
    log_prob: np.ndarray
    lse: np.ndarray
    argmax: np.ndarray
    correct: np.ndarray
    entropy: np.ndarray
    row_weight: np.ndarray

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative `log_prob` of the rows, weighted by `row_weight`; NaN if none counts."""
        with np.errstate(over="ignore"):
            return float(np.exp(-self._mean(self.log_prob)))

    @property
    def accuracy(self) -> float:
        """The share of rows that are `correct`, weighted by `row_weight`; NaN if none counts."""
        return self._mean(self.correct)

    def _mean(self, values: np.ndarray) -> float:
        total = float(self.row_weight.sum())
        return float((self.row_weight * values).sum()) / total if total != 0 else float("nan")


def evaluate(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    axis: SupportsIndex = -1,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = ZERO,
    temperature: SupportsFloat = ONE,
    softcap: SupportsFloat | None = None,
    z_loss: SupportsFloat = ZERO,
    where: npt.ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: SupportsFloat | None = None,
    n_threads: SupportsIndex | None = None,
) -> Evaluation:
    r"""Softmax cross-entropy loss with what perplexity, accuracy and calibration need, in one pass.

    Parameters
    ----------
    logits : array_like, shape (..., C)
        Unnormalised log-probabilities, the classes along `axis`, as `cross_entropy` takes them.
    targets : array_like, shape (...)
        Class labels, of any integer dtype, in ``[0, C)``.
    axis : int, default -1
        The axis of the classes. Shapes are given here with C last.
    weight : array_like, shape (C,), optional
        A weight for each class, that its part of the loss is multiplied by.
    sample_weight : array_like, shape (...), optional
        A weight for each row, of any real or bool dtype, that its loss and its gradient are multiplied by. A row of
        weight 0 is passed over like one that `ignore_index` stands for.
    ignore_index : int, optional
        The label of rows that do not count: whatever their logits hold is not used, and their loss and gradient are
        exactly 0. It may be a class, negative or beyond all classes. Only with class labels.
    label_smoothing : float, default 0.0
        The share of each target, in ``[0, 1]``, that is taken from it and given to all allowed classes alike.
    temperature : float, default 1.0
        What the logits are divided by.
    softcap : float, optional
        Logits :math:`x`, divided by the temperature, become ``softcap * tanh(x / softcap)``.
    z_loss : float, default 0.0
        Adds ``z_loss`` times the square of the logarithm of the sum of the exponentials to the loss of each row.
    where : array_like of bool, shape (C,) or (..., C), optional
        Which classes are allowed. Others have no probability, whatever their logits hold, and a gradient of 0.
    reduction, normalizer, n_threads
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
    ignored = None if ignore_index is None else read_ignore_index(ignore_index)
    dtype = result_dtypes(x)[1]
    labels = read_labels(targets, x, class_axis, ignored, dtype)
    leading = shape_without(x.shape, class_axis)
    numbers, argmax = np.empty((3, *leading)), np.empty(leading, np.int64)
    loss = _loss.visit(
        x,
        labels,
        class_axis,
        weight,
        sample_weight,
        ignored,
        label_smoothing,
        temperature,
        softcap,
        z_loss,
        where,
        reduction,
        normalizer,
        n_threads,
        with_grad=False,
        products=(numbers, argmax),
    )[0]
    counts = np.ones(leading, bool) if ignored is None else labels != ignored
    given = 1.0 if sample_weight is None else taken_as(np.asarray(sample_weight), np.float64)
    row_weight = np.where(counts, given, 0.0)
    log_prob, lse, entropy = (np.asarray(each) for each in taken_as(numbers, dtype))
    correct = np.asarray((argmax == labels) & (row_weight != 0))
    return Evaluation(loss, log_prob, lse, argmax, correct, entropy, np.asarray(row_weight))
