"""LightGBM with softxent's objective and metric: models equal to its own to the bit, what arrives, what goes wrong."""

import pickle
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from data_sets import N_CLASSES, DataSet, data_set

import softxent as sx
from softxent.boosting import LightGBMMetric, LightGBMObjective, XGBoostMetric, log_priors

lightgbm = pytest.importorskip("lightgbm")
VERSION = tuple(map(int, lightgbm.__version__.split(".")[:2]))
ROUNDS = 8
# A start from the class priors, which a custom objective does not have, would make models differ, and so would threads.
SETTINGS: dict[str, Any] = {"boost_from_average": False, "num_leaves": 15, "verbosity": -1, "deterministic": True}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Cannot compute class probabilities",
    "ignore:X does not have valid feature",
    "ignore:The argument 'eval_set' is deprecated",
)
if VERSION < (4, 0):
    pytest.skip("LightGBM before 4.0 is not supported", allow_module_level=True)


def train(data: Any, n_classes: int, objective: Any = "multiclass", rounds: int = ROUNDS, **more: Any) -> Any:
    settings = {**SETTINGS, **more.pop("settings", {})}
    parameters = {"num_class": n_classes, "objective": objective, "num_threads": 1, "metric": "None", **settings}
    return lightgbm.train(parameters, data, rounds, **more)


def classifier(**parameters: Any) -> Any:
    pytest.importorskip("sklearn")
    return lightgbm.LGBMClassifier(**{"n_estimators": ROUNDS, "n_jobs": 1, **SETTINGS, **parameters})


def trees(booster: Any) -> str:
    """The text of all trees, with every digit of their numbers."""
    found = re.search(r"^Tree=0\n.*^end of trees$", booster.model_to_string(), re.DOTALL | re.MULTILINE)
    assert found
    return found[0]


