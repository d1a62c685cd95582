"""Tests of what notebook 02 defines for training: augmentation, optimiser, schedule and network."""

import keras
import numpy as np
import pytest

import utils
from scripts import sweep

CNN = sweep.definitions("three_block_cnn")
SETTINGS = CNN["SETTINGS"] | {"batch_size": 4}


def one_epoch(x, y, pixels, **changes):
    found = list(CNN["batches"](x, y, SETTINGS | changes, pixels, np.random.default_rng(0)))
    return np.concatenate([images for images, _ in found]), np.concatenate([labels for _, labels in found])


@pytest.fixture
def some(test_images):
    return test_images[:10], np.arange(10, dtype=np.uint8)  # labels that tell the images apart


@pytest.mark.parametrize("pixels", [24, 32])
def test_an_epoch_has_each_image_once_cut_out_of_its_surroundings(some, pixels):
    x, y = some
    images, labels = one_epoch(x, y, pixels)
    assert images.shape == (10, pixels, pixels, 3) and images.dtype == np.uint8
    assert sorted(labels) == list(range(10)) and labels.tolist() != list(range(10))
    side = SETTINGS["shift_pixels"]
    padded = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)), "reflect")
    for image, label in zip(images, labels):
        windows = np.lib.stride_tricks.sliding_window_view(padded[label], (pixels, pixels), axis=(0, 1))
        windows = windows.transpose(0, 1, 3, 4, 2)
        assert (windows == image).all(axis=(2, 3, 4)).any() or (windows == image[:, ::-1]).all(axis=(2, 3, 4)).any()


def test_without_augmentation_the_images_are_as_they_are(some):
    x, y = some
    images, labels = one_epoch(x, y, 32, mirror=False, shift_pixels=0)
    assert (images == x[labels]).all()


def test_a_patch_is_cut_out(some):
    x, y = some
    images, labels = one_epoch(x, y, 32, mirror=False, shift_pixels=0, cutout_pixels=8)
    changed = (images != x[labels]).any(axis=3)
    for found in changed:
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        assert np.ptp(rows) < 8 and np.ptp(columns) < 8 and found.sum() > 32
    assert (images[changed] == 127).all()


def test_the_training_images_stay_as_they_are(some):
    x, y = some
    before = x.copy()
    one_epoch(x, y, 32, shift_pixels=0, cutout_pixels=8)
    assert (x == before).all()


def test_muon_moves_a_kernel_in_all_directions_equally_far():
    """Whatever the gradient's singular values (here 1 to 1/100), those of the step are much alike."""
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.normal(size=(72, 4)))
    right, _ = np.linalg.qr(random.normal(size=(4, 4)))
    gradient = left @ np.diag([1, 0.3, 0.1, 0.01]) @ right
    kernel = keras.Variable(np.zeros((3, 3, 8, 4), np.float32))
    optimizer = CNN["new_optimizer"](SETTINGS | {"schedule": "constant", "learning_rate": 0.1}, 10)
    optimizer.apply([keras.ops.convert_to_tensor(gradient.reshape(3, 3, 8, 4).astype(np.float32))], [kernel])
    moved = np.linalg.svd(np.asarray(kernel).reshape(72, 4), compute_uv=False) / (0.1 * 0.2 * 72**0.5)
    assert 0.5 < moved[2] and moved[0] < 1.3 and moved[3] > 0.1


def test_muon_leaves_to_adam_what_is_no_matrix_of_features():
    network = CNN["three_block_cnn"](SETTINGS)
    muon = CNN["new_optimizer"](SETTINGS, 10)
    by_muon = [weight.shape for weight in network.trainable_weights if not muon._should_use_adamw(weight)]
    assert by_muon == [(3, 3, 32, 32), (3, 3, 32, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128)]


@pytest.mark.parametrize("name, kind", [("sgd", keras.optimizers.SGD), ("adamw", keras.optimizers.AdamW)])
def test_the_other_optimisers_are_there(name, kind):
    assert isinstance(CNN["new_optimizer"](SETTINGS | {"optimizer": name}, 10), kind)


def test_the_learning_rate_climbs_for_a_fifth_and_falls_to_zero():
    optimizer = CNN["new_optimizer"](SETTINGS, 100)
    rates = []
    for step in (0, 20, 60, 100):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    assert rates == pytest.approx([0, SETTINGS["learning_rate"], SETTINGS["learning_rate"] / 2, 0], abs=1e-6)


def test_crops_come_first_and_every_epoch_is_in_the_history(some):
    x, y = some
    seen = []
    original = CNN["batches"]
    try:
        CNN["train"].__globals__["batches"] = lambda *arguments: (seen.append(arguments[3]), original(*arguments))[1]
        network, history = CNN["train"](SETTINGS | {"filters": [4, 4, 4], "epochs": 3, "crop_epochs": 2},
                                        (x, y % 2), (x, y % 2))
    finally:
        CNN["train"].__globals__["batches"] = original
    assert seen == [24, 24, 32] and {len(values) for values in history.values()} == {3}
    assert network.count_params() < 10_000


def test_a_trained_network_is_saved_without_its_optimiser(some, output):
    x, y = some
    network, _ = CNN["train"](SETTINGS | {"filters": [4], "epochs": 1, "crop_epochs": 0}, (x, y % 2), (x, y % 2))
    model = utils.classifier(network, "three_block_cnn")
    utils.save_model(model, "three_block_cnn")
    assert (utils.load_model("three_block_cnn").predict(x, verbose=0) == model.predict(x, verbose=0)).all()


def test_the_network_of_2021_is_trained_by_the_same_function(some):
    x, y = some
    changes = {"network": "2021", "optimizer": "sgd", "crop_epochs": 0, "epochs": 1}
    network, _ = CNN["train"](SETTINGS | changes, (x, y % 2), (x, y % 2))
    assert network.count_params() == 355_649
    found = utils.classifier(network, "three_block_cnn").get_layer("three_block_cnn")  # as notebook 06 asks for it
    assert utils.definitions("06_confidence_and_errors")["grad_cam"](found, x).shape == (len(x), 4, 4)
