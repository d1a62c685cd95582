"""Tests of notebook 09's parts, and of the peer that it compares with."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import defined_in

import utils
from scripts import peer


@pytest.fixture(scope="module")
def parts():
    """What notebook 09 defines for its networks, which learn from few images here."""
    x, y, _, _ = utils.load_images()
    imported = {"keras": keras, "layers": keras.layers, "ops": keras.ops, "np": np, "tf": tf, "time": time}
    given = {"x": x, "y": y, "learn": np.arange(1000), "fold": 0, "seconds": {"training": 0.0}}
    return defined_in("09", "fit", "Muon", "last_network", **imported, **given)


def test_muon_s_step_keeps_the_directions_and_levels_their_sizes(parts):
    for shape in ((20, 50), (50, 20)):
        matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
        step = np.asarray(parts["orthogonal"](matrix))
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        sizes = np.diag(u.T @ step @ v.T)
        assert (sizes > 0.6).all() and (sizes < 1.4).all()
        assert np.abs(u.T @ step @ v.T - np.diag(sizes)).max() < 1e-3


def test_whitened_patches_are_uncorrelated_with_variance_one(parts):
    images = parts["x"][:960]
    normalised = ((images - parts["COLOUR_MEAN"]) / parts["COLOUR_SPREAD"]).astype("float32")
    first = np.asarray(keras.ops.conv(normalised, parts["whitening_kernel"](images).astype("float32")))[..., :12]
    moments = first.reshape(-1, 12).T @ first.reshape(-1, 12) / first[..., 0].size
    assert np.abs(moments - np.diag(np.diag(moments))).max() < 0.01
    assert (np.diag(moments) > 0.4).all() and (np.diag(moments) < 1.01).all()  # less where there is hardly anything


def test_fused_normalisation_is_keras_s(parts):
    values = np.random.default_rng(0).normal(3, 2, (50, 8, 8, 4)).astype("float32")
    fused, usual = (
        kind(momentum=0.6, epsilon=1e-5, scale=False)
        for kind in (parts["FusedBatchNormalization"], keras.layers.BatchNormalization)
    )
    for training in (True, False):
        assert np.allclose(fused(values, training=training), usual(values, training=training), atol=1e-3)


def test_varied_images_keep_their_labels_and_their_range(parts):
    images, labels = next(iter(parts["varied_batches"](1, jitter=False, cutout=0)))
    assert images.shape == (250, 32, 32, 3) and set(np.unique(labels)) == {0, 1}
    assert images.numpy().min() > -0.01 and images.numpy().max() < 255.01
    middle = {
        image[12:20, 12:20].tobytes(): label for image, label in zip(images.numpy().round().astype("uint8"), labels)
    }
    originals = parts["x"][parts["learn"]]
    for image, label in zip(originals[:100], parts["y"][parts["learn"]]):
        for view in (image, image[:, ::-1]):
            for row in range(9):
                for column in range(9):
                    found = middle.get(view[8 + row : 16 + row, 8 + column : 16 + column].tobytes(), label)
                    assert found == label


def test_the_last_network_learns(parts):
    network = parts["last_network"](width=8)
    rate = parts["RiseAndFall"](0.15, 40)
    images, labels = parts["x"][parts["learn"]], parts["y"][parts["learn"]]
    parts["fit"](network, parts["Muon"](rate, adam_rate=0.02), images, labels, batch_size=100, epochs=4)
    assert (((network.predict(images, verbose=0)[:, 0] > 0) == labels).mean()) > 0.8


def test_the_peer_learns(parts, monkeypatch):
    monkeypatch.setattr(peer, "UPDATES", 4)
    images, labels = parts["x"][parts["learn"]], parts["y"][parts["learn"]]
    answer = peer.train(images, labels, 0, parts["FusedBatchNormalization"])
    logits = answer(images[:200])
    assert logits.shape == (200,) and ((logits > 0) == labels[:200]).mean() > 0.65
