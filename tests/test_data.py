"""Tests of the data, and of what notebook 01 defines to make it. Small files stand in for the official ones."""

from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import defined_in, some_images

import utils

modules = {"utils": utils, "np": np, "Path": Path}
extraction = defined_in("01", "read_batch", "official_cifar10", "write_images", "rebuild", **modules)


def test_shipped_data_is_what_the_data_card_says():
    for name, each_train, each_test in (
        ("ship_truck.npz", [5000] * 2, [1000] * 2),
        ("other_classes.npz", [125] * 8, [250] * 8),
    ):
        x_train, y_train, x_test, y_test = utils.load_images(utils.DATA / name)
        assert x_train.shape == (sum(each_train), 32, 32, 3) and x_test.shape == (sum(each_test), 32, 32, 3)
        assert x_train.dtype == x_test.dtype == y_train.dtype == y_test.dtype == np.uint8
        assert np.bincount(y_train).tolist() == each_train and np.bincount(y_test).tolist() == each_test


def test_missing_data_is_named_with_the_way_back(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ship_truck.npz is missing.*git checkout -- data/ship_truck.npz"):
        utils.load_images(tmp_path / "ship_truck.npz")
    with pytest.raises(FileNotFoundError, match=r"weights.h5 is missing.*git checkout"):
        utils.load_vgg16(tmp_path / "vgg16_imagenet_notop.weights.h5")


def changed_pixel(path):
    arrays = dict(zip(utils.IMAGE_ARRAYS, utils.load_images(utils.DATA / path.name)))
    arrays["x_train"][0, 0, 0, 0] ^= 1
    np.savez(path, **arrays)


def only_one_array(path):
    np.savez(path, x_train=np.zeros(3))


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda path: path.write_bytes((utils.DATA / path.name).read_bytes()[:-1]), "is damaged"),
        (lambda path: path.write_bytes(b"text"), "is damaged"),
        (only_one_array, "is damaged.*y_train"),
        (changed_pixel, f"holds other images.*expected {utils.SHA256['other_classes.npz']}"),
    ],
)
def test_damaged_data_is_refused_with_the_way_back(tmp_path, damage, complaint):
    path = tmp_path / "other_classes.npz"
    damage(path)
    with pytest.raises(ValueError, match=f"other_classes.npz {complaint}.*git checkout"):
        utils.load_images(path)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda x, y: (x[:, :16], y), r"test set: got uint8 \(20, 16, 32, 3\)"),
        (lambda x, y: (x / 255, y), r"test set: got float64"),
        (lambda x, y: (x, y.astype(int)), r"labels int64 \(20,\)"),
        (lambda x, y: (x, y[:5]), r"labels uint8 \(5,\)"),
    ],
)
def test_data_of_another_shape_is_not_written(tmp_path, change, complaint):
    x, y = some_images(20, classes=2)
    with pytest.raises(ValueError, match=complaint):
        extraction["write_images"](tmp_path / "own.npz", (x, y), change(x, y))
    assert not list(tmp_path.iterdir())


def write_official_batches(folder, train, test):
    """Write images as the official binary batches: label, then the red, green and blue planes."""

    def write(name, x, y):
        records = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(x, y)]
        (folder / name).write_bytes(b"".join(records))

    for number in range(5):
        write(f"data_batch_{number + 1}.bin", *(part[20 * number : 20 * number + 20] for part in train))
    write("test_batch.bin", *test)


def test_both_official_routes_give_the_same_images_in_order(tmp_path, monkeypatch):
    train, test = some_images(100), some_images(30, seed=1)
    write_official_batches(tmp_path, train, test)
    downloaded = (train[0], train[1][:, None]), (test[0], test[1][:, None])
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: downloaded)
    sums = [extraction["rebuild"](source, tmp_path / name) for name, source in (("a", "keras"), ("b", tmp_path))]
    assert sums[0] == sums[1] and sums[0].keys() == {"ship_truck.npz", "other_classes.npz"}
    with np.load(tmp_path / "a" / "ship_truck.npz") as ours:
        for split, (x, y) in (("train", train), ("test", test)):
            assert (ours[f"x_{split}"] == x[y >= 8]).all() and (ours[f"y_{split}"] == y[y >= 8] - 8).all()
    with np.load(tmp_path / "b" / "other_classes.npz") as others:
        assert (others["x_test"] == test[0][test[1] < 8]).all() and (others["y_test"] == test[1][test[1] < 8]).all()


def test_rebuilding_from_the_shipped_images_gives_the_shipped_sum(tmp_path, monkeypatch):
    x_train, y_train, x_test, y_test = utils.load_images(utils.DATA / "ship_truck.npz")
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((x_train, y_train + 8), (x_test, y_test + 8)))
    assert extraction["rebuild"]("keras", tmp_path)["ship_truck.npz"] == utils.SHA256["ship_truck.npz"]
    assert (utils.load_images(tmp_path / "ship_truck.npz")[0] == x_train).all()


@pytest.mark.parametrize(
    "damage, error, complaint",
    [
        (lambda path: path.unlink(), FileNotFoundError, "test_batch.bin is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), ValueError, "test_batch.bin has 92,183 bytes"),
        (lambda path: path.write_bytes(b""), ValueError, "test_batch.bin has 0 bytes"),
        (lambda path: path.write_bytes(b"\xff" * 3073), ValueError, "holds label 255"),
    ],
)
def test_bad_official_batches_are_refused(tmp_path, damage, error, complaint):
    write_official_batches(tmp_path, some_images(100), some_images(30))
    damage(tmp_path / "test_batch.bin")
    with pytest.raises(error, match=complaint):
        extraction["rebuild"](tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_splits_and_folds_are_stratified_disjoint_and_fixed():
    y = np.repeat(np.array([0, 1], np.uint8), 500)
    held_out = []
    for fold, n in ((-1, 100), *((fold, 200) for fold in range(utils.FOLDS))):
        training, validation = utils.split_indices(y, fold)
        assert sorted([*training, *validation]) == list(range(1000))
        assert np.bincount(y[validation]).tolist() == [n // 2, n // 2]
        assert (utils.split_indices(y, fold)[1] == validation).all()
        held_out += [] if fold == -1 else list(validation)
    assert sorted(held_out) == list(range(1000))
    with pytest.raises(ValueError, match="fold is 5, expected 0 to 4"):
        utils.split_indices(y, 5)


def test_a_run_by_folds_cannot_read_the_test_images():
    with pytest.raises(ValueError, match="fold is 0, and a run by folds must not read the test set"):
        utils.load_test_images(fold=0)
