"""Loss and gradient are those of PyTorch, optax and scikit-learn wherever these define the same; and where they differ.

The peers need not be there. Differences are as of PyTorch 2.13, optax 0.2.8 and scikit-learn 1.9.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support import FLOATS, REDUCTIONS, one_hot, optioned, problem, to_axis

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

SHAPES = [(7,), (6, 5), (4, 3, 6), (2, 5, 3, 4), (2, 3, 2, 3, 4), (9, 300)]
TOLERANCE = 1e-13


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def jax() -> Iterator[ModuleType]:
    """Computing in float64 when asked to."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        yield jax


@pytest.fixture(scope="module")
def losses_of_optax(jax: ModuleType) -> ModuleType:
    return pytest.importorskip("optax").losses


@pytest.fixture(scope="module")
def multinomial() -> Any:
    """The class of scikit-learn's loss for several classes: private, and what its models are fitted with."""
    return pytest.importorskip("sklearn._loss").HalfMultinomialLoss


def assert_alike(actual: tuple[Any, np.ndarray], loss: Any, grad: Any) -> None:
    """To within a few roundings of numbers around 1."""
    np.testing.assert_allclose(actual[0], np.asarray(loss), rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(actual[1], np.asarray(grad), rtol=0, atol=TOLERANCE)


# PyTorch


def by_torch(
    torch: ModuleType,
    logits: np.ndarray,
    targets: np.ndarray,
    reduction: str = "mean",
    *,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    where: np.ndarray | None = None,
) -> tuple[Any, np.ndarray]:
    """Loss and gradient, classes along axis 1, or 0 of one example. What it has no argument for is put together."""
    x, t = torch.tensor(logits, requires_grad=True), torch.tensor(targets)
    class_axis = min(1, x.ndim - 1)
    w = None if weight is None else torch.tensor(weight)
    z = x / temperature
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    if where is not None:
        z = z.masked_fill(~torch.tensor(where), -torch.inf)
    loss = torch.nn.functional.cross_entropy(
        z, t, weight=w, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    if z_loss:
        square = z_loss * z.logsumexp(class_axis) ** 2
        denominator = torch.tensor(1.0 if reduction != "mean" else float(square.numel()))
        if t.ndim < x.ndim:
            counted = t != ignore_index
            square = square * counted
            if reduction == "mean":
                denominator = (counted if w is None else w[t.clamp(0)] * counted).sum()
        loss = loss + (square if reduction == "none" else square.sum()) / denominator
    loss.sum().backward()
    return loss.detach().numpy(), x.grad.numpy()


TORCH_OPTIONS = {
    "labels": [
        (),
        ("weight",),
        ("ignore_index",),
        ("label_smoothing",),
        ("temperature",),
        ("softcap",),
        ("z_loss",),
        ("where",),
        ("where by row", "weight"),
        ("weight", "ignore_index", "label_smoothing"),
        ("weight", "ignore_index", "label_smoothing", "temperature", "softcap", "z_loss"),
        ("weight", "ignore_index", "temperature", "softcap", "z_loss", "where"),
    ],
    "soft": [
        (),
        ("weight",),
        ("label_smoothing",),
        ("z_loss", "softcap"),
        ("label_smoothing", "temperature", "softcap", "z_loss"),
        ("weight", "label_smoothing", "temperature", "softcap", "z_loss"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "names"),
    [(kind, names) for kind in TORCH_OPTIONS for names in TORCH_OPTIONS[kind]],
    ids=lambda value: value if isinstance(value, str) else " + ".join(value) or "nothing",
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch(torch: ModuleType, shape: tuple[int, ...], kind: str, names: tuple[str, ...]) -> None:
    logits, targets, options = optioned(shape, kind, names)
    del options["axis"]
    class_axis = min(1, len(shape) - 1)
    x, t = to_axis(class_axis, logits, targets)
    moved = {**options}
    if "where" in options:
        moved["where"], _ = to_axis(class_axis, np.broadcast_to(options["where"], shape), np.int8(0))
    for reduction in REDUCTIONS:
        loss, grad = by_torch(torch, x, t, reduction, **moved)
        if reduction == "mean" and kind == "soft" and "weight" in names:
            # Its mean is then another one: see below.
            moved["normalizer"] = options["normalizer"] = logits.size // shape[-1]
        assert_alike(sx.value_and_grad(x, t, axis=class_axis, reduction=reduction, **moved), loss, grad)
        grad = np.moveaxis(grad, class_axis, -1)
        assert_alike(sx.value_and_grad(logits, targets, reduction=reduction, **options), loss, grad)
        moved.pop("normalizer", None), options.pop("normalizer", None)


def test_torch_in_float32(torch: ModuleType) -> None:
    names = ("weight", "ignore_index", "label_smoothing", "temperature", "softcap", "z_loss")
    logits, labels, options = optioned((50, 30), "labels", names, "float32")
    del options["axis"]
    loss, grad = by_torch(torch, logits, labels, **options)
    ours, our_grad = sx.value_and_grad(logits, labels, **options)
    assert ours == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(our_grad, grad, rtol=0, atol=1e-7)


def test_torch_divides_weighted_distributions_by_the_rows(torch: ModuleType) -> None:
    """So that labels and the same one-hot rows differ; here the mean is a weighted one for either."""
    logits, labels, options = optioned((6, 5), "labels", ("weight",))
    hot, weight = one_hot(labels, 5).astype(float), options["weight"]
    by_label, by_row = (by_torch(torch, logits, targets, weight=weight)[0] for targets in (labels, hot))
    assert by_row == pytest.approx(by_label * weight[labels].sum() / 6)
    for targets in (labels, hot):
        assert sx.cross_entropy(logits, targets, weight=weight) == pytest.approx(float(by_label), rel=1e-13)


@pytest.mark.parametrize("nothing", ["ignored", "no rows", "no weight"])
def test_torch_divides_by_nothing(torch: ModuleType, nothing: str) -> None:
    """One batch of padding would then spoil a running sum, or a whole model; 0 is what it adds to either."""
    logits, labels = problem((4, 3))
    options: dict[str, Any] = {}
    if nothing == "ignored":
        labels[:] = -100
        options["ignore_index"] = -100
    elif nothing == "no rows":
        logits, labels = logits[:0], labels[:0]
    else:
        options["weight"] = np.zeros(3)
    loss, _ = by_torch(torch, logits, labels, **options)
    assert np.isnan(loss)
    loss, grad = sx.value_and_grad(logits, labels, **options)
    assert loss == 0.0
    assert not grad.any()


def test_torch_multiplies_nothing_by_infinity(torch: ModuleType) -> None:
    """A class without target costs nothing, however improbable: the limit of t log p for p to 0, at t = 0."""
    logits = np.array([[0.0, -np.inf, 1.0]])
    targets = np.array([[0.25, 0.0, 0.75]])
    loss, _ = by_torch(torch, logits, targets)
    assert np.isnan(loss)
    loss, grad = sx.value_and_grad(logits, targets)
    assert_alike((loss, grad[:, [0, 2]]), *sx.value_and_grad(logits[:, [0, 2]], targets[:, [0, 2]]))
    assert grad[0, 1] == 0


def test_torch_smooths_over_classes_that_are_masked(torch: ModuleType) -> None:
    """Which makes every loss infinite; `where` says that the smoothing shall leave them out."""
    logits, labels, options = optioned((6, 5), "labels", ("where", "label_smoothing"))
    del options["axis"]
    moved = {**options, "where": np.broadcast_to(options["where"], (6, 5))}
    assert by_torch(torch, logits, labels, **moved)[0] == np.inf
    kept = np.flatnonzero(options["where"])
    renamed = np.searchsorted(kept, labels)
    loss, grad = by_torch(torch, logits[:, kept], renamed, label_smoothing=options["label_smoothing"])
    ours, our_grad = sx.value_and_grad(logits, labels, **options)
    assert_alike((ours, our_grad[:, kept]), loss, grad)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_torch_looks_at_ignored_rows(torch: ModuleType, bad: float) -> None:
    """Padding may hold anything; its gradient is 0."""
    logits, labels = problem((4, 3))
    labels[2] = -100
    logits[2] = bad
    loss, grad = by_torch(torch, logits, labels)
    assert np.isnan(grad[2]).all()
    ours, our_grad = sx.value_and_grad(logits, labels, ignore_index=-100)
    assert ours == pytest.approx(float(loss))
    assert not our_grad[2].any()


def test_torch_ignores_minus_100_unasked(torch: ModuleType) -> None:
    """A label that is no class is a mistake until somebody says otherwise."""
    logits, labels = problem((4, 3))
    labels[2] = -100
    assert np.isfinite(by_torch(torch, logits, labels)[0])
    with pytest.raises(ValueError, match=r"targets\[2\] = -100 is not a class"):
        sx.cross_entropy(logits, labels)


def test_torch_takes_a_smoothing_that_is_no_number(torch: ModuleType) -> None:
    """NaN is neither in [0, 1] nor anybody's intention."""
    logits, labels = problem((4, 3))
    assert np.isfinite(by_torch(torch, logits, labels, label_smoothing=np.nan)[0])
    with pytest.raises(ValueError, match="label_smoothing"):
        sx.cross_entropy(logits, labels, label_smoothing=np.nan)


@pytest.mark.parametrize("options", [{}, {"weight": np.array([2.0, 1, 1])}, {"temperature": 0.5}], ids=str)
def test_torch_loses_the_digits_of_confident_rows(torch: ModuleType, options: dict[str, Any]) -> None:
    """It subtracts the logit from a log-sum-exp that is rounded already."""
    logits, labels = np.array([[50.0, 0, -1]]), np.array([0])
    loss, grad = by_torch(torch, logits, labels, **options)
    assert loss == 0
    assert grad[0, 0] == 0
    loss, grad = sx.value_and_grad(logits, labels, **options)
    scale = 1 / options.get("temperature", 1)
    rest = np.exp(-50 * scale) + np.exp(-51 * scale)
    assert loss == pytest.approx(rest, rel=1e-13)
    assert grad[0, 0] == pytest.approx(-rest * scale, rel=1e-13)


# optax


def by_optax(jax: ModuleType, function: Any, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a function of optax gives for each row, and the gradient of their sum."""

    def both(x: Any) -> tuple[Any, Any]:
        losses, pull_back = jax.vjp(function, x)
        return losses, pull_back(jax.numpy.ones_like(losses))[0]

    losses, grad = jax.jit(both)(logits)
    return np.asarray(losses), np.asarray(grad)


@pytest.mark.parametrize("names", [(), ("where",), ("where by row",)], ids=lambda names: "".join(names) or "nothing")
@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 6), 0), ((4, 3, 6), 1), ((2, 3, 6), -1), ((3, 300), -1)], ids=str)
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_optax(
    jax: ModuleType, losses_of_optax: Any, kind: str, shape: tuple[int, ...], axis: int, names: tuple[str, ...]
) -> None:
    logits, targets, options = optioned(shape, kind, names, axis=axis)
    of_optax: dict[str, Any] = {"axis": axis}
    if names:
        where = options["where"]
        of_optax["where"] = where if where.ndim > 1 else np.moveaxis(np.broadcast_to(where, shape), -1, axis)
    name = "softmax_cross_entropy" if kind == "soft" else "softmax_cross_entropy_with_integer_labels"
    losses, grad = by_optax(jax, lambda x: getattr(losses_of_optax, name)(x, targets, **of_optax), logits)
    assert_alike(sx.value_and_grad(logits, targets, reduction="none", **options), losses, grad)
    assert_alike(sx.value_and_grad(logits, targets, **options), losses.mean(), grad / losses.size)


@pytest.mark.parametrize("names", [("label_smoothing",), ("label_smoothing", "where")], ids=" + ".join)
@pytest.mark.parametrize("kind", ["labels as rows", "soft"])
def test_optax_smooths_over_classes_that_are_allowed(
    jax: ModuleType, losses_of_optax: Any, kind: str, names: tuple[str, ...]
) -> None:
    logits, targets, options = optioned((9, 7), "soft" if kind == "soft" else "labels", names)
    targets = targets if kind == "soft" else one_hot(targets, 7)
    # It takes distributions to sum to one. What is smoothed here is what they have.
    targets = targets / targets.sum(axis=-1, keepdims=True)
    of_optax = {"where": np.broadcast_to(options["where"], (9, 7))} if "where" in options else {}

    def losses(x: Any) -> Any:
        smooth = losses_of_optax.smooth_labels(jax.numpy.asarray(targets), options["label_smoothing"], **of_optax)
        return losses_of_optax.softmax_cross_entropy(x, smooth, **of_optax)

    assert_alike(sx.value_and_grad(logits, targets, reduction="none", **options), *by_optax(jax, losses, logits))


@pytest.mark.parametrize("kind", ["one-hot", "soft"])
def test_optax_of_minus_infinity(jax: ModuleType, losses_of_optax: Any, kind: str) -> None:
    """Its safe function agrees. Its other one multiplies 0 by infinity."""
    logits, targets = problem((9, 7), kind)
    logits[::2, 3] = -np.inf
    targets = np.where(np.isneginf(logits), 0, targets)
    expected = by_optax(jax, lambda x: losses_of_optax.safe_softmax_cross_entropy(x, targets), logits)
    assert_alike(sx.value_and_grad(logits, targets, reduction="none"), *expected)
    assert np.isnan(losses_of_optax.softmax_cross_entropy(logits, targets)).any()


def test_optax_takes_a_label_that_is_masked(jax: ModuleType, losses_of_optax: Any) -> None:
    """It subtracts the logit of the class that is not there. That class has probability 0, and an infinite loss."""
    logits, labels = problem((4, 3))
    where = np.ones((4, 3), bool)
    where[1, labels[1]] = False
    theirs = losses_of_optax.softmax_cross_entropy_with_integer_labels(logits, labels, where=where)
    assert np.isfinite(theirs).all()
    ours = sx.cross_entropy(logits, labels, where=where, reduction="none")
    np.testing.assert_array_equal(np.isinf(ours), [False, True, False, False])
    np.testing.assert_allclose(ours[where[range(4), labels]], theirs[where[range(4), labels]], rtol=TOLERANCE)


def test_optax_of_a_row_without_classes(jax: ModuleType, losses_of_optax: Any) -> None:
    """Nothing to choose from is no certainty. Rows to be left out are what ignore_index or sample_weight is for."""
    logits, labels = problem((4, 3))
    where = np.ones((4, 3), bool)
    where[1] = False
    theirs = losses_of_optax.softmax_cross_entropy_with_integer_labels(logits, labels, where=where)
    assert theirs[1] == 0
    assert np.isnan(sx.cross_entropy(logits, labels, where=where, reduction="none")[1])


@pytest.mark.parametrize("label", [-1, 3])
def test_optax_takes_labels_that_are_no_classes(jax: ModuleType, losses_of_optax: Any, label: int) -> None:
    """-1 is its last class, and C is NaN with a gradient of plain numbers."""
    logits, labels = problem((4, 3))
    labels[1] = label
    theirs = losses_of_optax.softmax_cross_entropy_with_integer_labels(logits, labels)[1]
    assert np.isnan(theirs) if label == 3 else theirs == pytest.approx(sx.cross_entropy(logits[1], 2))
    with pytest.raises(ValueError, match=r"targets\[1\] = "):
        sx.cross_entropy(logits, labels)


# scikit-learn


@pytest.mark.parametrize("shape", [(70, 10), (9, 300), (3, 2)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_scikit_learn(multinomial: Any, dtype: str, weighted: bool, shape: tuple[int, int]) -> None:
    logits, labels, options = optioned(shape, "labels", ("sample_weight",) if weighted else (), dtype)
    weights = options["sample_weight"].astype(dtype) if weighted else None
    loss = multinomial(n_classes=shape[-1])
    expected, grad = loss.loss_gradient(labels.astype(dtype), logits, weights)
    ours, our_grad = sx.value_and_grad(logits, labels, reduction="none", **options)
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(our_grad, grad, rtol=0, atol=tolerance)
    mean = loss(labels.astype(dtype), logits, weights)
    assert sx.cross_entropy(logits, labels, **options) == pytest.approx(float(mean), rel=float(tolerance))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_metric_of_scikit_learn(weighted: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels, options = optioned((70, 5), "labels", ("sample_weight",) if weighted else ())
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = metrics.log_loss(labels, p, sample_weight=options.get("sample_weight"), labels=range(5))
    assert sx.cross_entropy(logits, labels, **options) == pytest.approx(expected, rel=1e-13)


def test_scikit_learn_divides_by_no_weight(multinomial: Any) -> None:
    """See test_torch_divides_by_nothing."""
    logits, labels = problem((4, 3))
    weights = np.zeros(4)
    with pytest.raises(ZeroDivisionError):
        multinomial(n_classes=3)(labels.astype(float), logits, weights)
    assert sx.cross_entropy(logits, labels, sample_weight=weights) == 0.0


def test_scikit_learn_has_no_only_class(multinomial: Any) -> None:
    """Of one class a row is certain: loss and gradient are 0."""
    with pytest.raises(ValueError, match="dimensions"):
        multinomial(n_classes=1).loss_gradient(np.zeros(3), np.ones((3, 1)))
    loss, grad = sx.value_and_grad(np.ones((3, 1)), np.zeros(3, int))
    assert loss == 0
    assert not grad.any()