@pytest.mark.parametrize("n_classes", N_CLASSES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_model_is_the_one_of_its_own_objective(n_classes: int, weighted: bool) -> None:
    x, y, weight = data_set(n_classes)
    weight = weight if weighted else None
    own = train(lightgbm.Dataset(x, y, weight=weight), n_classes)
    model = train(lightgbm.Dataset(x, y, weight=weight), n_classes, LightGBMObjective())
    assert trees(model) == trees(own)
    scores = model.predict(x)
    np.testing.assert_array_equal(scores, own.predict(x, raw_score=True))
    assert np.ptp(scores) > 0.5
    np.testing.assert_allclose(LightGBMObjective().probabilities(scores), own.predict(x), rtol=1e-13)


@pytest.mark.parametrize("n_classes", N_CLASSES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_classifier_is_the_one_of_its_own_objective(n_classes: int, weighted: bool) -> None:
    x, y, weight = data_set(n_classes)
    weight = weight if weighted else None
    own = classifier().fit(x, y, sample_weight=weight)
    model = classifier(objective=LightGBMObjective()).fit(x, y, sample_weight=weight)
    assert trees(model.booster_) == trees(own.booster_)
    scores = own.predict(x, raw_score=True)
    for predict in (model.predict, model.predict_proba, partial(model.predict, raw_score=True)):
        np.testing.assert_array_equal(predict(x), scores)  # raw scores from all of them
    balanced = [
        classifier(class_weight="balanced", **more).fit(x, y, sample_weight=weight)
        for more in ({}, {"objective": LightGBMObjective()})
    ]
    assert trees(balanced[0].booster_) == trees(balanced[1].booster_) != trees(own.booster_)


class Plain:
    """What people write: float64, without weights, in a shape and order."""

    def __init__(self, returned: str) -> None:
        self.returned = returned

    def __call__(self, scores: np.ndarray, data: Any) -> tuple[np.ndarray, ...]:
        p, k = sx.softmax(scores), scores.shape[1]
        made = p - np.eye(k)[data.get_label().astype(int)], k / (k - 1) * p * (1 - p)
        if self.returned == "flat C":
            return tuple(array.ravel("C") for array in made)
        if self.returned == "flat F":
            return tuple(array.ravel("F") for array in made)
        return tuple(np.array(array, order=self.returned) for array in made)


def test_what_arrives_and_what_it_takes() -> None:
    x, y, _ = data_set(3)
    seen: list[Any] = []

    def spy(scores: np.ndarray, data: Any) -> tuple[np.ndarray, ...]:
        seen.append((scores.dtype, scores.shape, scores.flags.f_contiguous, data.get_label().dtype, data.get_weight()))
        return Plain("C")(scores, data)

    train(lightgbm.Dataset(x, y), 3, spy, 1)
    assert seen == [(np.float64, (600, 3), True, np.float32, None)]
    own = train(lightgbm.Dataset(x, y), 3).predict(x, raw_score=True)
    for returned in ("C", "F", "flat F", "flat C"):
        scores = train(lightgbm.Dataset(x, y), 3, Plain(returned)).predict(x)
        assert np.allclose(scores, own) == (returned != "flat C")  # which trains rubbish, without an error
    # LightGBM itself never multiplies them by weights.
    doubled = train(lightgbm.Dataset(x, y, weight=np.full(600, 2)), 3, Plain("F"))
    assert trees(doubled) == trees(train(lightgbm.Dataset(x, y), 3, Plain("F")))


def test_how_a_classifier_counts_parameters() -> None:
    """Two mean that no weights arrive, without a word; keywords bound by partial count, too."""
    x, y, weight = data_set(3)
    ours = LightGBMObjective()
    two = classifier(objective=lambda y_true, y_pred: ours(y_true, y_pred)).fit(x, y, sample_weight=weight)
    assert trees(two.booster_) == trees(classifier().fit(x, y).booster_)
    three = classifier(objective=lambda y_true, y_pred, weight: ours(y_true, y_pred, weight))
    assert trees(three.fit(x, y, sample_weight=weight).booster_) == trees(
        classifier().fit(x, y, sample_weight=weight).booster_
    )

    def bound(y_true: Any, y_pred: Any, weight: Any, *, smoothing: float, factor: float) -> Any:
        raise AssertionError

    with pytest.raises(TypeError, match="should have 2, 3 or 4 arguments, got 5"):
        classifier(objective=partial(bound, smoothing=0.1, factor=2)).fit(x, y, sample_weight=weight)


def test_the_start_of_the_scores() -> None:
    """boost_from_average does nothing beside a custom objective; init_score is the same, and no part of the model."""
    x, y, _ = data_set(3)
    from_priors = {"boost_from_average": True}
    own = train(lightgbm.Dataset(x, y), 3, settings=from_priors)
    custom = train(lightgbm.Dataset(x, y), 3, LightGBMObjective(), settings=from_priors)
    assert trees(custom) == trees(train(lightgbm.Dataset(x, y), 3, LightGBMObjective()))
    assert trees(custom) != trees(own)
    priors = log_priors(y)
    start = np.tile(priors, (len(y), 1))
    model = train(lightgbm.Dataset(x, y, init_score=start), 3, LightGBMObjective())
    np.testing.assert_allclose(model.predict(x) + priors, own.predict(x, raw_score=True), rtol=1e-9, atol=1e-9)


def test_soft_targets() -> None:
    x, y, weight = data_set(3)
    targets = (0.8 * np.eye(3) + 0.2 / 3)[y]
    data = partial(lightgbm.Dataset, x, weight=weight)
    smoothed = train(data(label=y), 3, LightGBMObjective(label_smoothing=0.2)).predict(x)
    by_row = train(data(label=y), 3, LightGBMObjective(targets=targets))
    by_label = train(data(label=np.arange(600)), 3, LightGBMObjective(targets=targets, targets_by="label"))
    sparse = np.stack([y, (y + 1) % 3, (y + 2) % 3], axis=1), np.tile([0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3], (600, 1))
    pair = train(data(label=y), 3, LightGBMObjective(targets=sparse))
    for model in (by_row, by_label, pair):
        np.testing.assert_allclose(model.predict(x), smoothed, rtol=1e-5, atol=1e-6)
    assert abs(smoothed - train(data(label=y), 3, LightGBMObjective()).predict(x)).max() > 0.01


def test_folds_with_soft_targets() -> None:
    """By label, each fold finds the targets of its rows; by row that is an error."""
    x, y, _ = data_set(3)
    targets = (0.8 * np.eye(3) + 0.2 / 3)[y]
    parameters = {"num_class": 3, "num_threads": 1, "metric": "None", **SETTINGS}
    folds = [(np.arange(300), np.arange(300, 600)), (np.arange(300, 600), np.arange(300))]

    def logged(label: np.ndarray, **how: Any) -> Any:
        metric = LightGBMMetric(**(how or {"label_smoothing": 0.2}))
        objective = LightGBMObjective(**(how or {"label_smoothing": 0.2}))
        return lightgbm.cv({**parameters, "objective": objective}, lightgbm.Dataset(x, label), 4, folds, feval=metric)

    by_label = logged(np.arange(600), targets=targets, targets_by="label")["valid cross_entropy-mean"]
    np.testing.assert_allclose(by_label, logged(y)["valid cross_entropy-mean"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"for each row of the data set, 300, got 600; .* targets_by='label'"):
        logged(y, targets=targets)


def test_a_wrong_label_is_named() -> None:
    x, y, _ = data_set(3)
    wrong = y.astype(float)
    wrong[17] = 1.5
    with pytest.raises(ValueError, match=r"^labels\[17\] = 1\.5 is not a class"):
        train(lightgbm.Dataset(x, wrong), 3, LightGBMObjective())
    with pytest.raises(
        ValueError, match=r"^scores must have the shape \(rows, classes\), .* use LightGBM 4\.0 or later$"
    ):
        train(lightgbm.Dataset(x, y), 1, LightGBMObjective())


def parts(n_classes: int) -> tuple[DataSet, DataSet]:
    return data_set(n_classes), data_set(n_classes, 300, seed=2)


def logged(objective: Any, metric: Any, name: str, n_classes: int) -> dict[str, Any]:
    """What its own or our metric says, of the training set and of another."""
    (x, y, weight), (other_x, other_y, other_weight) = parts(n_classes)
    data = lightgbm.Dataset(x, y, weight=weight)
    other = data.create_valid(other_x, other_y, weight=other_weight)
    log: dict[str, Any] = {}
    train(
        data, n_classes, objective, settings={"metric": name}, feval=metric, valid_sets=[data, other],
        valid_names=["train", "other"], callbacks=[lightgbm.record_evaluation(log)],
    )  # fmt: skip
    return log


def test_the_metric_is_that_of_its_own_objective() -> None:
    """Its own metric, beside a custom objective, takes raw scores for probabilities."""
    own = logged("multiclass", None, "multi_logloss", 10)
    ours = logged(LightGBMObjective(), LightGBMMetric(), "multi_logloss", 10)
    for name in ("train", "other"):
        np.testing.assert_allclose(ours[name]["cross_entropy"], own[name]["multi_logloss"], rtol=1e-12)
        assert abs(ours[name]["multi_logloss"][-1] - own[name]["multi_logloss"][-1]) > 0.3
    own, ours = (
        logged("multiclass", None, "multi_error", 10),
        logged(LightGBMObjective(), LightGBMMetric("error"), "None", 10),
    )
    np.testing.assert_allclose(ours["other"]["error"], own["other"]["multi_error"], atol=1e-7)


def test_early_stopping() -> None:
    (x, y, _), (other_x, other_y, _) = parts(3)
    best = []
    for objective, name, metric in (
        ("multiclass", "multi_logloss", None),
        (LightGBMObjective(), "None", LightGBMMetric()),
        (LightGBMObjective(), "None", LightGBMMetric("accuracy")),
    ):
        data = lightgbm.Dataset(x, y)
        model = train(
            data, 3, objective, 200, settings={"metric": name}, feval=metric,
            valid_sets=[data.create_valid(other_x, other_y)], callbacks=[lightgbm.early_stopping(3, verbose=False)],
        )  # fmt: skip
        best.append((model.best_iteration, model.best_score["valid_0"]))
    assert best[0][0] == best[1][0] < 190
    assert best[1][1]["cross_entropy"] == pytest.approx(best[0][1]["multi_logloss"], rel=1e-12)
    assert 0.8 < best[2][1]["accuracy"] <= 1


def test_early_stopping_of_a_classifier() -> None:
    (x, y, _), (other_x, other_y, other_weight) = parts(3)
    best = []
    for parameters, metric in (
        ({}, "multi_logloss"),
        ({"objective": LightGBMObjective(), "metric": "None"}, LightGBMMetric()),
    ):
        model = classifier(n_estimators=200, **parameters)
        model.fit(
            x, y, eval_set=[(other_x, other_y)], eval_sample_weight=[other_weight], eval_metric=metric,
            callbacks=[lightgbm.early_stopping(3, verbose=False)],
        )  # fmt: skip
        best.append((model.best_iteration_, *model.best_score_["valid_0"].values()))
    assert best[0][0] == best[1][0] < 190
    assert best[1] == pytest.approx(best[0], rel=1e-12)
    assert list(model.evals_result_["valid_0"]) == ["cross_entropy"]


def test_training_goes_on() -> None:
    x, y, weight = data_set(10)
    data = partial(lightgbm.Dataset, x, y, weight=weight, free_raw_data=False)
    models = []
    for objective in ("multiclass", LightGBMObjective()):
        half = train(data(), 10, objective, 4)
        models.append(train(data(), 10, objective, 4, init_model=half))
    np.testing.assert_array_equal(models[1].predict(x), models[0].predict(x, raw_score=True))
    assert models[1].num_trees() == 80


def test_pickle_clone_and_grid_search() -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GridSearchCV

    x, y, _ = data_set(3)
    objective = LightGBMObjective(label_smoothing=0.1)
    model = classifier(objective=objective).fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert again.objective == objective
    copied = clone(model)
    assert copied.objective == objective
    assert copied.objective is not objective
    assert trees(copied.fit(x, y).booster_) == trees(model.booster_)
    # predict returns raw scores: the metric for XGBoost, which returns one number, is a score of them.
    scorer = make_scorer(XGBoostMetric(), greater_is_better=False)
    grid = {"objective": [LightGBMObjective(), objective, LightGBMObjective(hessian="exact")], "num_leaves": [4, 8]}
    search = GridSearchCV(classifier(), grid, scoring=scorer, cv=3).fit(x, y)
    assert search.best_params_["objective"] in grid["objective"]
    assert len(set(search.cv_results_["mean_test_score"])) == 6
    own = GridSearchCV(classifier(), {"num_leaves": [4, 8]}, scoring="neg_log_loss", cv=3).fit(x, y)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"][::3], own.cv_results_["mean_test_score"], rtol=1e-9
    )


@pytest.mark.filterwarnings("ignore")
def test_on_dask(cluster: Any, on_both_workers: Any) -> None:
    """The objective is pickled, and runs in two other processes."""
    x, y, weight = data_set(10)
    chunks = [on_both_workers(part) for part in (x, y, weight)]
    made = []
    for more in ({}, {"objective": LightGBMObjective()}):
        model = lightgbm.DaskLGBMClassifier(client=cluster, n_estimators=ROUNDS, n_jobs=1, **SETTINGS, **more)
        model.fit(chunks[0], chunks[1], sample_weight=chunks[2])
        made.append(model)
    assert trees(made[0].booster_) == trees(made[1].booster_)
    np.testing.assert_array_equal(made[1].booster_.predict(x), made[0].booster_.predict(x, raw_score=True))
