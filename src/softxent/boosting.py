"""Objectives and metrics for XGBoost and LightGBM, for their own and for their scikit-learn interface.

The library calls an instance once a round, with raw scores of shape (rows, classes), which are the logits, and with the
data set or its labels. What each version passes and takes differs: docs/boosting.md has it in tables. Neither library
is imported here.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, SupportsIndex, Unpack

import numpy as np
from numpy.typing import ArrayLike

from softxent import _threads
from softxent._counting import scaled_weights
from softxent._evaluation import evaluate
from softxent._inputs import Pair, is_real, read_array
from softxent._loss import cross_entropy
from softxent._options import Options, read_options, with_options
from softxent._second_order import value_grad_and_hess
from softxent._softmax import softmax

__all__ = ["LightGBMMetric", "LightGBMObjective", "XGBoostMetric", "XGBoostObjective", "log_priors"]

Targets = ArrayLike | Pair


class Hessian(NamedTuple):
    """What is made of the diagonal of the Hessian, p (1 - p) for a label, once weights are applied."""

    factor: Callable[[int], float]  # of the number of classes
    floor: float = 0.0  # no entry is smaller


HESSIANS = {
    "exact": Hessian(lambda n_classes: 1.0),
    "xgboost": Hessian(lambda n_classes: 2.0, 1e-16),
    "lightgbm": Hessian(lambda n_classes: n_classes / (n_classes - 1)),
}
HIGHER_IS_BETTER = {"cross_entropy": False, "accuracy": True, "error": False}  # by metric
LEAST_PRIOR = 1e-15  # of a class that no row has: LightGBM's own bound


class Batch(NamedTuple):
    """What a library passes, as softxent's functions take it."""

    scores: np.ndarray
    targets: Any
    sample_weight: Any


class OfScores:
    """What objectives and metrics share: their parameters, and how they read what a library passes."""

    library: ClassVar[str]

    def __init__(self, targets: Any, targets_by: str, n_threads: Any, options: Options) -> None:
        if targets_by not in ("row", "label"):
            raise ValueError(f"targets_by must be 'row' or 'label', got {targets_by!r}")
        if n_threads is not None:
            _threads.checked(n_threads, "n_threads")
        if "sample_weight" in options:
            raise TypeError(f"sample_weight comes with the data set: give it to {self.library}, not to the objective")
        read_options(dict(options))  # for its errors
        self.targets, self.targets_by, self.n_threads, self.options = targets, targets_by, n_threads, options

    def _parameters(self) -> dict[str, Any]:
        """Those that are not as by default."""
        own = {name: value for name, value in vars(self).items() if name != "options"}
        return {name: value for name, value in own.items() if not _same(value, DEFAULTS[name])} | dict(self.options)

    def __repr__(self) -> str:
        shown = (f"{name}={_shown(value)}" for name, value in self._parameters().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        ours, theirs = self._parameters(), other._parameters()
        return ours.keys() == theirs.keys() and all(_same(ours[name], theirs[name]) for name in ours)

    def __hash__(self) -> int:
        return hash(type(self))  # arrays have no hash

    def probabilities(self, scores: ArrayLike) -> np.ndarray:
        """Class probabilities from raw scores, with the `temperature` and `where` of this instance.

        Parameters
        ----------
        scores : array_like, shape (N, C)
            What the model predicts: from XGBoost with ``output_margin=True``, from LightGBM with ``raw_score=True``.
            Add the ``init_score`` to what LightGBM predicts, which leaves that out.

        Returns
        -------
        ndarray, shape (N, C)
            Of the dtype of the scores.
        """
        options: Any = {name: value for name, value in self.options.items() if name in ("temperature", "where")}
        return softmax(scores, n_threads=self.n_threads, **options)

    def _call(self, batch: Batch) -> Any:
        """The keyword arguments of softxent's functions."""
        return {"sample_weight": batch.sample_weight, "n_threads": self.n_threads, **self.options}

    def _read(self, first: Any, second: Any, sample_weight: Any) -> Batch:
        """Of (scores, data set), or of (labels, scores, weights)."""
        if hasattr(second, "get_label"):
            scores, labels, sample_weight = first, second.get_label(), second.get_weight()
        else:
            labels, scores = first, second
        x = read_array(scores, "scores")
        if x.ndim != 2 or x.shape[1] < 2:
            raise ValueError(
                f"scores must have the shape (rows, classes), with at least two classes, got {x.shape}: set num_class"
                f"{', and use LightGBM 4.0 or later' if self.library == 'LightGBM' else ''}"
            )
        if sample_weight is not None and np.size(sample_weight) == 0:  # what XGBoost says if there are none
            sample_weight = None
        return Batch(x, self._read_targets(labels, *x.shape), sample_weight)

    def _read_targets(self, labels: Any, n_rows: int, n_classes: int) -> Any:
        """The targets of these rows, in their order."""
        if self.targets is not None and self.targets_by == "row":
            return _rows_of(self.targets, n_rows)
        if labels is None:
            raise ValueError(f"labels are missing: give {self.library} one for each row")
        values = read_array(labels, "labels")
        if self.targets is not None:
            return _looked_up(self.targets, _whole(values, n_rows))
        if values.size == n_rows * n_classes:
            return values.reshape(n_rows, n_classes)
        return _whole(values, n_rows)


def _whole(labels: np.ndarray, n_rows: int) -> np.ndarray:
    """Labels as integers: both libraries keep them as float32."""
    if labels.size != n_rows:
        raise ValueError(f"labels must be one for each of the {n_rows} rows, got shape {labels.shape}")
    labels = labels.reshape(n_rows)
    if labels.dtype.kind in "iu":
        return labels
    if not is_real(labels.dtype):
        raise TypeError(f"labels must be whole numbers, got dtype {labels.dtype}")
    with np.errstate(all="ignore"):
        whole = labels.astype(np.int32)
        # Compared as they came, which is fast, and finds what is too large.
        wrong = whole.astype(labels.dtype) != labels
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"labels[{row}] = {labels[row]} is not a class: expected a whole number")
    return whole


