"""Tests of the data, and of what notebook 01 defines to make it. Small files stand in for the official ones."""

import zipfile

import keras
import numpy as np
import pytest

import utils

extraction = utils.definitions("01_data_extraction")
strangers = utils.definitions("07_strangers_and_damage")


def some_images(n, classes=10, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 32, 32, 3), np.uint8), (np.arange(n) % classes).astype(np.uint8)


def test_shipped_data_is_what_the_issue_describes():
    x_train, y_train, x_test, y_test = utils.load_images(utils.DATA / "ship_truck.npz")
    assert x_train.shape == (10000, 32, 32, 3) and x_test.shape == (2000, 32, 32, 3)
    assert x_train.dtype == x_test.dtype == y_train.dtype == y_test.dtype == np.uint8
    assert np.bincount(y_train).tolist() == [5000, 5000] and np.bincount(y_test).tolist() == [1000, 1000]


@pytest.mark.parametrize("name", utils.SHA256)
def test_missing_data_is_named_with_the_way_back(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*git checkout -- data/{name}"):
        utils.verify_file(tmp_path / name)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:5000] + b"\0" + data[5001:]])
def test_damaged_data_is_refused_with_both_sums(tmp_path, damage):
    path = tmp_path / "ship_truck.npz"
    path.write_bytes(damage((utils.DATA / path.name).read_bytes()))
    with pytest.raises(ValueError) as error:
        utils.load_images(path)
    for part in (path.name, utils.SHA256[path.name], extraction["hashlib"].sha256(path.read_bytes()).hexdigest()):
        assert part in str(error.value)


@pytest.mark.parametrize("change, complaint", [
    (lambda x, y: (x[:, :16], y), r"test set: got uint8 \(20, 16, 32, 3\)"),
    (lambda x, y: (x / 255, y), r"test set: got float64"),
    (lambda x, y: (x, y.astype(int)), r"labels int64 \(20,\)"),
    (lambda x, y: (x, y[:5]), r"labels uint8 \(5,\)")])
def test_data_of_another_shape_is_not_written(tmp_path, change, complaint):
    x, y = some_images(20, classes=2)
    with pytest.raises(ValueError, match=complaint):
        extraction["write_images"](tmp_path / "own.npz", (x, y), change(x, y))
    assert not list(tmp_path.iterdir())


def write_official_batches(folder, train, test):
    """Write images as the official binary batches: label, then the red, green and blue planes."""
    def write(name, x, y):
        (folder / name).write_bytes(b"".join(bytes([label]) + image.transpose(2, 0, 1).tobytes()
                                             for image, label in zip(x, y)))
    for number in range(5):
        write(f"data_batch_{number + 1}.bin", *(part[20 * number:20 * number + 20] for part in train))
    write("test_batch.bin", *test)


def test_official_batches_are_read_in_order(tmp_path):
    train, test = some_images(100), some_images(30, seed=1)
    write_official_batches(tmp_path, train, test)
    (x_train, y_train), (x_test, y_test) = extraction["official_cifar10"](tmp_path)
    assert (x_train == train[0]).all() and (y_train == train[1]).all()
    assert (x_test == test[0]).all() and (y_test == test[1]).all()


def test_both_official_routes_write_the_same_bytes(tmp_path, monkeypatch):
    train, test = some_images(100), some_images(30, seed=1)
    write_official_batches(tmp_path, train, test)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((train[0], train[1][:, None]),
                                                                      (test[0], test[1][:, None])))
    sums = [extraction["rebuild"](source, tmp_path / name) for name, source in (("a", "keras"), ("b", tmp_path))]
    assert sums[0] == sums[1] and sums[0].keys() == {"ship_truck.npz", "other_classes.npz"}
    with np.load(tmp_path / "a" / "ship_truck.npz") as found:
        for split, (x, y) in (("train", train), ("test", test)):
            assert (found[f"x_{split}"] == x[y >= 8]).all() and (found[f"y_{split}"] == y[y >= 8] - 8).all()


def test_rebuilding_from_the_shipped_images_gives_the_shipped_sum(tmp_path, monkeypatch):
    x_train, y_train, x_test, y_test = utils.load_images(utils.DATA / "ship_truck.npz")
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((x_train, y_train + 8), (x_test, y_test + 8)))
    assert extraction["rebuild"]("keras", tmp_path)["ship_truck.npz"] == utils.SHA256["ship_truck.npz"]


def test_the_data_file_names_no_platform():
    with zipfile.ZipFile(utils.DATA / "ship_truck.npz") as archive:
        assert {(entry.create_system, entry.date_time[0]) for entry in archive.infolist()} == {(3, 1980)}


@pytest.mark.parametrize("damage, error, complaint", [
    (lambda path: path.unlink(), FileNotFoundError, "test_batch.bin is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:-7]), ValueError, "test_batch.bin has 92,183 bytes"),
    (lambda path: path.write_bytes(b""), ValueError, "test_batch.bin has 0 bytes"),
    (lambda path: path.write_bytes(b"\xff" * 3073), ValueError, "holds label 255"),
])
def test_bad_official_batches_are_refused(tmp_path, damage, error, complaint):
    write_official_batches(tmp_path, some_images(100), some_images(30))
    damage(tmp_path / "test_batch.bin")
    with pytest.raises(error, match=complaint):
        extraction["rebuild"](tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_classes_are_equally_many_and_verified(tmp_path):
    x_train, y_train, x_test, y_test = utils.load_images(utils.DATA / "other_classes.npz")
    for x, y, each in ((x_train, y_train, 125), (x_test, y_test, 250)):
        assert x.shape == (8 * each, 32, 32, 3) and np.bincount(y).tolist() == [each] * 8
    _, y_train, _, y_test = strangers["load_other_classes"]()
    assert set(y_train) == set(y_test) == set(range(8))  # the quick profile keeps all classes
    with pytest.raises(FileNotFoundError, match=r"other_classes\.npz is missing.*git checkout"):
        strangers["load_other_classes"](tmp_path / "other_classes.npz")


def test_other_classes_are_the_first_of_each_in_order():
    x, y = some_images(200)
    found_x, found_y = extraction["other_classes"](x, y, each=3)
    keep = np.sort(np.concatenate([np.flatnonzero(y == label)[:3] for label in range(8)]))
    assert (found_x == x[keep]).all() and (found_y == y[keep]).all() and len(found_y) == 24


def test_an_empty_class_is_named(tmp_path, monkeypatch):
    path = tmp_path / "other_classes.npz"
    full, without_cats = np.arange(8, dtype=np.uint8), np.uint8([0, 1, 2, 4, 5, 6, 7])
    images = np.zeros((8, 32, 32, 3), np.uint8)
    sha256 = extraction["write_images"](path, (images, full), (images[1:], without_cats))
    monkeypatch.setitem(utils.SHA256, path.name, sha256)
    with pytest.raises(ValueError, match="has no cat in y_test"):
        strangers["load_other_classes"](path)


def test_the_split_is_stratified_disjoint_and_fixed():
    y = np.repeat(np.array([0, 1], np.uint8), 500)
    training, validation = utils.split_indices(y)
    assert sorted([*training, *validation]) == list(range(1000))
    assert np.bincount(y[validation]).tolist() == [50, 50]
    assert (utils.split_indices(y)[1] == validation).all()


def test_quick_splits_are_stratified():
    for (x, y), n in zip(utils.load_splits(), (400, 100, 200)):
        assert len(x) == n and np.bincount(y).tolist() == [n // 2, n // 2]
