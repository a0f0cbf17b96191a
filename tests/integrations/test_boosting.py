"""What objectives and metrics give, as either library calls them; neither needs to be installed here."""

import copy
import inspect
import os
import pickle
import sys
import tracemalloc
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from data_sets import Labelled
from reference import as_distributions, reference
from support import problem, run_python, sparse

import softxent as sx
from softxent.boosting import LightGBMMetric, LightGBMObjective, XGBoostMetric, XGBoostObjective, log_priors

OBJECTIVES = (XGBoostObjective, LightGBMObjective)
METRICS = (XGBoostMetric, LightGBMMetric)
FACTORS = {"exact": lambda c: 1.0, "xgboost": lambda c: 2.0, "lightgbm": lambda c: c / (c - 1)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight": [0.5, 1.0, 2.0, 3.0, 0.1]},
    {"label_smoothing": 0.2},
    {"temperature": 1.5},
    {"label_smoothing": 0.1, "temperature": 0.7, "weight": [0.5, 1.0, 2.0, 3.0, 0.1]},
    {"where": [True, True, True, False, True]},
    {"ignore_index": 3},
]


@pytest.fixture(autouse=True)
def no_library() -> Iterator[None]:
    """As if XGBoost had not been imported: the shape of what an objective returns depends on its version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "xgboost", raising=False)
        yield


of_objectives = pytest.mark.parametrize("objective", OBJECTIVES)
of_all = pytest.mark.parametrize("made", [*OBJECTIVES, *METRICS])


def expected(scores: np.ndarray, targets: Any, weights: Any, hessian: str, **options: Any) -> tuple[np.ndarray, ...]:
    """Gradient and Hessian in float64, by the formula."""
    x = scores.astype(np.float64)
    _, grad = reference(x, targets, "sum", sample_weight=weights, **options)
    allowed = np.broadcast_to(options.get("where", True), x.shape)
    temperature = options.get("temperature", 1.0)
    z = np.where(allowed, x / temperature, -np.inf)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    t = as_distributions(targets, x.shape)[1]
    smoothing = options.get("label_smoothing", 0.0)
    t = (1 - smoothing) * t + smoothing * t.sum(axis=1, keepdims=True) * allowed / allowed.sum(axis=1, keepdims=True)
    mass = (t * options.get("weight", np.ones(x.shape[1]))).sum(axis=1) * (1 if weights is None else weights)
    if options.get("ignore_index") is not None:
        mass[targets == options["ignore_index"]] = 0
    hess = FACTORS[hessian](x.shape[1]) * mass[:, np.newaxis] * p * (1 - p) / temperature**2
    return grad, np.maximum(hess, 1e-16) if hessian == "xgboost" else hess


def five_classes(kind: str = "labels") -> tuple[np.ndarray, Any]:
    scores, targets = problem((40, 5), "soft" if kind == "pair" else kind)
    if kind == "labels":
        targets = np.where(targets == 3, 4, targets)  # no target where `where` allows none
        targets[:3] = 3
    return scores, sparse((40, 5), 2) if kind == "pair" else targets


@pytest.mark.usefixtures("level")
@of_objectives
@pytest.mark.parametrize("hessian", FACTORS)
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_gradient_and_hessian_by_the_formula(
    objective: Any, hessian: str, options: dict[str, Any], weighted: bool
) -> None:
    scores, labels = five_classes()
    if "where" in options:
        labels = np.where(labels == 3, 0, labels)
    weights = np.linspace(0, 2, 40) if weighted else None
    grad, hess = objective(hessian=hessian, **options)(scores, Labelled(labels, weights))
    weights = None if weights is None else weights.astype(np.float32).astype(np.float64)
    true_grad, true_hess = expected(scores, labels, weights, hessian, **options)
    np.testing.assert_allclose(grad, true_grad, rtol=2e-7, atol=1e-8)
    np.testing.assert_allclose(hess, true_hess, rtol=2e-7, atol=1e-30)


@pytest.mark.usefixtures("level")
@of_objectives
def test_both_interfaces_and_kinds_of_labels_give_the_same(objective: Any) -> None:
    scores, labels = five_classes()
    weights = np.linspace(0.1, 2, 40).astype(np.float32)
    made = objective()
    for order in "CF":
        x = np.array(scores, order=order)
        grad, hess = made(x, Labelled(labels, weights))
        for kind in (np.float32, np.float64, np.int64, np.uint8):
            for got in (made(labels.astype(kind), x, weights), made(labels.astype(kind), x, sample_weight=weights)):
                np.testing.assert_array_equal(got, (grad, hess))
    plain = made(labels, scores, None)
    np.testing.assert_array_equal(made(scores, Labelled(labels, [])), plain)  # as XGBoost says that there are none
    np.testing.assert_array_equal(made(labels, scores), plain)
    assert not np.array_equal(plain[1], hess)


def test_signatures_are_what_the_libraries_count() -> None:
    """LightGBM passes weights only to what takes three arguments; XGBoost looks for the name sample_weight."""
    for made in (*OBJECTIVES, *METRICS):
        parameters = inspect.signature(made()).parameters
        assert list(parameters) == ["y_true", "y_pred", "sample_weight"]
        assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters.values())


def test_the_bound_of_xgboost_comes_after_the_weight() -> None:
    scores = np.array([[0, 0, 0], [0, 0, 0], [60, 0, 0]], np.float32)
    weights = [1, 1e-20, 1]
    _, hess = XGBoostObjective()(scores, Labelled([0, 1, 0], weights))
    floor = np.float32(1e-16)
    np.testing.assert_array_equal(hess[1:], floor)
    _, hess = LightGBMObjective()(scores, Labelled([0, 1, 0], weights))
    assert 0 < hess[1].max() < floor
    assert 0 < hess[2].max() < floor  # and not 0: the digits of a confident row are kept


@pytest.mark.parametrize(
    ("objective", "order", "dtype"), [(XGBoostObjective, "C", "f4"), (LightGBMObjective, "F", "f8")]
)
def test_arrays_come_as_the_library_reads_them(objective: Any, order: Any, dtype: str) -> None:
    """New ones each time, that the library needs not copy, and nothing else of their size."""
    scores = np.zeros((20000, 7), dtype, order)
    data = Labelled(np.zeros(20000))
    made = objective()
    made(scores[:10], Labelled(np.zeros(10)))
    tracemalloc.start()
    grad, hess = made(scores, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for array in (grad, hess):
        assert array.dtype == np.float32
        assert array.flags[f"{order}_CONTIGUOUS"]
        assert np.shares_memory(array.ravel(order=order), array)
    assert not np.shares_memory(grad, hess)
    assert not np.shares_memory(grad, made(scores, data)[0])
    labels = 20000 * (4 + 4 + 1)  # as integers, as floats again, and whether they are whole
    assert peak < grad.nbytes + hess.nbytes + labels + 20000
    assert not scores.any()


@pytest.mark.parametrize("version", ["1.7.6", "2.0.3", "2.1.0", "3.2.0", "4.0.0-dev"])
def test_the_shape_is_that_of_the_version_of_xgboost(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", types.SimpleNamespace(__version__=version))
    scores, labels = five_classes()
    grad, hess = XGBoostObjective()(scores, Labelled(labels))
    if version < "2.1":
        assert grad.shape == hess.shape == (200,)  # row after row
        with pytest.warns(UserWarning, match=r"before 2\.1 passes no weights from XGBClassifier"):
            from_sklearn = XGBoostObjective()(labels, scores)
        np.testing.assert_array_equal(from_sklearn[0], grad)
    monkeypatch.undo()
    plain = XGBoostObjective()(scores, Labelled(labels))
    assert plain[0].shape == (40, 5)
    np.testing.assert_array_equal(grad.reshape(40, 5), plain[0])
    np.testing.assert_array_equal(hess.reshape(40, 5), plain[1])


@pytest.mark.usefixtures("level")
@of_objectives
@pytest.mark.parametrize("kind", ["soft", "pair"])
def test_targets_in_place_of_labels(objective: Any, kind: str) -> None:
    scores, targets = five_classes(kind)
    weights = np.linspace(0.1, 2, 40)
    true = expected(scores, targets, weights.astype(np.float32).astype(float), "exact")
    by_row = objective(hessian="exact", targets=targets)
    for labels in (None, np.full(40, -7.5)):  # which are not used
        got = by_row(scores, Labelled(labels, weights))
        np.testing.assert_allclose(got, true, rtol=2e-7, atol=1e-8)
    by_label = objective(hessian="exact", targets=targets, targets_by="label")
    order = np.random.default_rng(0).permutation(40)[:25]
    got = by_label(scores[order], Labelled(order, weights[order]))
    np.testing.assert_allclose(got, np.take(true, order, axis=1), rtol=2e-7, atol=1e-8)


def test_a_matrix_of_labels_has_distributions() -> None:
    """XGBoost before 3.2 gives it flat."""
    scores, targets = five_classes("soft")
    grad, hess = XGBoostObjective(targets=targets.astype(np.float32))(scores, Labelled(None))
    for labels in (targets, targets.ravel()):
        np.testing.assert_array_equal(XGBoostObjective()(scores, Labelled(labels)), (grad, hess))


def test_one_target_for_each_class() -> None:
    """targets_by="label" with a row for each class: label smoothing by hand."""
    scores, labels = five_classes()
    table = 0.9 * np.eye(5) + 0.1 / 5
    got = LightGBMObjective(targets=table, targets_by="label")(scores, Labelled(labels))
    np.testing.assert_allclose(got, LightGBMObjective(label_smoothing=0.1)(scores, Labelled(labels)), rtol=1e-6)


REFUSALS = [
    ([0, 1.5, 2], {}, ValueError, r"^labels\[1\] = 1\.5 is not a class: expected a whole number$"),
    ([0, 1, np.nan], {}, ValueError, r"^labels\[2\] = nan is not a class: expected a whole number$"),
    ([0, 1, np.inf], {}, ValueError, r"^labels\[2\] = inf is not a class"),
    ([0, 1e30, 1], {}, ValueError, r"^labels\[1\] = 1.*e\+30 is not a class"),
    ([0, 4, 1], {}, ValueError, r"\[1\] = 4 is not a class: expected 0 <= label < 4$"),
    ([0, 1, -1], {}, ValueError, r"\[2\] = -1 is not a class: expected 0 <= label < 4; .* pass ignore_index=-1$"),
    ([0, 1], {}, ValueError, r"^labels must be one for each of the 3 rows, got shape \(2,\)$"),
    (None, {}, ValueError, r"^labels are missing: give \w+ one for each row$"),
    ([0, 1, 2], {"targets": np.ones((2, 4))}, ValueError, r"for each row of the data set, 3, got 2; .*by='label'"),
    ([0, 2, 1], {"targets": np.ones((2, 4)), "targets_by": "label"}, ValueError,
     r"^labels\[1\] = 2 is not the number of a target: expected 0 <= label < 2$"),
    ([0, 0.5, 1], {"targets": np.ones((2, 4)), "targets_by": "label"}, ValueError, r"^labels\[1\] = 0\.5 is not"),
    ([0, 1, 2], {"targets": np.ones(3)}, ValueError, r"^targets must be distributions of shape \(rows, classes\), or"),
    ([0, 1, 2], {"targets": np.ones((3, 5))}, ValueError, r"^targets must be .*for logits of shape \(3, 4\)"),
]  # fmt: skip


@of_all
@pytest.mark.parametrize(("labels", "parameters", "error", "message"), REFUSALS)
def test_labels_and_targets_that_do_not_fit(
    made: Any, labels: Any, parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made(**parameters)(np.zeros((3, 4)), Labelled(labels))


@of_all
def test_scores_and_labels_of_another_kind(made: Any) -> None:
    for shape in ((12,), (12, 1), (3, 4, 1)):
        with pytest.raises(ValueError, match=r"^scores must have the shape \(rows, classes\), .* set num_class"):
            made()(np.zeros(shape), Labelled(np.zeros(12)))
    with pytest.raises(TypeError, match=r"^labels must be whole numbers, got dtype <U3$"):
        made()(np.array(["cat", "dog"]), np.zeros((2, 3)))


@of_all
@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"targets_by": "order"}, ValueError, "^targets_by must be 'row' or 'label', got 'order'$"),
        ({"n_threads": 0}, ValueError, "^n_threads "),
        ({"sample_weight": [1, 2]}, TypeError, "^sample_weight comes with the data set: give it to "),
        ({"label_smoothing": 2}, ValueError, "^label_smoothing "),
        ({"label_smooth": 2}, TypeError, "did you mean 'label_smoothing'"),
    ],
)
def test_parameters_are_refused_at_once(
    made: Any, parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made(**parameters)


def test_parameters_of_one_kind_are_refused_at_once() -> None:
    for objective in OBJECTIVES:
        with pytest.raises(ValueError, match=r"^hessian must be 'exact', 'xgboost', 'lightgbm' or None, got 'upper'$"):
            objective(hessian="upper")
        with pytest.raises(ValueError, match=r"^softcap has no second derivative here"):
            objective(softcap=3)
    for metric in METRICS:
        with pytest.raises(ValueError, match=r"^metric must be 'cross_entropy', 'accuracy', 'error', got 'auc'$"):
            metric("auc")


@of_all
def test_copies_are_equal_and_tell_what_they_are(made: Any) -> None:
    targets = (np.zeros((3, 1), int), np.ones((3, 1)))
    several = [made(), made(label_smoothing=0.1), made(weight=np.ones(3)), made(targets=targets, targets_by="label")]
    several += [made(hessian="exact") if made in OBJECTIVES else made("accuracy"), made(targets=np.ones((3, 3)))]
    for i, one in enumerate(several):
        for other in (copy.deepcopy(one), copy.copy(one), pickle.loads(pickle.dumps(one))):
            assert type(other) is made
            assert other == one
            assert hash(other) == hash(one)
            assert repr(other) == repr(one)
            arguments = np.zeros((3, 3)), Labelled([0, 1, 2])
            np.testing.assert_array_equal(np.array(other(*arguments)[0]), np.array(one(*arguments)[0]))
        assert [one == other for other in several] == [i == j for j in range(len(several))]
        assert one != "something else"
    assert several[0] != next(other() for other in (*OBJECTIVES, *METRICS) if other is not made)
    assert repr(several[0]) == f"{made.__name__}()"
    assert repr(several[1]) == f"{made.__name__}(label_smoothing=0.1)"
    assert repr(several[2]) == f"{made.__name__}(weight=<float64 array of shape (3,)>)"
    shown = "(<int64 array of shape (3, 1)>, <float64 array of shape (3, 1)>)"
    assert repr(several[3]) == f"{made.__name__}(targets={shown}, targets_by='label')"


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("options", OPTIONS[:5], ids=" ".join)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_loss_as_a_metric(options: dict[str, Any], weighted: bool) -> None:
    scores, labels = five_classes()
    weights = np.linspace(0.1, 2, 40) if weighted else None
    data = Labelled(labels, weights)
    loss = reference(scores, labels, sample_weight=data.get_weight(), **options)[0]
    close = pytest.approx(loss, rel=1e-12)
    assert XGBoostMetric(**options)(scores, data) == ("cross_entropy", close)
    assert XGBoostMetric(**options)(labels, scores, sample_weight=data.get_weight()) == close
    assert LightGBMMetric(**options)(scores, data) == ("cross_entropy", close, False)
    assert LightGBMMetric(**options)(labels, scores, data.get_weight()) == ("cross_entropy", close, False)


def test_accuracy_and_error() -> None:
    scores, labels = five_classes()
    weights = np.linspace(0.1, 2, 40).astype(np.float32)
    accuracy = pytest.approx(np.average(scores.argmax(axis=1) == labels, weights=weights.astype(float)))
    error = pytest.approx(1 - accuracy.expected)
    data = Labelled(labels, weights)
    assert XGBoostMetric("accuracy")(scores, data) == ("accuracy", accuracy)
    assert XGBoostMetric("error")(labels, scores, sample_weight=weights) == error
    assert LightGBMMetric("accuracy")(scores, data) == ("accuracy", accuracy, True)
    assert LightGBMMetric("error")(scores, data) == ("error", error, False)
    assert [XGBoostMetric(name).__name__ for name in ("cross_entropy", "error")] == ["cross_entropy", "error"]


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_of_soft_targets(metric: Any) -> None:
    scores, targets = five_classes("soft")
    data = Labelled(None)
    assert metric(targets=targets)(scores, data)[1] == pytest.approx(reference(scores, targets)[0], rel=1e-12)
    right = np.mean(scores.argmax(axis=1) == targets.argmax(axis=1))
    assert metric("accuracy", targets=targets)(scores, data)[1] == right
    indices = np.tile([[2, 4]], (40, 1))
    pair = indices, np.tile([[0.3, 0.7]], (40, 1))
    assert metric(targets=pair)(scores, data)[1] == pytest.approx(reference(scores, pair)[0], rel=1e-12)
    assert metric("accuracy", targets=pair)(scores, data)[1] == np.mean(scores.argmax(axis=1) == 4)
    by_label = metric(targets=targets, targets_by="label")
    assert by_label(scores[30:], Labelled(np.arange(30, 40)))[1] == pytest.approx(
        reference(scores[30:], targets[30:])[0], rel=1e-12
    )


def test_probabilities() -> None:
    scores = problem((6, 4))[0]
    where = [True, True, False, True]
    for made in (*OBJECTIVES, *METRICS):
        np.testing.assert_array_equal(made().probabilities(scores), sx.softmax(scores))
        instance = made(temperature=2, where=where, label_smoothing=0.1, n_threads=1)
        np.testing.assert_array_equal(instance.probabilities(scores), sx.softmax(scores, temperature=2, where=where))


def test_log_priors() -> None:
    labels = np.array([2, 0, 2, 2, 1])
    np.testing.assert_allclose(np.exp(log_priors(labels)), [0.2, 0.2, 0.6])
    np.testing.assert_allclose(np.exp(log_priors(labels.astype(np.float32), 4)), [0.2, 0.2, 0.6, 1e-15])
    for unit in (1.0, 1e-320, 1e308):
        weights = np.array([0.5, 1, 0, 0, 0.5]) * unit
        np.testing.assert_allclose(np.exp(log_priors(labels, sample_weight=weights)), [0.5, 0.25, 0.25], rtol=1e-3)
    for wrong, message in (([], "at least one row"), ([0.5], r"labels\[0\] = 0\.5"), ([0, -1], r"labels\[1\] = -1")):
        with pytest.raises(ValueError, match=message):
            log_priors(wrong)
    with pytest.raises(ValueError, match=r"^labels\[0\] = 2 is not a class: expected 0 <= label < 2$"):
        log_priors(labels, 2)
    # They are the constant scores of the least loss.
    _, grad = sx.value_and_grad(np.tile(log_priors(labels), (5, 1)), labels)
    np.testing.assert_allclose(grad.sum(axis=0), 0, atol=1e-16)


def test_neither_library_is_imported() -> None:
    code = """
import sys
import numpy as np
from softxent.boosting import *
for objective in (XGBoostObjective(), LightGBMObjective()):
    objective(np.array([0, 1]), np.zeros((2, 3)), None)
print({"xgboost", "lightgbm", "sklearn", "pandas"} & set(sys.modules))
"""
    result = run_python(code, dict(os.environ))
    assert (result.stdout, result.stderr) == ("set()\n", "")
