"""Unit tests of utils.py. Small files made here stand in for the official ones; no network, no waiting."""

import json
import shutil
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

import utils


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Send everything that a run writes into a temporary folder."""
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    return tmp_path


# --- Writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(interruption):
        with utils.atomic_write(path) as temporary:
            temporary.write_text("half")
            raise interruption
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_quick_runs_write_to_scratch():
    assert utils.QUICK, "run the tests with `make test`, which sets SHIP_TRUCK_PROFILE=quick"
    assert utils.OUTPUT == utils.ROOT / "scratch" and utils.CACHE.is_relative_to(utils.OUTPUT)


# --- Data ----------------------------------------------------------------------------------------


def test_shipped_data_is_what_the_issue_describes():
    x_train, y_train, x_test, y_test = utils.load_ship_truck()
    assert x_train.shape == (10000, 32, 32, 3) and x_test.shape == (2000, 32, 32, 3)
    assert np.bincount(y_train).tolist() == [5000, 5000] and np.bincount(y_test).tolist() == [1000, 1000]


def test_missing_data_is_named_with_the_way_back(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ship_truck\.npz is missing.*git checkout"):
        utils.load_ship_truck(tmp_path / "ship_truck.npz")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:5000] + b"\0" + data[5001:]])
def test_damaged_data_is_refused_with_both_sums(tmp_path, damage):
    path = tmp_path / "ship_truck.npz"
    path.write_bytes(damage(utils.DATA_FILE.read_bytes()))
    with pytest.raises(ValueError) as error:
        utils.load_ship_truck(path)
    for part in (path.name, utils.SHA256[path.name], utils.file_sha256(path), "git checkout"):
        assert part in str(error.value)


def some_images(n, classes=10, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 32, 32, 3), np.uint8), (np.arange(n) % classes).astype(np.uint8)


@pytest.mark.parametrize("change, complaint", [
    (lambda arrays: arrays.update(x_train=arrays["x_train"][:, :16]), r"training set: got uint8 \(20, 16, 32, 3\)"),
    (lambda arrays: arrays.update(x_test=arrays["x_test"] / 255), r"test set: got float64"),
    (lambda arrays: arrays.update(y_train=arrays["y_train"] + 1), r"labels \[1 2\], expected only 0"),
    (lambda arrays: arrays.update(y_test=arrays["y_test"][:5]), r"got labels uint8 \(5,\)"),
    (lambda arrays: arrays.pop("y_test"), r"holds \['x_test', 'x_train', 'y_train'\]"),
])
def test_data_of_another_shape_is_refused(tmp_path, change, complaint):
    x, y = some_images(20, classes=2)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    change(arrays)
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=complaint):
        utils.load_ship_truck(path, utils.file_sha256(path))


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
    (x_train, y_train), (x_test, y_test) = utils.read_cifar10_binary(tmp_path)
    assert (x_train == train[0]).all() and (y_train == train[1]).all()
    assert (x_test == test[0]).all() and (y_test == test[1]).all()


def test_both_official_routes_write_the_same_bytes(tmp_path, monkeypatch):
    train, test = some_images(100), some_images(30, seed=1)
    write_official_batches(tmp_path, train, test)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((train[0], train[1][:, None]),
                                                                      (test[0], test[1][:, None])))
    sums = [utils.rebuild_ship_truck(source, tmp_path / f"{name}.npz")
            for name, source in (("keras", "keras"), ("folder", tmp_path))]
    assert sums[0] == sums[1]
    x_train, y_train, x_test, y_test = utils.load_ship_truck(tmp_path / "keras.npz", sums[0])
    assert (x_train == train[0][train[1] >= 8]).all() and (y_train == train[1][train[1] >= 8] - 8).all()
    assert (x_test == test[0][test[1] >= 8]).all() and (y_test == test[1][test[1] >= 8] - 8).all()


def test_rebuilding_from_the_shipped_images_gives_the_shipped_sum(tmp_path, monkeypatch):
    x_train, y_train, x_test, y_test = utils.load_ship_truck()
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((x_train, y_train + 8), (x_test, y_test + 8)))
    assert utils.rebuild_ship_truck("keras", tmp_path / "again.npz") == utils.SHA256["ship_truck.npz"]


def test_the_data_file_names_no_platform(tmp_path):
    with zipfile.ZipFile(utils.DATA_FILE) as archive:
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
        utils.rebuild_ship_truck(tmp_path, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_other_classes_are_equally_many_and_verified(tmp_path):
    arrays = utils.read_arrays(utils.OTHER_FILE, utils.SHA256[utils.OTHER_FILE.name])
    for split, each in (("train", 125), ("test", 250)):
        assert arrays[f"x_{split}"].shape == (8 * each, 32, 32, 3)
        assert np.bincount(arrays[f"y_{split}"]).tolist() == [each] * 8
    _, y_train, _, y_test = utils.load_other_classes()
    assert set(y_train) == set(y_test) == set(range(8))  # the quick profile keeps all classes
    with pytest.raises(FileNotFoundError, match=r"other_classes\.npz is missing.*git checkout"):
        utils.load_other_classes(tmp_path / "other_classes.npz")


def test_other_classes_are_rebuilt_from_official_batches(tmp_path):
    official = some_images(200), some_images(50)
    write_official_batches(tmp_path, *official)
    path = tmp_path / "other_classes.npz"
    sha256 = utils.rebuild_other_classes(tmp_path, path, each=(3, 2))
    arrays = utils.read_arrays(path, sha256)
    for split, each, (x, y) in zip(("train", "test"), (3, 2), official):
        keep = np.sort(np.concatenate([np.flatnonzero(y == label)[:each] for label in range(8)]))
        assert (arrays[f"x_{split}"] == x[keep]).all() and (arrays[f"y_{split}"] == y[keep]).all()


def test_an_empty_class_is_named(tmp_path):
    path = tmp_path / "other_classes.npz"
    full, without_cats = np.arange(8, dtype=np.uint8), np.uint8([0, 1, 2, 4, 5, 6, 7])
    images = np.zeros((8, 32, 32, 3), np.uint8)
    sha256 = utils.write_arrays(path, {"x_train": images, "y_train": full, "x_test": images[1:], "y_test": without_cats})
    with pytest.raises(ValueError, match="has no cat in y_test"):
        utils.load_other_classes(path, sha256)


def test_the_split_is_stratified_disjoint_and_fixed():
    y = np.repeat(np.array([0, 1], np.uint8), 500)
    training, validation = utils.split_indices(y)
    assert sorted([*training, *validation]) == list(range(1000))
    assert np.bincount(y[validation]).tolist() == [50, 50]
    assert (utils.split_indices(y)[1] == validation).all()


def test_quick_splits_are_stratified():
    for (x, y), n in zip(utils.load_splits(), (400, 100, 200)):
        assert len(x) == n and np.bincount(y).tolist() == [n // 2, n // 2]


# --- Photos --------------------------------------------------------------------------------------


def save(tmp_path, image, name="photo.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode, colour, expected", [
    ("L", 100, (100, 100, 100)), ("1", 1, (255, 255, 255)), ("RGB", (1, 2, 3), (1, 2, 3)),
    ("RGBA", (10, 20, 30, 255), (10, 20, 30)), ("RGBA", (10, 20, 30, 0), (255, 255, 255)), ("LA", (7, 255), (7, 7, 7)),
    ("I;16", 257 * 200, (200, 200, 200)),
])
def test_every_colour_mode_becomes_rgb(tmp_path, mode, colour, expected):
    photo = utils.load_photo(save(tmp_path, Image.new(mode, (3, 2), colour)))
    assert photo.shape == (2, 3, 3) and photo.dtype == np.uint8
    assert (photo == expected).all()


def test_cmyk_palette_and_animation(tmp_path):
    red = utils.load_photo(save(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "red.jpg"))[4, 4]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "white")]
    first = utils.load_photo(save(tmp_path, frames[0], "two.gif", save_all=True, append_images=frames[1:]))
    assert (first == (0, 0, 255)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (utils.load_photo(save(tmp_path, stored, exif=exif)) == upright).all()


@pytest.mark.parametrize("size", [(1, 1), (8000, 20), (20, 8000)])
def test_extreme_sizes_are_read_and_classified(tmp_path, size):
    path = save(tmp_path, Image.new("RGB", size, "navy"))
    height, width, _ = utils.load_photo(path).shape
    assert 1 <= min(height, width) <= min(size) and max(height, width) <= max(size)
    class_name, probability = utils.classify_photo(tiny_classifier(), path)
    assert class_name in utils.CLASS_NAMES and 0.5 <= probability <= 1


def test_a_bad_photo_gets_one_clear_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no photo at .*gone.jpg"):
        utils.load_photo(tmp_path / "gone.jpg")
    text = tmp_path / "text.jpg"
    text.write_text("not a photo")
    with pytest.raises(ValueError, match="text.jpg is not an image"):
        utils.load_photo(text)
    whole = save(tmp_path, Image.fromarray(some_images(1)[0][0]), "cut.jpg")
    whole.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(ValueError, match="cut.jpg can't be read as an image"):
        utils.load_photo(whole)


# --- Judging -------------------------------------------------------------------------------------


def test_score_is_wilson():
    # 81 right of 263: the worked example of Newcombe (1998), Wilson without continuity correction.
    result = utils.score(np.ones(263), np.r_[np.ones(81), np.zeros(182)])
    assert result["accuracy"] == 81 / 263 and result["n"] == 263
    assert result["interval95"] == pytest.approx([0.2553, 0.3662], abs=5e-5)


@pytest.mark.parametrize("probability, complaint", [
    ([0.5], "2 labels and 1 probabilities"), ([0.5, np.nan], "numbers from 0 to 1"), ([0.5, 1.1], "numbers from 0 to 1")])
def test_score_refuses_what_is_no_probability(probability, complaint):
    with pytest.raises(ValueError, match=complaint):
        utils.score(np.array([0, 1]), probability)


def test_errors_are_drawn_surest_first():
    figure = utils.plot_errors(some_images(4)[0], np.array([0, 0, 1, 1]), np.array([0.6, 0.9, 0.95, 0.4]))
    assert [axis.get_title() for axis in figure.axes[:4]] == ["truck? 0.90", "truck? 0.60", "ship? 0.60", ""]


def test_a_seed_gives_the_same_numbers():
    draws = []
    for seed in (3, 3, 4):
        utils.set_seed(seed)
        draws.append(keras.random.normal((3,)).numpy().tolist())
    assert draws[0] == draws[1] != draws[2]


# --- VGG16 ---------------------------------------------------------------------------------------


def test_shipped_weights_load_in_keras_by_themselves_and_are_frozen():
    base = utils.load_vgg16()
    assert utils.count_parameters(base) == {"trainable": 0, "frozen": 14_714_688}
    # First kernel value (of the input channel that Caffe counts first) and bias of the published weights.
    kernel, bias = base.get_layer("block1_conv1").get_weights()
    assert kernel[0, 0, 2, 0] == pytest.approx(0.4800154, rel=1e-3) and bias[0] == pytest.approx(0.73429835, rel=1e-3)


@pytest.mark.parametrize("layers", [
    [keras.Input((4,)), keras.layers.Dense(2)],
    [keras.Input((32, 32, 3)), keras.layers.Conv2D(64, 3)],  # fits VGG16's first layer, and no other
])
def test_weights_of_another_network_are_refused(tmp_path, layers):
    path = tmp_path / "other.weights.h5"
    keras.Sequential(layers).save_weights(path)
    with pytest.raises(ValueError, match="SHA-256"):
        utils.load_vgg16(path)
    with pytest.raises(ValueError, match="other.weights.h5 doesn't hold the weights of VGG16"):
        utils.load_vgg16(path, utils.file_sha256(path))


def test_the_download_route_gives_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setattr("keras.src.applications.vgg16.file_utils.get_file", lambda *_, **__: str(utils.WEIGHTS_FILE))
    base = utils.load_vgg16("imagenet")
    utils.save_vgg16_weights(base, tmp_path / "again.weights.h5")
    assert (utils.weights_sha256(utils.load_vgg16(tmp_path / "again.weights.h5",
                                                  utils.file_sha256(tmp_path / "again.weights.h5")))
            == utils.weights_sha256(base) == utils.weights_sha256(utils.load_vgg16()))


@pytest.fixture(scope="module")
def base():
    return utils.load_vgg16()


def test_features_are_those_of_keras_and_come_from_the_cache(output, base, monkeypatch):
    x = some_images(3)[0]
    features = utils.vgg16_features(base, x, 64, ["block4_pool", "block5_pool"], 2, batch_size=2)
    assert {name: values.shape for name, values in features.items()} == {"block4_pool": (3, 2048), "block5_pool": (3, 2048)}
    enlarged = keras.ops.image.resize(x.astype("float32"), (64, 64))
    direct = base.predict(keras.applications.vgg16.preprocess_input(enlarged), verbose=0).reshape(3, -1)
    assert features["block5_pool"] == pytest.approx(direct, rel=2e-3, abs=1e-2)

    monkeypatch.setattr(utils, "vgg16_extractor", None)  # a second extraction would now fail
    again = utils.vgg16_features(base, x, 64, ["block4_pool", "block5_pool"], 2)
    assert (again["block4_pool"] == features["block4_pool"]).all()


@pytest.mark.parametrize("change", ["image", "weights", "size", "layer", "grid"])
def test_stale_features_are_never_used(output, base, change, monkeypatch):
    x, size, layer, grid = some_images(2)[0], 32, "block4_pool", 1
    utils.vgg16_features(base, x, size, [layer], grid)
    if change == "image":
        x = x.copy()
        x[0, 0, 0, 0] ^= 1
    if change == "weights":
        monkeypatch.setattr(utils, "weights_sha256", lambda model: "other")
    size = 64 if change == "size" else size
    layer = "block3_pool" if change == "layer" else layer
    grid = 2 if change == "grid" else grid
    utils.vgg16_features(base, x, size, [layer], grid)
    assert len(list((output / "cache").iterdir())) == 2


def test_an_interrupted_extraction_leaves_no_file(output, base, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        utils.vgg16_features(base, some_images(2)[0], 32, ["block4_pool"], 1)
    assert not list((output / "cache").iterdir())


# --- Models and results --------------------------------------------------------------------------


def tiny_classifier():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(2, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    return utils.classifier(keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x))), "tiny")


def test_a_saved_model_takes_images_of_any_size_and_gives_the_same_answer(output):
    model, x = tiny_classifier(), some_images(4)[0]
    utils.save_model(model, "tiny")
    loaded = utils.load_model("tiny")
    assert loaded.input.dtype == "uint8"
    probability = loaded.predict(x, verbose=0)
    assert (probability == model.predict(x, verbose=0)).all() and probability.shape == (4, 1)
    plain = [np.full((1, *size, 3), 80, np.uint8) for size in ((32, 32), (1, 1), (90, 400))]
    answers = [loaded.predict(image, verbose=0).item() for image in plain]
    assert answers == pytest.approx(answers[:1] * 3, abs=1e-5)


def test_a_model_is_saved_without_its_optimizer(output):
    model = tiny_classifier()
    model.compile("adam", "binary_crossentropy", jit_compile=False)
    model.fit(some_images(4)[0], np.array([0, 1, 0, 1]), verbose=0)
    utils.save_model(model, "tiny")
    loaded = keras.saving.load_model(output / "models" / "tiny.keras")
    assert model.optimizer and getattr(loaded, "optimizer", None) is None


def test_the_mirror_image_gets_the_same_answer():
    x, model = some_images(4)[0], tiny_classifier()
    assert model.predict(x[:, :, ::-1], verbose=0) == pytest.approx(model.predict(x, verbose=0), abs=1e-6)


def test_without_mirroring_the_answer_is_the_network_s():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    network = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
                                keras.layers.Dense(1)])
    plain = utils.classifier(network, "plain", mirror=False).predict(images, verbose=0)
    expected = keras.ops.sigmoid(network.predict(images.astype("float32"), verbose=0))
    assert plain == pytest.approx(np.asarray(expected), abs=1e-6)
    assert utils.classifier(network, "both").predict(images, verbose=0) != pytest.approx(plain, abs=1e-3)


def test_a_missing_model_says_how_to_get_it(output):
    with pytest.raises(FileNotFoundError, match="three_block_cnn.keras is missing.*make run"):
        utils.load_model("three_block_cnn")


@pytest.mark.parametrize("name, n, slack", [("three_block_cnn", 2000, 0.002), ("vgg16_transfer", 200, 0.02)])
def test_committed_models_reach_the_committed_accuracy(name, n, slack, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", utils.ROOT)
    _, _, x_test, y_test = utils.load_ship_truck()
    every = len(x_test) // n
    model = utils.load_model(name)
    accuracy = utils.score(y_test[::every], model.predict(x_test[::every], verbose=0))["accuracy"]
    assert accuracy == pytest.approx(utils.load_results(name, utils.ROOT / "results")["test"]["accuracy"], abs=slack)


def some_results():
    return {"settings": {"seed": 0}, "history": {key: [0.5, 0.25] for key in utils.HISTORY_KEYS},
            "validation": utils.score(np.ones(4), np.ones(4)), "test": utils.score(np.ones(4), np.ones(4)),
            "parameters": {"trainable": 1, "frozen": 0}}


def test_results_come_back_as_written(output):
    utils.save_results("run", **some_results())
    results = utils.load_results("run", output / "results")
    assert {key: results[key] for key in some_results()} == some_results()
    assert results["data_sha256"] == utils.SHA256["ship_truck.npz"] and results["versions"]["keras"] == keras.__version__


@pytest.mark.parametrize("content, error, complaint", [
    (None, FileNotFoundError, "run.json is missing; `make run`"),
    ("{", ValueError, "run.json is not JSON"),
    ("[1]", ValueError, "run.json has an older layout"),
    (json.dumps({"accuracy": 0.97}), ValueError, "run.json has an older layout, without settings"),
    (json.dumps({**some_results(), "data_sha256": "", "versions": {}, "test": {"accuracy": 1}}), ValueError,
     "without test.n, test.interval95"),
])
def test_missing_or_older_results_are_refused(tmp_path, content, error, complaint):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(error, match=complaint):
        utils.load_results("run", tmp_path)


def test_a_diverged_run_is_not_written(output):
    results = some_results()
    results["history"]["loss"][1] = float("nan")
    with pytest.raises(ValueError):
        utils.save_results("run", **results)
    assert not list((output / "results").iterdir())


def test_a_missing_ladder_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ladder\.json is missing; `make ladder`"):
        utils.format_ladder("vgg16_transfer")


def test_timing_is_added_not_replaced(output):
    utils.save_timing("a", train=1.25)
    utils.save_timing("b", train=2.0)
    assert json.loads((output / "results" / "timing.json").read_text()) == {"a": {"train": 1.2}, "b": {"train": 2.0}}


# --- Figures and the README ----------------------------------------------------------------------


def test_unchanged_numbers_give_unchanged_figures(output):
    files = []
    for _ in range(2):
        utils.save_figure(utils.plot_history(some_results()["history"], "three_block_cnn"), "curves")
        files.append([(output / "figures" / f"curves{suffix}").read_bytes() for suffix in (".png", ".svg")])
    assert files[0] == files[1]


@pytest.mark.parametrize("damage, complaint", [
    (lambda entry, probability: entry["settings"].update(epochs=99), r"vgg16_transfer is from other settings \(epochs\): epochs is 99, expected 16"),
    (lambda entry, probability: entry.update(seeds=[0, 1, 1, 3, 4]), "repeats a seed"),
    (lambda entry, probability: probability.__setitem__((0, 0), np.nan), "no probabilities")])
def test_bad_seeds_are_refused(tmp_path, damage, complaint):
    committed = utils.ROOT / "results"
    for name in ("three_block_cnn", "vgg16_transfer"):
        shutil.copy(committed / f"{name}.json", tmp_path)
    seeds = json.loads((committed / "seeds.json").read_text())
    with np.load(committed / "seeds.npz") as file:
        probabilities = dict(file)
    damage(seeds["vgg16_transfer"], probabilities["vgg16_transfer"])
    (tmp_path / "seeds.json").write_text(json.dumps(seeds))
    np.savez(tmp_path / "seeds.npz", **probabilities)
    with pytest.raises(ValueError, match=complaint):
        utils.load_seeds(tmp_path)


def test_text_between_markers_is_replaced(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- results -->\nold\n<!-- /results -->\nz\n")
    utils.replace_between(path, "results", "| new |\n")
    assert path.read_text() == "a\n<!-- results -->\n| new |\n<!-- /results -->\nz\n"
    path.write_text("no markers")
    with pytest.raises(ValueError, match="has 0 pairs of <!-- results -->"):
        utils.replace_between(path, "results", "x")
    assert path.read_text() == "no markers"
