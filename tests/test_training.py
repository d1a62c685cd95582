"""Tests of what notebook 02 defines for training: augmentation, optimiser, schedule, network."""

import keras
import numpy as np
import pytest
from helpers import defined_in, some_images

import utils

PARAMETERS = {
    "batch_size": 4, "shift_pixels": 4, "mirror": True, "filters": [32, 64, 128], "convolutions": 2,
    "batch_normalization": True, "optimizer": "muon", "learning_rate": 0.02, "schedule": "one-cycle", "weight_decay": 0.1,
}  # fmt: skip


def notebook(**changes):
    """Return what notebook 02 defines, with some parameters changed."""
    modules = {"keras": keras, "layers": keras.layers, "np": np}
    return defined_in(
        "02", "batches", "convolution", "Muon", "one_cycle", "new_optimizer", **modules, **(PARAMETERS | changes)
    )


def one_epoch(x, y, pixels, **changes):
    batches = list(notebook(**changes)["batches"](x, y, pixels, np.random.default_rng(0)))
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


@pytest.mark.parametrize("pixels", [24, 32])
def test_an_epoch_has_each_image_once_cut_out_of_its_surroundings(pixels):
    x, y = some_images(10)  # the labels tell the images apart
    before = x.copy()
    images, labels = one_epoch(x, y, pixels)
    assert images.shape == (10, pixels, pixels, 3) and images.dtype == np.uint8 and (x == before).all()
    assert sorted(labels) == list(range(10)) and labels.tolist() != list(range(10))
    padded = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)), "reflect")
    for image, label in zip(images, labels):
        windows = np.lib.stride_tricks.sliding_window_view(padded[label], (pixels, pixels), axis=(0, 1))
        windows = windows.transpose(0, 1, 3, 4, 2)
        assert (windows == image).all(axis=(2, 3, 4)).any() or (windows == image[:, ::-1]).all(axis=(2, 3, 4)).any()


def test_without_augmentation_the_images_are_as_they_are():
    x, y = some_images(10)
    images, labels = one_epoch(x, y, 32, mirror=False, shift_pixels=0)
    assert (images == x[labels]).all()


def test_muon_moves_a_kernel_in_all_directions_equally_far():
    """Whatever the gradient's singular values (here 1 to 1/100), those of the step are much alike."""
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.normal(size=(72, 4)))
    right, _ = np.linalg.qr(random.normal(size=(4, 4)))
    gradient = (left @ np.diag([1, 0.3, 0.1, 0.01]) @ right).reshape(3, 3, 8, 4).astype(np.float32)
    kernel = keras.Variable(np.zeros((3, 3, 8, 4), np.float32))
    optimizer = notebook(schedule="constant", learning_rate=0.1)["new_optimizer"](10)
    optimizer.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
    moved = np.linalg.svd(np.asarray(kernel).reshape(72, 4), compute_uv=False) / (0.1 * 0.2 * 72**0.5)
    assert 0.5 < moved[2] and moved[0] < 1.3 and moved[3] > 0.1


def test_muon_leaves_to_adam_what_is_no_matrix_of_features():
    defined = notebook()
    weights, muon = defined["three_block_cnn"]().trainable_weights, defined["new_optimizer"](10)
    by_muon = [weight.shape for weight in weights if not muon._should_use_adamw(weight)]
    assert by_muon == [(3, 3, 32, 32), (3, 3, 32, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128)]


@pytest.mark.parametrize("name, kind", [("sgd", keras.optimizers.SGD), ("adamw", keras.optimizers.AdamW)])
def test_the_other_optimisers_are_there(name, kind):
    assert isinstance(notebook(optimizer=name)["new_optimizer"](10), kind)


@pytest.mark.parametrize("change", [{"optimizer": "adam"}, {"schedule": "cosine"}])
def test_what_is_not_there_is_refused_with_what_is(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} is '{value}', expected '"):
        notebook(**change)["new_optimizer"](10)


def test_the_learning_rate_climbs_for_a_fifth_and_falls_to_zero():
    optimizer, rates = notebook()["new_optimizer"](100), []
    for step in (0, 20, 60, 100):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    assert rates == pytest.approx([0, 0.02, 0.01, 0], abs=1e-6)


def test_in_bfloat16_the_answers_are_nearly_the_same_and_the_last_layer_is_exact():
    """Notebook 02 saves its network in float32, with weights that were trained in bfloat16 where that is fast."""
    x, networks = some_images(8)[0].astype("float32"), []
    for policy in ("float32", "mixed_bfloat16"):
        with utils.computing_in(policy):
            networks.append(notebook()["three_block_cnn"]())
    exact, rounded = networks
    rounded.set_weights(exact.get_weights())
    assert {weight.dtype for weight in rounded.weights} == {"float32"}
    assert [layer.compute_dtype for layer in rounded.layers][-2:] == ["bfloat16", "float32"]
    assert rounded.predict(x, verbose=0) == pytest.approx(exact.predict(x, verbose=0), abs=0.1)
