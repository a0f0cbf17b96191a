"""The bits of the results are those in this file, on every level with fused multiply-add, whatever the architecture.

The problems are made of integers and powers of two, so they are the same wherever they are made. Where a change of the
kernels is meant to change the last digits, `python tests/bits/test_hashes.py` prints the table anew.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import FLOATS, HALVES

import softxent as sx
from softxent import _dispatch

FUSED = [level for level in _dispatch.usable_levels() if level != "baseline"]
DTYPES = FLOATS + HALVES
BITS = {"float32": 23, "float64": 52, "float16": 10, "bfloat16": 7}  # of the integers; each dtype holds them exactly
# Full and partial registers, blocks of them and groups of lanes, both kernels; (rows, classes).
SHAPES = [(67, 1), (67, 3), (40, 10), (33, 17), (35, 64), (20, 100), (9, 129), (5, 1001), (2, 5003)]
N_PAIRS = 3

OPTIONS: dict[str, dict[str, float]] = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "temperature": {"temperature": 1.7},
    "softcap": {"softcap": 5.0},
    "z_loss": {"z_loss": 1e-3},
    "weight": {},
    "weighted smoothing": {"label_smoothing": 0.1},
    "sample_weight": {},
    "where": {},
    "all": {"label_smoothing": 0.2, "temperature": 0.6, "softcap": 20.0, "z_loss": 0.01},
}

# By options and targets, the first 16 digits for DTYPES in turn. "axis": distributions, the classes along axis 0.
HASHES = {
    "plain, labels": "a2558daf02058ddd a51c24b6778374de 4aac82ea49e77ada 01389f6bb2190ab3",
    "plain, distributions": "ab811b6d6d65695d 5b116d6c1ceb5b64 589375c1e9286349 48f770696ccf0066",
    "plain, pairs": "94bd33ab753a6a29 e36289823d1de24d 06905f9efa9d603b 5774507203252a9d",
    "plain, axis": "47175a221c8ce1b6 856fb13efec6a51c d69013babac1f93f 49fde79f9734dea4",
    "label_smoothing, labels": "d47eb45f2e98626d 7da881459898355b 1ed3f9285e44df60 57e4781b0f4cffef",
    "label_smoothing, distributions": "853f081bd6c26940 b03929b8485dfaf1 4dc67a8458d48605 245eeace8e9c5fac",
    "label_smoothing, pairs": "5653ff43fb9e31cc 9c604ce075ab1fbb 372a0e3306b629ad 9fcfb9aea05f4426",
    "label_smoothing, axis": "093cba3215b3b5fb 0cbf6ed1fa973390 d7eef14594e9a7e9 8535f72eaab3c81c",
    "temperature, labels": "92ecaf2dc138ff02 5fe515eb5efc3c50 9ccd8d8d71629a08 8a4473d93637a842",
    "temperature, distributions": "87389b98795551e9 094ea817012864df a8b4c3c9f04e3031 a132dc7f3b3b4777",
    "temperature, pairs": "c2972053d0f61ecb 789f50278400c61b 80634b51416dd0f8 e4dada9c82dc09a1",
    "temperature, axis": "10e95141c7bcc19b e181fcd63a233909 7f3bfe4d08e3b838 1b3715143b014254",
    "softcap, labels": "df9970ad69399509 d55c8f3cbf81e6a8 70bc97cf98cd6857 4a5153214c1351c4",
    "softcap, distributions": "d9f1bb3732a951a7 2cc3f3005d9028a2 26b22c499aea47d1 7fd201c8da49641a",
    "softcap, pairs": "cafe33a1aec68e72 0c2588b3567f9114 20ac68c4fa57ad3a 7e51a3fc20ccc829",
    "softcap, axis": "fbf0fa31c7bb017e e0d5148944178434 783ddba921efa890 f638306907b382f7",
    "z_loss, labels": "2a9bddd1896430d3 ade18a33ab6c9f74 b6719586b69376e7 a06e02e5d03207bb",
    "z_loss, distributions": "433d7fb789518f8b 3d052edbbf9cb1a1 e84175b502ba7fe7 4fc7d3f1cbddf722",
    "z_loss, pairs": "816a8933d6232e4b 92c45fd9be600952 d629ee62a620abdb 6e2b06d724dac2c3",
    "z_loss, axis": "b04a23803f55c140 c753845c51d6f668 e7f07a8a407c5d83 0d45878d8dd9e8bd",
    "weight, labels": "e6ba88552f053097 c801db793f39d81c 8a2d6dd8fe6062fd 15b461dcdbf82547",
    "weight, distributions": "7a45fbdbac72dca1 06e2723613ac3de0 60b63a2f901ee010 6d1a8c1b1cb00d3b",
    "weight, pairs": "6bb2a4b819622988 42f2491a7e42e1ca a08a7c589adb89d1 15bbef49ab9adffe",
    "weight, axis": "aa01a35e77633096 71dac5d4b8cdd00e 9777f9f6f07ab89a 4805483a99f8d01a",
    "weighted smoothing, labels": "2050966e38d861f8 1d63ec1e526d5b47 15f21202e9525c3b b972c237bab9c837",
    "weighted smoothing, distributions": "5bc3d1267ea7860b 554041c084431218 9cc7f3f77424a4b2 3de9d7df2c67628d",
    "sample_weight, labels": "0fb93116803e5b0d 05891fda7efe4f68 56e61f5d8c1c5bbe 3877195519a5caee",
    "sample_weight, distributions": "0c6e3c88787d3624 edc56bbb41d6bb22 a90d931d62cd3069 8c5a9eb0031020a3",
    "sample_weight, pairs": "4a791f9bd78fd12b eee96e2cb35a8029 cbe50a8bb8326b8a a3b09d55202f6d5c",
    "sample_weight, axis": "d66c2868f36f13f0 2c107dbf9b207243 ccfed50b5b15b1fb ef5e325ef5bf3d3e",
    "where, labels": "fd118379e235e7b5 8fa5214860ef15d2 2b5b142f5c3ae9a6 c6ef591cdab78f71",
    "where, distributions": "e4a0d2121a5aa307 ccb794126ea08eaa dd94f2c97a1d9d97 437304efb1275a36",
    "where, pairs": "63408801d865440b 99d58ad1e624980f 128d6de8ef16d1d2 a59bd2e0b33c507c",
    "where, axis": "4a6f4ddf6ee7ae49 21f9d1b2db1dc144 b660ca3b3e0dc42c 1f86655fabb83dab",
    "all, labels": "a0d631d71deea1ca 5ddc606276685869 76540aef80b9945f c31b2b2d08d3fafa",
    "all, distributions": "0723f98a624d1324 033de1063e81a6ca d4d3e850f212a1c3 5b7d7081ce5e628d",
    "all, pairs": "caad0f9f0a0081c0 84f7de46451b88f7 4a5221bd67893ab6 d834baa7fc4650ad",
    "all, axis": "09b2465a68f52bb2 d0c5c59ad7932b25 b857139cdd4997a1 641391cc74c4f06a",
}

# The same for the functions besides the loss: "second" are those of the second derivative.
FAMILY_HASHES = {
    "plain, family": "9a78e2c22cb5bd26 674628f8e04bf81e cea8611e26690aa9 e5e278845b44372e",
    "temperature, family": "3f92b0b337b2904f 8208969699029b9e 218ab761a21ca3df 95fcc33ded54347f",
    "softcap, family": "02fb7db9f3e280c7 0098d329bce22a01 16558a2684397889 c57e0fecdd49d098",
    "where, family": "6cbd20ee7f02f8ff 39a35896572b3286 c281d4be7230afa8 05d594060cd15aa0",
    "plain, second": "b3fe5557b2f5c1a9 d7872696a3660095 1e1842bb44d31a92 15ac65e6785d3b55",
    "label_smoothing, second": "0fcb92e8786ee1a7 51c2e4201a0531ec b4f6f99189012bca c58460ed9f5e311a",
    "temperature, second": "b8550acfde9e8ee4 3f08eb0e10f60466 0e8af63ed5f9c843 99a278e19ffd44ed",
    "z_loss, second": "c972ded032423891 3054a79b9c6aa02f 8121626ec53a6bea f165d869ce07b579",
    "weight, second": "1792ca2038ac9cf4 37f643514659fc9b aa9f06efad7b023a 9bda409f26d37079",
    "where, second": "461b23da245bb9dd c64d4893b88e6d87 636fc37cc9ea66fb db48617f1f8bc778",
}


def integers(shape: tuple[int, ...], seed: int, bits: int) -> np.ndarray:
    """Integers of so many bits, scattered by the finalizer of SplitMix64."""
    n = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(seed << 32)
    n = n * np.uint64(0x9E3779B97F4A7C15)
    n = (n ^ n >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    n = (n ^ n >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return ((n ^ n >> np.uint64(31)) >> np.uint64(64 - bits)).reshape(shape).astype(np.int64)


def numbers(shape: tuple[int, ...], seed: int, bits: int) -> np.ndarray:
    """Multiples of 2^-bits in [0, 1)."""
    return integers(shape, seed, bits) * 0.5**bits


def problems(option: str, kind: str, dtype: str) -> Iterator[tuple[np.ndarray, Any, dict[str, Any]]]:
    """Logits, targets and options; rows go from nearly flat to spread so far that probabilities underflow."""
    bits = BITS[dtype]
    for shape in SHAPES:
        n_rows, n_classes = shape
        spread = 2.0 ** (np.arange(n_rows)[:, None] % 11 - 2)
        logits = ((2 * numbers(shape, 1, bits) - 1) * spread).astype(dtype)
        labels = integers((n_rows,), 2, 32) % n_classes
        soft = numbers(shape, 3, bits) * (integers(shape, 4, 2) != 0)
        classes, amounts = integers((n_rows, N_PAIRS), 5, 32) % n_classes, numbers((n_rows, N_PAIRS), 6, bits)
        options: dict[str, Any] = dict(OPTIONS[option])
        if option in ("weight", "weighted smoothing", "all"):
            options["weight"] = 2 * numbers((n_classes,), 7, 20)
        if option in ("sample_weight", "all"):
            options["sample_weight"] = numbers((n_rows,), 8, 20)
        if option in ("where", "all"):
            allowed = integers(shape, 9, 2) != 0
            allowed[np.arange(n_rows), labels] = True
            options["where"] = allowed
            soft *= allowed
            amounts *= np.take_along_axis(allowed, classes, axis=1)
        targets = {"labels": labels, "distributions": soft.astype(dtype), "pairs": (classes, amounts.astype(dtype))}
        yield logits, targets[kind], options


def results(option: str, kind: str, dtype: str) -> Iterator[np.ndarray]:
    if kind == "axis":
        for logits, targets, options in problems(option, "distributions", dtype):
            options |= {"where": options["where"].T} if "where" in options else {}
            yield from sx.value_and_grad(logits.T.copy(), targets.T.copy(), axis=0, reduction="none", **options)
        return
    for logits, targets, options in problems(option, kind, dtype):
        yield from sx.value_and_grad(logits, targets, reduction="none", **options)
        yield sx.cross_entropy(logits, targets, reduction="none", **options)
        yield from map(np.asarray, sx.value_and_grad(logits, targets, **options))


def results_of_family(option: str, kind: str, dtype: str) -> Iterator[np.ndarray]:
    for targets_kind in ("labels", "distributions", "pairs") if kind == "second" else ("labels",):
        for logits, targets, options in problems(option, targets_kind, dtype):
            vectors = ((2 * numbers(logits.shape, 10, BITS[dtype]) - 1) * 4).astype(dtype)
            if kind == "family":
                yield sx.softmax(logits, **options)
                yield sx.log_softmax(logits, **options)
                yield sx.logsumexp(logits, **options)
                yield sx.softmax_vjp(logits, vectors, **options)
                yield sx.log_softmax_vjp(logits, vectors, **options)
                continue
            yield from map(np.asarray, sx.value_grad_and_hess(logits, targets, **options))
            yield sx.hvp(logits, targets, vectors, **options)
            if option != "z_loss":
                probs = sx.softmax(
                    logits, **{name: options[name] for name in ("temperature", "where") if name in options}
                )
                yield sx.hvp(None, targets, vectors, probs=probs, **options)


def digest(arrays: Iterator[np.ndarray]) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        assert not np.isnan(array.astype(np.float64)).any()  # its bits are not the same on every architecture
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


@pytest.mark.smoke
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("level", FUSED, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HASHES)
def test_the_bits_are_the_same_on_every_level_and_architecture(name: str, dtype: str) -> None:
    option, kind = name.split(", ")
    assert digest(results(option, kind, dtype)) == HASHES[name].split()[DTYPES.index(dtype)]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("level", FUSED, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILY_HASHES)
def test_the_bits_of_the_family(name: str, dtype: str) -> None:
    option, kind = name.split(", ")
    assert digest(results_of_family(option, kind, dtype)) == FAMILY_HASHES[name].split()[DTYPES.index(dtype)]


if __name__ == "__main__":
    for name in FAMILY_HASHES:
        option, kind = name.split(", ")
        print(f'    "{name}": "{" ".join(digest(results_of_family(option, kind, dtype)) for dtype in DTYPES)}",')
    for name in HASHES:
        option, kind = name.split(", ")
        print(f'    "{name}": "{" ".join(digest(results(option, kind, dtype)) for dtype in DTYPES)}",')
