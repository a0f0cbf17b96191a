"""The page for those who come from another library: its examples give what that library gives.

Each test runs the examples of one section and compares what they assign with the library, if it is installed, or with
its formula. That the examples print what the page says is tested with the other pages.
"""

import doctest
import re
from typing import Any

import numpy as np
import pytest
from support import ROOT

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

PAGE = ROOT / "docs" / "migrating.md"


def section(heading: str = "") -> dict[str, Any]:
    """What the examples before the first section, and then those of this one, assign."""
    start, *sections = PAGE.read_text("utf-8").split("\n## ")
    chosen = [text for text in sections if text.startswith(f"{heading}\n")]
    assert len(chosen) == (heading != "")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", "\n".join([start, *chosen]), re.MULTILINE | re.DOTALL):
        for example in doctest.DocTestParser().get_examples(block):
            exec(example.source, names)
    return names


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    below = x - x.max(axis=axis, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=axis, keepdims=True))


def cross_entropies(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Of rows (N, C), as most of the libraries define them."""
    return -np.take_along_axis(log_softmax(logits), labels[:, np.newaxis], axis=1)[:, 0]


def close(actual: object, expected: object, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=rtol)


def test_pytorch() -> None:
    torch = pytest.importorskip("torch")
    cross_entropy = torch.nn.functional.cross_entropy
    page = section("PyTorch")
    x, images, labels, padded, soft, weight = (
        torch.tensor(page[name]) for name in ("logits", "images", "labels", "padded", "soft", "class_weight")
    )
    close(page["smoothed"], cross_entropy(x, padded, weight=weight, label_smoothing=0.1))
    close(page["by_rows"], cross_entropy(x, soft, weight=weight))
    images.requires_grad_()
    loss = cross_entropy(images, torch.tensor(page["maps"]))
    loss.backward()
    close(page["loss"], loss.detach())
    close(page["grad"], images.grad)
    for reduction in ("mean", "sum", "none"):
        ours = sx.cross_entropy(page["logits"], page["padded"], ignore_index=-100, reduction=reduction)
        close(ours, cross_entropy(x, padded, reduction=reduction))
    close(sx.cross_entropy(page["logits"], page["labels"], temperature=2.5), cross_entropy(x / 2.5, labels))
    # The differences.
    close(cross_entropy(x, 2 * soft, label_smoothing=0.1), cross_entropy(x, 2 * soft * 0.9 + 0.1 / 3))
    close(
        sx.cross_entropy(page["logits"], 2 * page["soft"], label_smoothing=0.1),
        cross_entropy(x, 2 * (soft * 0.9 + 0.1 / 3)),
    )
    ignored = torch.full_like(padded, -100)
    assert cross_entropy(x, ignored).isnan()
    assert sx.value_and_grad(page["logits"], ignored.numpy(), ignore_index=-100)[0] == 0
    x[2] = torch.nan
    x.requires_grad_()
    cross_entropy(x, padded).backward()
    assert x.grad[2].isnan().all()
    assert not sx.value_and_grad(x.detach().numpy(), page["padded"], ignore_index=-100)[1][2].any()
    masked = [[0.0, 1.0, -np.inf]]
    assert cross_entropy(torch.tensor(masked), torch.tensor([[0.5, 0.5, 0.0]])).isnan()
    assert np.isfinite(sx.cross_entropy(masked, [[0.5, 0.5, 0.0]]))
    with pytest.raises(RuntimeError, match="floating point"):
        cross_entropy(images.detach(), torch.ones(images.shape, dtype=torch.int64))


def test_optax() -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    page = section("optax")
    x, labels, allowed = page["logits"], page["labels"], page["allowed"]
    with jax.enable_x64(True):
        of_labels, of_rows = optax.softmax_cross_entropy_with_integer_labels, optax.softmax_cross_entropy
        logits, soft, where = jax.numpy.asarray(x), jax.numpy.asarray(page["soft"]), jax.numpy.asarray(allowed)
        close(page["losses"], of_labels(logits, labels))
        one_hot = jax.nn.one_hot(labels, 3, dtype=logits.dtype)
        smoothed = optax.smooth_labels(one_hot, 0.1, where=where)
        close(page["over_allowed"], of_rows(logits, smoothed, where=where))
        close(sx.cross_entropy(x, page["soft"], reduction="none"), of_rows(logits, soft))
        loss, grad = jax.value_and_grad(lambda logits: of_labels(logits, labels, where=where).mean())(logits)
        ours = sx.value_and_grad(x, labels, where=allowed)
        close(ours[0], loss)
        close(ours[1], grad)
        blocks = np.stack([x, -x])
        close(
            sx.cross_entropy(blocks.reshape(2, 12), [5, 7], reduction="none"),
            of_labels(jax.numpy.asarray(blocks), np.array([5, 7]), axis=(1, 2)),
        )
        rows = np.array([True, True, False, True])
        close(
            sx.cross_entropy(x, labels, sample_weight=rows, reduction="none"),
            of_labels(logits, labels, where=jax.numpy.asarray(rows)),
        )
        # The differences.
        astray = of_labels(logits[:2], np.array([3, -1]))
        assert np.isnan(astray[0])
        close(astray[1], sx.cross_entropy(x[1], 2))
        others = jax.numpy.asarray(np.arange(3) != labels[:, np.newaxis])
        close(
            of_labels(logits, labels, where=others),
            [jax.nn.logsumexp(np.delete(r, y)) - r[y] for r, y in zip(x, labels, strict=True)],
        )
        close(of_rows(logits, soft, where=others), of_rows(logits, soft * others, where=others))
        assert np.isposinf(sx.cross_entropy(x, labels, where=np.asarray(others), reduction="none")).all()
        assert not of_labels(logits, labels, where=jax.numpy.zeros((4, 3), bool)).any()
        masked, half = np.array([0.0, 1.0, -np.inf]), np.array([0.5, 0.5, 0.0])
        assert np.isnan(of_rows(masked, half))
        close(sx.cross_entropy(masked, half), optax.safe_softmax_cross_entropy(masked, half))
        close(of_rows(logits, optax.smooth_labels(2 * soft, 0.1)), of_rows(logits, 1.8 * soft + 0.1 / 3))
        close(sx.cross_entropy(x, 2 * page["soft"], label_smoothing=0.1), of_rows(logits, 1.8 * soft + 0.2 / 3).mean())
        assert of_labels(logits.astype("bfloat16"), labels).dtype == "bfloat16"


def test_tensorflow_and_keras_by_their_formulas() -> None:
    page = section("TensorFlow and Keras")
    x, labels, soft, weights = (page[name] for name in ("logits", "labels", "soft", "row_weight"))
    losses = cross_entropies(labels, x)
    close(page["by_weights"], (weights * losses).sum() / weights.sum())
    close(page["by_rows"], (weights * losses).sum() / 4)
    close(page["ignored"], losses[[0, 1, 3]].sum() / 3)
    close(page["smoothed"], -((0.9 * soft + 0.1 / 3) * log_softmax(x)).sum(axis=1).mean())
    p = np.exp(log_softmax(x))
    close(page["tripled"], 3 * (p - soft))
    assert not np.allclose(page["tripled"], p - 3 * soft)


def test_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    losses = pytest.importorskip("keras.losses")
    page = section("TensorFlow and Keras")
    x, labels, padded, soft, weights = (page[name] for name in ("logits", "labels", "padded", "soft", "row_weight"))

    def sparse(**options: Any) -> Any:
        return losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64", **options)

    close(page["by_weights"], sparse(reduction="mean_with_sample_weight")(labels, x, sample_weight=weights), 1e-6)
    close(page["by_rows"], sparse()(labels, x, sample_weight=weights), 1e-6)
    close(page["ignored"], sparse(ignore_class=-100)(padded, x), 1e-6)
    close(
        sx.cross_entropy(x, padded, ignore_index=-100, sample_weight=weights, normalizer=3),
        sparse(ignore_class=-100)(padded, x, sample_weight=weights),
        1e-6,
    )
    dense = losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, dtype="float64")
    close(page["smoothed"], dense(soft, x), 1e-6)
    # The differences.
    close(losses.CategoricalCrossentropy(dtype="float64")([[0.0, 1.0]], [[1.0, 0.0]]), -np.log(1e-7), 1e-6)
    sideways = losses.categorical_crossentropy(soft.T, x.T, from_logits=True, label_smoothing=0.1, axis=0)
    close(sideways, -((0.9 * soft + 0.1 / 4) * log_softmax(x)).sum(axis=1), 1e-6)
    with np.errstate(divide="ignore"):
        assert sparse(ignore_class=-100)(np.full(4, -100), x) == 0


def test_tensorflow() -> None:
    tf = pytest.importorskip("tensorflow")
    page = section("TensorFlow and Keras")
    x, labels, soft = (page[name] for name in ("logits", "labels", "soft"))
    close(
        sx.cross_entropy(x, labels, reduction="none"),
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x),
    )
    logits = tf.Variable(x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels=3 * soft, logits=logits))
    close(sx.cross_entropy(x, 3 * soft, reduction="sum"), loss)
    close(tape.gradient(loss, logits), np.exp(log_softmax(x)) - 3 * soft)
    masked = tf.nn.softmax_cross_entropy_with_logits(labels=[[0.5, 0.5, 0.0]], logits=[[0.0, 1.0, -np.inf]])
    assert np.isnan(masked).all()
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[-1, 0, 1, 2], logits=x)


@pytest.mark.parametrize("runtime", ["reference", "onnxruntime"])
def test_onnx(runtime: str) -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    page = section("ONNX")

    def loss_and_log_prob(scores: np.ndarray, labels: np.ndarray, *weights: np.ndarray, **attributes: Any) -> Any:
        helper, feed = onnx.helper, dict(zip("slw", (scores, labels, *weights), strict=False))
        kind = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
        node = helper.make_node("SoftmaxCrossEntropyLoss", list(feed), ["output", "log_prob"], **attributes)
        inputs = [helper.make_tensor_value_info(name, kind[name], array.shape) for name, array in feed.items()]
        outputs = [helper.make_tensor_value_info(name, kind["s"], None) for name in node.output]
        graph = helper.make_graph([node], "loss", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        if runtime == "reference":
            return reference.ReferenceEvaluator(model).run(None, feed)
        session = pytest.importorskip("onnxruntime").InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return session.run(None, feed)

    images, maps, weight = page["images"], page["maps"], page["class_weight"]
    mean, _ = loss_and_log_prob(images, maps, weight, ignore_index=-100)
    close(page["mean"], mean)
    _, log_prob = loss_and_log_prob(images, maps, ignore_index=-100)
    counts = np.broadcast_to(np.expand_dims(maps != -100, 1), images.shape)
    close(page["log_prob"][counts], log_prob[counts])
    for reduction in ("mean", "sum", "none"):
        ours = sx.cross_entropy(images, maps, axis=1, ignore_index=-100, reduction=reduction)
        close(ours, loss_and_log_prob(images, maps, ignore_index=-100, reduction=reduction)[0])
    # The differences.
    with np.errstate(invalid="ignore"):
        nothing, _ = loss_and_log_prob(page["logits"], np.full(4, -100), weight, ignore_index=-100)
    assert np.isnan(nothing)
    wrapped, _ = loss_and_log_prob(page["logits"], np.array([-1, 0, 0, 0]), reduction="none")
    close(wrapped, sx.cross_entropy(page["logits"], [2, 0, 0, 0], reduction="none"))


def test_scikit_learn() -> None:
    pytest.importorskip("sklearn")
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    page = section("scikit-learn")
    x, labels, weights, probabilities = (page[name] for name in ("logits", "labels", "row_weight", "probabilities"))
    close(page["reported"], log_loss(page["names"], probabilities, sample_weight=weights))
    close(
        sx.cross_entropy(np.log(probabilities), labels, reduction="sum"),
        log_loss(np.eye(3)[labels], probabilities, normalize=False),
    )
    positive = np.array([0.1, 0.8, 0.6, 0.3])
    close(
        sx.cross_entropy(np.log(np.stack([1 - positive, positive], axis=-1)), [0, 1, 1, 0]),
        log_loss([0, 1, 1, 0], positive),
    )
    private = HalfMultinomialLoss(n_classes=3)
    losses, gradient = private.loss_gradient(labels.astype(float), x, sample_weight=weights)
    close(page["losses"], losses)
    close(page["gradient"], gradient)
    close(sx.cross_entropy(x, labels, sample_weight=weights), private(labels.astype(float), x, sample_weight=weights))
    _, p = private.gradient_proba(labels.astype(float), x)
    close(np.exp(x - sx.evaluate(x, labels).lse[:, np.newaxis]), p)
    features = np.random.default_rng(0).normal(size=(60, 2))
    for n_classes in (2, 3):
        y = np.arange(60) % n_classes
        model = LogisticRegression().fit(features, y)
        scores = model.decision_function(features)
        if n_classes == 2:
            scores = np.stack([0 * scores, scores], axis=-1)
        close(sx.cross_entropy(scores, y), log_loss(y, model.predict_proba(features)))
    # The differences.
    sure = np.array([[1.0, 0.0]])
    close(log_loss([1], sure, labels=[0, 1]), 36.04, rtol=1e-4)
    close(log_loss([1], sure.astype(np.float32), labels=[0, 1]), 15.94, rtol=1e-3)
    with np.errstate(divide="ignore"):
        assert sx.cross_entropy(np.log(sure), [1]) == np.inf
    with pytest.raises(ValueError, match="non-zero"):
        log_loss(labels, probabilities, sample_weight=np.zeros(4))


def liger(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
) -> tuple[float, np.ndarray]:
    """The mean and its gradient, as written in Liger's kernel, of the rows that it does not skip."""
    kept = labels != ignore_index
    n_classes = x.shape[1]
    w = np.ones(n_classes) if weight is None else weight
    y, bent = labels[kept], np.tanh(x[kept] / softcap) if softcap else np.zeros_like(x[kept])
    z = softcap * bent if softcap else x[kept]
    rows, eps = np.arange(len(y)), label_smoothing / n_classes
    lse = np.log(np.exp(z).sum(axis=1))
    smooth = -eps * (w * z).sum(axis=1) + eps * lse * w.sum()
    losses = (1 - label_smoothing) * w[y] * (lse - z[rows, y]) + smooth
    divisor, count = w[y].sum(), kept.sum()
    p = np.exp(z - lse[:, np.newaxis])
    d = (1 - label_smoothing) * w[y][:, np.newaxis] * (p - np.eye(n_classes)[y]) + eps * (p * w.sum() - w)
    d = d / divisor + 2 * lse_square_scale * (lse[:, np.newaxis] * p) / count
    grad = np.zeros_like(x)
    grad[kept] = d * (1 - bent**2)
    return losses.sum() / divisor + lse_square_scale * (lse**2).sum() / count, grad


def test_liger_by_its_formula() -> None:
    page = section("Liger")
    x, padded, weight = page["logits"], page["padded"], page["class_weight"]
    loss, grad = liger(x, padded, label_smoothing=0.1, softcap=3.0, lse_square_scale=0.01)
    close(page["loss"], loss)
    close(page["grad"], grad)
    close(page["as_there"], liger(x, padded, weight=weight, softcap=3.0, lse_square_scale=0.01)[0])
    loss, grad = liger(x, padded, weight=weight, label_smoothing=0.1)
    ours = sx.value_and_grad(x, padded, weight=weight, ignore_index=-100, label_smoothing=0.1)
    close(ours[0], loss)
    close(ours[1], grad)