def _rows_of(targets: Any, n_rows: int) -> Any:
    """Targets as they are, if there is one for each row."""
    found = len(_parts(targets)[0])
    if found != n_rows:
        raise ValueError(
            f"targets must have a row for each row of the data set, {n_rows}, got {found}; for several data sets, "
            "folds or partitions, pass targets_by='label', and as the label of a row the number of its target"
        )
    return targets


def _looked_up(targets: Any, numbers: np.ndarray) -> Any:
    """The targets of these numbers."""
    parts = _parts(targets)
    _check_range(numbers, len(parts[0]), "the number of a target")
    found = tuple(part[numbers] for part in parts)
    return found if isinstance(targets, tuple) else found[0]


def _check_range(labels: np.ndarray, n: int, meaning: str) -> None:
    if labels.size and not (labels.min() >= 0 and labels.max() < n):
        row = int(np.argmax((labels < 0) | (labels >= n)))
        raise ValueError(f"labels[{row}] = {labels[row]} is not {meaning}: expected 0 <= label < {n}")


def _parts(targets: Any) -> tuple[np.ndarray, ...]:
    """The array of the distributions, or those of a pair."""
    parts = targets if isinstance(targets, tuple) else (targets,)
    arrays = tuple(read_array(part, "targets") for part in parts)
    if any(array.ndim != 2 for array in arrays):
        raise ValueError(
            "targets must be distributions of shape (rows, classes), or a pair (indices, probs) of arrays of shape "
            f"(rows, entries), got shape {' and '.join(str(array.shape) for array in arrays)}"
        )
    return arrays


def _most_probable(targets: Any) -> np.ndarray:
    """Labels: as they are, or the class that has most of a target."""
    if isinstance(targets, tuple):
        indices, probs = (read_array(part, "targets") for part in targets)
        return np.take_along_axis(indices, probs.argmax(axis=1)[:, np.newaxis], axis=1)[:, 0]
    array = read_array(targets, "targets")
    return array if array.ndim == 1 else array.argmax(axis=1)


