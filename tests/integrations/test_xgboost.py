"""XGBoost with softxent's objective and metric: models equal to its own, what each version takes, what goes wrong."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import N_CLASSES, DataSet, data_set

from softxent.boosting import XGBoostMetric, XGBoostObjective, log_priors

xgboost = pytest.importorskip("xgboost")
VERSION = tuple(map(int, xgboost.__version__.split(".")[:2]))
ROUNDS = 8
# An intercept of its own, from 3.1 on, and threads, which add up in any order, would make models differ.
SETTINGS: dict[str, Any] = {"base_score": 0.5, "max_depth": 4, "tree_method": "hist", "verbosity": 0}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*softxent does not:UserWarning")
without_weights = pytest.mark.filterwarnings("ignore:XGBoost before 2.1 passes no weights:UserWarning")


def train(data: Any, n_classes: int, objective: Any = None, rounds: int = ROUNDS, **more: Any) -> Any:
    parameters = {"num_class": n_classes, "objective": "multi:softprob", "nthread": 1, **SETTINGS}
    return xgboost.train(parameters, data, rounds, obj=objective, **more)


def classifier(**parameters: Any) -> Any:
    pytest.importorskip("sklearn")
    return xgboost.XGBClassifier(n_estimators=ROUNDS, n_jobs=1, **SETTINGS, **parameters)


def assert_same_model(model: Any, own: Any) -> None:
    """XGBoost's own probabilities are float32: the numbers differ in their last digits."""
    splits = [[line.split(",")[0] for line in tree.splitlines() if "leaf" not in line] for tree in model.get_dump()]
    own_splits = [[line.split(",")[0] for line in tree.splitlines() if "leaf" not in line] for tree in own.get_dump()]
    assert splits == own_splits


def assert_same_margins(margins: np.ndarray, own: np.ndarray) -> None:
    np.testing.assert_allclose(margins, own, rtol=1e-6, atol=1e-6)
    assert np.ptp(own) > 0.5


