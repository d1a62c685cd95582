"""Tests of the data, and of what notebook 01 defines to make it. Small files stand in for the official ones."""

import keras
import numpy as np
import pytest
from helpers import defined_in, some_images

import utils

extraction = defined_in("01", "read_batch", "official_cifar10", "choose", "rebuild", np=np)
OTHERS = utils.ROOT / "data" / "other_classes.npz"


def test_shipped_data_is_what_the_data_card_says():
    for name, each_train, each_test in (
        ("ship_truck.npz", [5000] * 2, [1000] * 2),
        ("other_classes.npz", [125] * 8, [250] * 8),
    ):
        x_train, y_train, x_test, y_test = utils.load_images(utils.ROOT / "data" / name)
        assert x_train.shape == (sum(each_train), 32, 32, 3) and x_test.shape == (sum(each_test), 32, 32, 3)
        assert x_train.dtype == x_test.dtype == y_train.dtype == y_test.dtype == np.uint8
        assert np.bincount(y_train).tolist() == each_train and np.bincount(y_test).tolist() == each_test


def test_missing_data_is_named_with_the_way_back(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ship_truck.npz is missing.*git checkout -- data/ship_truck.npz"):
        utils.load_images(tmp_path / "ship_truck.npz")


def changed_pixel(path):
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = dict(zip(names, utils.load_images(utils.ROOT / "data" / path.name)))
    arrays["x_train"][0, 0, 0, 0] ^= 1
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda path: path.write_bytes(OTHERS.read_bytes()[:-1]), "is damaged"),
        (lambda path: path.write_bytes(b"text"), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: np.savez(path, x_train=np.zeros(3)), "is damaged.*y_train"),
        (changed_pixel, "holds other images"),
    ],
)
def test_damaged_data_is_refused_with_the_way_back(tmp_path, damage, complaint):
    path = tmp_path / "other_classes.npz"
    damage(path)
    with pytest.raises(ValueError, match=f"other_classes.npz {complaint}.*git checkout"):
        utils.load_images(path)


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
    by_keras, by_files = (extraction["rebuild"](*extraction["official_cifar10"](source)) for source in (None, tmp_path))
    for name, arrays in by_keras.items():
        assert utils.sha256(arrays) == utils.sha256(by_files[name])
        assert all(array.dtype == np.uint8 for array in arrays)
    for (x, y), ours in (train, by_files["ship_truck.npz"][:2]), (test, by_files["ship_truck.npz"][2:]):
        assert (ours[0] == x[y >= 8]).all() and (ours[1] == y[y >= 8] - 8).all()
    others = by_files["other_classes.npz"]
    assert (others[2] == test[0][test[1] < 8]).all() and (others[3] == test[1][test[1] < 8]).all()


def test_rebuilding_from_the_shipped_images_gives_the_shipped_sum():
    (x_train, y_train, x_test, y_test), others = utils.load_images(), utils.load_images(OTHERS)
    train = np.concatenate([x_train, others[0]]), np.concatenate([y_train + 8, others[1]])
    test = np.concatenate([x_test, others[2]]), np.concatenate([y_test + 8, others[3]])
    for name, arrays in extraction["rebuild"](train, test).items():
        assert utils.sha256(arrays) == utils.SHA256[name]


def test_at_most_so_many_of_a_class_are_chosen_the_first_ones():
    x, y = some_images(40, classes=4)
    chosen, labels = extraction["choose"](x, y, (1, 3), each=2)
    assert labels.tolist() == [1, 3, 1, 3] and (chosen == x[[1, 3, 5, 7]]).all()


@pytest.mark.parametrize(
    "damage, error, complaint",
    [
        (lambda path: path.unlink(), FileNotFoundError, "test_batch.bin"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), ValueError, "test_batch.bin has 92,183 bytes"),
        (lambda path: path.write_bytes(b""), ValueError, "test_batch.bin has 0 bytes"),
        (lambda path: path.write_bytes(b"\xff" * 3073), ValueError, "holds label 255"),
    ],
)
def test_bad_official_batches_are_refused(tmp_path, damage, error, complaint):
    write_official_batches(tmp_path, some_images(100), some_images(30))
    damage(tmp_path / "test_batch.bin")
    with pytest.raises(error, match=complaint):
        extraction["official_cifar10"](tmp_path)


def test_the_split_is_stratified_disjoint_and_fixed():
    y = np.repeat(np.array([0, 1], np.uint8), 500)
    training, validation = utils.split_indices(y)
    assert sorted([*training, *validation]) == list(range(1000))
    assert np.bincount(y[validation]).tolist() == [50, 50]
    assert (utils.split_indices(y)[1] == validation).all()
    x = some_images(1000)[0]
    x_train, y_train, x_validation, y_validation = utils.split(x, y)
    assert (x_train == x[training]).all() and (y_validation == y[validation]).all()