def _same(a: Any, b: Any) -> bool:
    """Whether two parameters are equal, arrays in each of their elements."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"<{value.dtype} array of shape {value.shape}>" if isinstance(value, np.ndarray) else repr(value)


class Objective(OfScores):
    """What both objectives share: the Hessian, and one call of softxent."""

    own_hessian: ClassVar[str]
    order: ClassVar[Literal["C", "F"]]

    @with_options
    def __init__(
        self,
        *,
        hessian: Literal["exact", "xgboost", "lightgbm"] | None = None,
        targets: Targets | None = None,
        targets_by: Literal["row", "label"] = "row",
        n_threads: SupportsIndex | None = None,
        **options: Unpack[Options],
    ) -> None:
        if hessian is not None and hessian not in HESSIANS:
            raise ValueError(f"hessian must be {', '.join(map(repr, HESSIANS))} or None, got {hessian!r}")
        if options.get("softcap") is not None:
            raise ValueError("softcap has no second derivative here: leave it out")
        self.hessian = hessian
        super().__init__(targets, targets_by, n_threads, options)

    def _grad_and_hess(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """New arrays of float32, in the order that the library reads."""
        kind = HESSIANS[self.hessian or self.own_hessian]
        grad, hess = (np.empty(batch.scores.shape, np.float32, self.order) for _ in range(2))
        factor = kind.factor(batch.scores.shape[1])
        value_grad_and_hess(
            batch.scores, batch.targets, reduction="sum", hess_factor=factor, out=(grad, hess), **self._call(batch)
        )
        if kind.floor:
            np.maximum(hess, np.float32(kind.floor), out=hess)
        return grad, hess


class XGBoostObjective(Objective):
    r"""Softmax cross-entropy as an objective for XGBoost, from 1.7 on.

    One instance serves ``xgboost.train(..., obj=)``, the scikit-learn interface (``XGBClassifier(objective=)``) and
    both on Dask. It can be pickled, copied and cloned.

    Parameters
    ----------
    hessian : {"exact", "xgboost", "lightgbm"}, optional
        The second derivatives that trees are grown from. "exact" is the diagonal of the Hessian, :math:`p (1 - p)` for
        a label. "xgboost" is twice that and at least 1e-16, "lightgbm" is :math:`C / (C - 1)` times that, as their own
        objectives have it. By default as the library has it.
    targets : array_like, shape (M, C), or a pair of arrays of shape (M, K), optional
        Soft or sparse targets, as `softxent.cross_entropy` takes them, in place of the labels.
    targets_by : {"row", "label"}, default "row"
        Which target a row has. "row": row i of the data set has target i; M is its number of rows, and its labels are
        not used. "label": the label of a row is the number of its target. Then one table serves several data sets,
        their folds and their partitions.
    n_threads : int, optional
        How many threads a call may use; see `softxent.set_num_threads`.
    **options
        See `softxent.Options`. Not `sample_weight`, which comes with the data set, and not `softcap`, which has no
        second derivative here.

    See Also
    --------
    XGBoostMetric : the loss as a metric.
    log_priors : scores to start from.

    Notes
    -----
    Without `targets`, labels are classes, or a matrix of shape (N, C) with a distribution for each row, without
    ``num_class``. Gradient and Hessian are multiplied by the weights of the rows. XGBoost predicts probabilities if
    ``"objective": "multi:softprob"`` is in the parameters, else the most probable class; XGBClassifier sets it itself.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.boosting import XGBoostObjective
    >>> objective = XGBoostObjective(label_smoothing=0.1)
    >>> objective
    XGBoostObjective(label_smoothing=0.1)
    >>> grad, hess = objective(np.array([2, 0]), np.zeros((2, 3), np.float32))    # as XGBClassifier calls it
    >>> print(grad.round(4))
    [[ 0.3  0.3 -0.6]
     [-0.6  0.3  0.3]]

    >>> import xgboost                                                           # doctest: +SKIP
    >>> params = {"num_class": 3, "objective": "multi:softprob"}                 # doctest: +SKIP
    >>> xgboost.train(params, xgboost.DMatrix(x, y), obj=objective)              # doctest: +SKIP
    >>> xgboost.XGBClassifier(objective=objective).fit(x, y)                     # doctest: +SKIP
    """

    library = "XGBoost"
    own_hessian = "xgboost"
    order = "C"

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As XGBoost calls it: of (labels, scores, weights), or of (scores, data set).

        Returns
        -------
        grad, hess : ndarray of float32
            Of shape (N, C); for XGBoost before 2.1 of shape (N * C,).

        Raises
        ------
        TypeError, ValueError
            A label is not a class, or the shapes do not fit.

        Warns
        -----
        UserWarning
            XGBoost before 2.1 calls from its scikit-learn interface, where it leaves out weights.
        """
        is_older = _xgboost_version() < (2, 1)
        if is_older and sample_weight is None and not hasattr(y_pred, "get_label"):
            warnings.warn(
                "XGBoost before 2.1 passes no weights from XGBClassifier to an objective: if fit was given some, they "
                "are not used. Call xgboost.train, or use XGBoost 2.1",
                stacklevel=2,
            )
        grad, hess = self._grad_and_hess(self._read(y_true, y_pred, sample_weight))
        return (grad.ravel(), hess.ravel()) if is_older else (grad, hess)