@pytest.mark.parametrize("n_classes", N_CLASSES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_model_is_the_one_of_its_own_objective(n_classes: int, weighted: bool) -> None:
    x, y, weight = data_set(n_classes)
    data = xgboost.DMatrix(x, y, weight=weight if weighted else None)
    own, model = train(data, n_classes), train(data, n_classes, XGBoostObjective())
    assert_same_model(model, own)
    assert_same_margins(model.predict(data, output_margin=True), own.predict(data, output_margin=True))
    probabilities = XGBoostObjective().probabilities(model.predict(data, output_margin=True))
    np.testing.assert_allclose(model.predict(data), probabilities, rtol=1e-5)


@without_weights
@pytest.mark.parametrize("n_classes", N_CLASSES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_classifier_is_the_one_of_its_own_objective(n_classes: int, weighted: bool) -> None:
    if weighted and VERSION < (2, 1):
        pytest.skip("this version passes no weights to an objective")
    x, y, weight = data_set(n_classes)
    given = {"sample_weight": weight} if weighted else {}
    own = classifier().fit(x, y, **given)
    model = classifier(objective=XGBoostObjective()).fit(x, y, **given)
    assert_same_margins(model.predict(x, output_margin=True), own.predict(x, output_margin=True))
    np.testing.assert_allclose(model.predict_proba(x), own.predict_proba(x), atol=1e-6)
    assert (model.predict(x) == own.predict(x)).mean() > 0.99


def test_versions_without_weights_in_the_classifier_are_warned_of() -> None:
    if VERSION >= (2, 1):
        pytest.skip("this version passes weights to an objective")
    x, y, _ = data_set(3)
    with pytest.warns(UserWarning, match="passes no weights from XGBClassifier"):
        model = classifier(objective=XGBoostObjective()).fit(x, y, sample_weight=np.full(600, 2))
    unweighted = classifier().fit(x, y)
    assert_same_margins(model.predict(x, output_margin=True), unweighted.predict(x, output_margin=True))


class Plain:
    """What people write: float64 in the shape of the scores, without weights."""

    def __init__(self, flat: bool = False, dtype: str = "f8") -> None:
        self.flat, self.dtype = flat, dtype

    def __call__(self, scores: np.ndarray, data: Any) -> tuple[np.ndarray, ...]:
        e = np.exp(scores - scores.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        both = p - np.eye(p.shape[1])[data.get_label().astype(int)], np.maximum(2 * p * (1 - p), 1e-16)
        return tuple(a.ravel().astype(self.dtype) if self.flat else a.astype(self.dtype) for a in both)


def test_what_arrives_and_what_each_version_takes() -> None:
    x, y, _ = data_set(3)
    seen: list[Any] = []

    def spy(scores: np.ndarray, data: Any) -> tuple[np.ndarray, ...]:
        seen.append((scores.dtype, scores.shape, scores.flags.c_contiguous, data.get_label().dtype, data.get_weight()))
        return Plain(flat=VERSION < (2, 1))(scores, data)

    margins = {}
    data = xgboost.DMatrix(x, y)
    train(data, 3, spy, 1)
    dtype, shape, contiguous, labels, weights = seen[0]
    assert (dtype, shape, contiguous, labels, weights.size) == (np.float32, (600, 3), True, np.float32, 0)
    own = train(data, 3).predict(data, output_margin=True)
    flat = VERSION < (2, 1)
    for name, objective in {
        "matrix": Plain(dtype="f4"),
        "flat": Plain(flat=True),
        "half": Plain(flat, dtype="f2"),
    }.items():
        try:
            margins[name] = train(data, 3, objective).predict(data, output_margin=True)
        except xgboost.core.XGBoostError as error:
            margins[name] = error
    right = {name for name, got in margins.items() if isinstance(got, np.ndarray) and np.allclose(got, own, atol=1e-5)}
    assert right == ({"flat"} if flat else {"flat", "matrix"})  # half precision is wrong without an error
    if VERSION < (2, 0):
        assert isinstance(margins["matrix"], Exception)
    elif VERSION < (2, 1):
        assert np.isnan(margins["matrix"]).all()  # without an error
    # XGBoost itself never multiplies them by weights, such as 2 for all.
    doubled = train(xgboost.DMatrix(x, y, weight=np.full(600, 2)), 3, Plain(flat))
    plain = train(data, 3, Plain(flat))
    np.testing.assert_array_equal(doubled.predict(data), plain.predict(data))


def test_what_is_predicted_beside_an_objective() -> None:
    x, y, _ = data_set(3)
    data = xgboost.DMatrix(x, y)
    parameters = {"num_class": 3, "nthread": 1, **SETTINGS}
    model = xgboost.train(parameters, data, ROUNDS, obj=XGBoostObjective())
    np.testing.assert_array_equal(model.predict(data), model.predict(data, output_margin=True).argmax(axis=1))


def test_the_start_of_the_scores() -> None:
    """Its own objective starts elsewhere from 3.1 on; a custom one starts as it is told."""
    x, y, _ = data_set(3)
    data = xgboost.DMatrix(x, y)
    started = {}
    for name, objective in {"own": None, "softxent": XGBoostObjective()}.items():
        parameters = {"num_class": 3, "objective": "multi:softprob", "nthread": 1, "max_depth": 4}
        model = xgboost.train(parameters, data, 1, obj=objective)
        started[name] = model.predict(data, output_margin=True)
    assert np.allclose(started["own"], started["softxent"], atol=1e-6) == (VERSION < (3, 1))
    # The class priors as the start, for any version; they are no part of the model.
    priors = np.tile(log_priors(y), (len(y), 1))
    data = xgboost.DMatrix(x, y, base_margin=priors)
    models = [train(data, 3, objective) for objective in (None, XGBoostObjective())]
    assert_same_margins(*(model.predict(data, output_margin=True) for model in models))
    none = xgboost.DMatrix(x, base_margin=np.zeros_like(priors))
    if VERSION >= (2, 0):
        apart = models[1].predict(data, output_margin=True) - models[1].predict(none, output_margin=True)
        np.testing.assert_allclose(apart, priors, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(VERSION < (3, 1), reason="earlier versions have one base_score for all classes")
def test_priors_as_base_score() -> None:
    x, y, _ = data_set(3)
    data = xgboost.DMatrix(x, y)
    priors = log_priors(y)
    parameters = {"num_class": 3, "nthread": 1, "max_depth": 4, "base_score": [float(prior) for prior in priors]}
    model = xgboost.train(parameters, data, ROUNDS, obj=XGBoostObjective())
    with_margin = xgboost.DMatrix(x, y, base_margin=np.tile(priors, (len(y), 1)))
    expected = train(with_margin, 3, XGBoostObjective()).predict(with_margin, output_margin=True)
    assert_same_margins(model.predict(data, output_margin=True), expected)


def test_soft_targets() -> None:
    """As a matrix of labels, by row and by label: the same model, and that of label smoothing where they are that."""
    x, y, weight = data_set(3)
    targets = (0.8 * np.eye(3) + 0.2 / 3)[y]
    data = xgboost.DMatrix(x, y, weight=weight)
    smoothed = train(data, 3, XGBoostObjective(label_smoothing=0.2)).predict(data, output_margin=True)
    by_row = train(data, 3, XGBoostObjective(targets=targets))
    assert_same_margins(by_row.predict(data, output_margin=True), smoothed)
    numbered = xgboost.DMatrix(x, np.arange(len(y)), weight=weight)
    by_label = train(numbered, 3, XGBoostObjective(targets=targets, targets_by="label"))
    assert_same_margins(by_label.predict(data, output_margin=True), smoothed)
    matrix = xgboost.DMatrix(x, targets, weight=weight)
    model = xgboost.train({"nthread": 1, **SETTINGS}, matrix, ROUNDS, obj=XGBoostObjective())
    assert_same_margins(model.predict(matrix, output_margin=True), smoothed)
    logged: dict[str, Any] = {}
    xgboost.train(
        {"nthread": 1, "disable_default_eval_metric": True, **SETTINGS}, matrix, 2, obj=XGBoostObjective(),
        custom_metric=XGBoostMetric(), evals=[(matrix, "train")], evals_result=logged, verbose_eval=False,
    )  # fmt: skip
    losses = logged["train"]["cross_entropy"]
    assert losses[1] < losses[0] < np.log(3)


def test_a_wrong_label_is_named() -> None:
    x, y, _ = data_set(3)
    wrong = y.astype(float)
    wrong[17] = 1.5
    with pytest.raises(ValueError, match=r"^labels\[17\] = 1\.5 is not a class"):
        train(xgboost.DMatrix(x, wrong), 3, XGBoostObjective())
    with pytest.raises(ValueError, match=r"^scores must have the shape \(rows, classes\), .* set num_class$"):
        xgboost.train({"nthread": 1}, xgboost.DMatrix(x, y), 1, obj=XGBoostObjective())


def parts(n_classes: int) -> tuple[DataSet, DataSet]:
    return data_set(n_classes), data_set(n_classes, 300, seed=2)


def test_the_metric_is_that_of_its_own_objective() -> None:
    (x, y, weight), (other_x, other_y, other_weight) = parts(10)
    data, other = xgboost.DMatrix(x, y, weight=weight), xgboost.DMatrix(other_x, other_y, weight=other_weight)
    logged: list[dict[str, Any]] = [{}, {}, {}]
    for objective, metric, log in (
        (None, None, logged[0]),
        (XGBoostObjective(), XGBoostMetric(), logged[1]),
        (XGBoostObjective(), XGBoostMetric("error"), logged[2]),
    ):
        train(
            data, 10, objective, custom_metric=metric, evals=[(data, "train"), (other, "other")], evals_result=log,
            verbose_eval=False,
        )  # fmt: skip
    own = train_errors(data, other)
    for name in ("train", "other"):
        np.testing.assert_allclose(logged[1][name]["cross_entropy"], logged[0][name]["mlogloss"], rtol=1e-5)
        np.testing.assert_allclose(logged[2][name]["error"], own[name]["merror"], atol=1e-6)


def train_errors(data: Any, other: Any) -> Any:
    log: dict[str, Any] = {}
    parameters = {"num_class": 10, "objective": "multi:softprob", "eval_metric": "merror", "nthread": 1, **SETTINGS}
    evals = [(data, "train"), (other, "other")]
    xgboost.train(parameters, data, ROUNDS, evals=evals, evals_result=log, verbose_eval=False)
    return log


def test_early_stopping() -> None:
    (x, y, _), (other_x, other_y, _) = parts(3)
    data, other = xgboost.DMatrix(x, y), xgboost.DMatrix(other_x, other_y)
    stopped = [
        train(data, 3, objective, 200, custom_metric=metric, evals=[(other, "other")], verbose_eval=False,
              early_stopping_rounds=3)
        for objective, metric in ((None, None), (XGBoostObjective(), XGBoostMetric()))
    ]  # fmt: skip
    assert stopped[0].best_iteration == stopped[1].best_iteration < 190
    # More is better: XGBoost must be told.
    stop = xgboost.callback.EarlyStopping(3, metric_name="accuracy", data_name="other", maximize=True)
    model = train(
        data, 3, XGBoostObjective(), 200, custom_metric=XGBoostMetric("accuracy"), evals=[(other, "other")],
        verbose_eval=False, callbacks=[stop],
    )  # fmt: skip
    assert model.best_score > 0.8
    assert model.num_boosted_rounds() < 200


@without_weights
def test_early_stopping_of_a_classifier() -> None:
    (x, y, _), (other_x, other_y, other_weight) = parts(3)
    weights = {"sample_weight_eval_set": [other_weight]} if VERSION >= (2, 0) else {}  # 1.7 passes none to a metric
    best = []
    for parameters in ({"eval_metric": "mlogloss"}, {"objective": XGBoostObjective(), "eval_metric": XGBoostMetric()}):
        model = classifier(early_stopping_rounds=3, **parameters).set_params(n_estimators=200)
        model.fit(x, y, eval_set=[(other_x, other_y)], verbose=False, **weights)
        best.append((model.best_iteration, pytest.approx(model.best_score, rel=1e-5)))
    assert best[0] == best[1]
    assert "cross_entropy" in model.evals_result()["validation_0"]


def test_training_goes_on() -> None:
    x, y, weight = data_set(10)
    data = xgboost.DMatrix(x, y, weight=weight)
    whole = train(data, 10, XGBoostObjective(), 8)
    half = train(data, 10, XGBoostObjective(), 4)
    model = train(data, 10, XGBoostObjective(), 4, xgb_model=half)
    assert_same_margins(model.predict(data, output_margin=True), whole.predict(data, output_margin=True))


@without_weights
def test_pickle_clone_and_grid_search(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    x, y, _ = data_set(3)
    objective = XGBoostObjective(label_smoothing=0.1)
    model = classifier(objective=objective).fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    assert again.objective == objective
    copied = clone(model)
    assert copied.objective == objective
    assert copied.objective is not objective
    np.testing.assert_array_equal(copied.fit(x, y).predict_proba(x), model.predict_proba(x))
    grid = {"objective": [XGBoostObjective(), objective, XGBoostObjective(hessian="exact")], "max_depth": [2, 3]}
    search = GridSearchCV(classifier(), grid, scoring="neg_log_loss", cv=3).fit(x, y)
    assert search.best_params_["objective"] in grid["objective"]
    assert len(set(search.cv_results_["mean_test_score"])) == 6


def test_on_dask(cluster: Any, on_both_workers: Any) -> None:
    """Objective and metric are pickled, and run in two other processes."""
    dask_xgboost = pytest.importorskip("xgboost.dask")
    x, y, weight = data_set(10)
    parts = [on_both_workers(part) for part in (x, y, weight)]
    data = dask_xgboost.DaskDMatrix(cluster, parts[0], parts[1], weight=parts[2])
    parameters = {"num_class": 10, "objective": "multi:softprob", "nthread": 1, **SETTINGS}
    own = dask_xgboost.train(cluster, parameters, data, ROUNDS)
    model = dask_xgboost.train(
        cluster, parameters, data, ROUNDS, obj=XGBoostObjective(), custom_metric=XGBoostMetric(),
        evals=[(data, "train")], verbose_eval=False,
    )  # fmt: skip
    local = xgboost.DMatrix(x)
    assert_same_margins(*(m["booster"].predict(local, output_margin=True) for m in (model, own)))
    assert model["history"]["train"]["cross_entropy"][-1] < 2
    if VERSION >= (2, 1):
        classifiers = [
            dask_xgboost.DaskXGBClassifier(n_estimators=ROUNDS, n_jobs=1, **SETTINGS, **more)
            for more in ({}, {"objective": XGBoostObjective()})
        ]
        for made in classifiers:
            made.client = cluster
            made.fit(parts[0], parts[1], sample_weight=parts[2])
        assert_same_margins(*(made.get_booster().predict(local, output_margin=True) for made in classifiers[::-1]))