def _xgboost_version() -> tuple[int, ...]:
    """Of the XGBoost that was imported; if there is none, as if it were new."""
    version = getattr(sys.modules.get("xgboost"), "__version__", "99.0")
    return tuple(map(int, version.split(".")[:2]))


class LightGBMObjective(Objective):
    r"""Softmax cross-entropy as an objective for LightGBM, from 4.0 on.

    One instance serves ``lightgbm.train({"objective": ...}, ...)``, the scikit-learn interface
    (``LGBMClassifier(objective=)``) and both on Dask. It can be pickled, copied and cloned.

    Parameters
    ----------
    hessian, targets, targets_by, n_threads, **options
        As in `XGBoostObjective`. LightGBM takes no matrix of labels.

    See Also
    --------
    LightGBMMetric : the loss as a metric.
    log_priors : scores to start from.

    Notes
    -----
    LightGBM predicts raw scores, from ``predict_proba`` too: see `probabilities`. Its own metrics take raw scores for
    probabilities: pass ``metric="None"``, and `LightGBMMetric`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.boosting import LightGBMObjective
    >>> objective = LightGBMObjective(hessian="exact")
    >>> grad, hess = objective(np.array([2, 0]), np.zeros((2, 3)), None)    # as LGBMClassifier calls it
    >>> print(hess.round(4), hess.dtype, hess.flags.f_contiguous)
    [[0.2222 0.2222 0.2222]
     [0.2222 0.2222 0.2222]] float32 True

    >>> import lightgbm                                                          # doctest: +SKIP
    >>> lightgbm.train({"num_class": 3, "objective": objective}, lightgbm.Dataset(x, y))    # doctest: +SKIP
    >>> lightgbm.LGBMClassifier(objective=objective).fit(x, y)                   # doctest: +SKIP
    """

    library = "LightGBM"
    own_hessian = "lightgbm"
    order = "F"

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As LightGBM calls it: of (labels, scores, weights), or of (scores, data set).

        Returns
        -------
        grad, hess : ndarray of float32, shape (N, C)
            In Fortran order.

        Raises
        ------
        TypeError, ValueError
            A label is not a class, or the shapes do not fit.
        """
        return self._grad_and_hess(self._read(y_true, y_pred, sample_weight))


class Metric(OfScores):
    """What both metrics share: what is measured."""

    @with_options
    def __init__(
        self,
        metric: Literal["cross_entropy", "accuracy", "error"] = "cross_entropy",
        *,
        targets: Targets | None = None,
        targets_by: Literal["row", "label"] = "row",
        n_threads: SupportsIndex | None = None,
        **options: Unpack[Options],
    ) -> None:
        if metric not in HIGHER_IS_BETTER:
            raise ValueError(f"metric must be {', '.join(map(repr, HIGHER_IS_BETTER))}, got {metric!r}")
        self.metric = metric
        super().__init__(targets, targets_by, n_threads, options)

    @property
    def __name__(self) -> str:
        """What XGBoost calls the metric in its scikit-learn interface."""
        return self.metric

    def _measured(self, batch: Batch) -> float:
        call = self._call(batch)
        if self.metric == "cross_entropy":
            return float(cross_entropy(batch.scores, batch.targets, **call))
        accuracy = float(evaluate(batch.scores, _most_probable(batch.targets), **call).accuracy)
        return accuracy if self.metric == "accuracy" else 1 - accuracy


class XGBoostMetric(Metric):
    """Mean loss, accuracy or share of errors of raw scores, as a metric for XGBoost.

    For ``xgboost.train(..., custom_metric=)``, ``XGBClassifier(eval_metric=)`` and early stopping, beside an
    `XGBoostObjective`: with an objective of its own XGBoost passes probabilities, not raw scores.

    Parameters
    ----------
    metric : {"cross_entropy", "accuracy", "error"}, default "cross_entropy"
        What is measured, and its name in the results. Rows are weighted by the weights of the data set. "error" is
        1 - accuracy. XGBoost's early stopping takes less for better, unless it is told ``maximize=True``.
    targets, targets_by, n_threads, **options
        As in `XGBoostObjective`. For accuracy, the label of a soft target is its most probable class.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.boosting import XGBoostMetric
    >>> metric = XGBoostMetric("accuracy")
    >>> metric(np.array([2, 0]), np.array([[0.0, 1, 2], [0, 1, 2]]))    # as XGBClassifier calls it
    0.5
    """

    library = "XGBoost"

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None) -> float | tuple[str, float]:
        """As XGBoost calls it: of (labels, scores, weights), or of (scores, data set).

        Returns
        -------
        value : float
            For the scikit-learn interface; else a tuple of the name and the value.
        """
        value = self._measured(self._read(y_true, y_pred, sample_weight))
        return (self.metric, value) if hasattr(y_pred, "get_label") else value


class LightGBMMetric(Metric):
    """Mean loss, accuracy or share of errors of raw scores, as a metric for LightGBM.

    For ``lightgbm.train(..., feval=)``, ``LGBMClassifier.fit(eval_metric=)`` and early stopping, beside a
    `LightGBMObjective`: with an objective of its own LightGBM passes probabilities, not raw scores.

    Parameters
    ----------
    metric, targets, targets_by, n_threads, **options
        As in `XGBoostMetric`. LightGBM is told whether more is better.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.boosting import LightGBMMetric
    >>> metric = LightGBMMetric("accuracy")
    >>> metric(np.array([2, 0]), np.array([[0.0, 1, 2], [0, 1, 2]]), None)    # as LGBMClassifier calls it
    ('accuracy', 0.5, True)
    """

    library = "LightGBM"

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None) -> tuple[str, float, bool]:
        """As LightGBM calls it: of (labels, scores, weights), or of (scores, data set).

        Returns
        -------
        name : str
        value : float
        is_higher_better : bool
        """
        value = self._measured(self._read(y_true, y_pred, sample_weight))
        return self.metric, value, HIGHER_IS_BETTER[self.metric]


def log_priors(
    labels: ArrayLike, n_classes: SupportsIndex | None = None, *, sample_weight: ArrayLike | None = None
) -> np.ndarray:
    """Logarithms of the shares of the classes: the scores that have the least loss before there is a tree.

    Custom objectives start from other scores. For LightGBM pass ``init_score=np.tile(log_priors(y), (len(y), 1))`` with
    the data set, and add it to predictions again. For XGBoost pass ``base_margin`` likewise, to the data that is
    predicted, too; from 3.1 on ``base_score`` takes one number for each class.

    Parameters
    ----------
    labels : array_like, shape (N,)
        Class labels, integers or whole floats.
    n_classes : int, optional
        By default the largest label and one.
    sample_weight : array_like, shape (N,), optional
        A weight for each row, as the data set has it.

    Returns
    -------
    ndarray of float64, shape (C,)
        The share of a class counts as 1e-15 at least.

    Raises
    ------
    ValueError
        There are no rows, or a label is not a class.

    Examples
    --------
    >>> from softxent.boosting import log_priors
    >>> log_priors([0, 1, 1, 1]).round(4)
    array([-1.3863, -0.2877])
    """
    values = read_array(labels, "labels")
    classes = _whole(values, values.size)
    if classes.size == 0:
        raise ValueError("labels must have at least one row, got none")
    n = int(classes.max()) + 1 if n_classes is None else int(n_classes)
    _check_range(classes, n, "a class")
    weights = None
    if sample_weight is not None:  # their sum may be out of range
        weights = np.asarray(sample_weight, np.float64)
        weights = scaled_weights(weights, weights.shape, -math.frexp(np.abs(weights).max(initial=0))[1])
    counts = np.bincount(classes, weights, n)
    logs: np.ndarray = np.log(np.maximum(counts / counts.sum(), LEAST_PRIOR))
    return logs


# Every parameter but the options, with its default.
DEFAULTS = {"hessian": None, "metric": "cross_entropy", "targets": None, "targets_by": "row", "n_threads": None}
