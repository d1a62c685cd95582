"""Tests of what notebook 10 accepts as a repair: the solutions' kin, and not what only looks like one."""

import sys

import keras
import numpy as np
import pytest
from sklearn.model_selection import train_test_split

import utils

sys.path.insert(0, str(utils.ROOT / "notebooks"))
from solutions import checks  # noqa: E402


def more(images):
    return np.concatenate([images, images[:, :, ::-1], np.roll(images, 1, axis=2)])


def parts(images, labels, learn, judge):
    return images[learn], labels[learn], images[judge], labels[judge]


def stratified(images, labels):
    x_learn, x_judge, y_learn, y_judge = train_test_split(images, labels, test_size=0.2, stratify=labels)
    return x_learn, y_learn, x_judge, y_judge


def split_then_more(images, labels):
    x_learn, y_learn, x_judge, y_judge = stratified(images, labels)
    return more(x_learn), np.tile(y_learn, 3), x_judge, y_judge


def more_then_split(images, labels):
    return stratified(more(images), np.tile(labels, 3))


def without_equal_pixels(images, labels):
    x_learn, y_learn, x_judge, y_judge = more_then_split(images, labels)
    judged = {image.tobytes() for image in x_judge}
    keep = np.array([image.tobytes() not in judged for image in x_learn])
    return x_learn[keep], y_learn[keep], x_judge, y_judge


@pytest.mark.parametrize(
    "prepare, right",
    [(split_then_more, True), (more_then_split, False), (without_equal_pixels, False), (stratified, False)],
)
def test_copies(prepare, right):
    assert checks.prepare(prepare) == right


def shuffled(images, labels):
    order = np.random.default_rng(0).permutation(len(images))
    return parts(images, labels, order[40:], order[:40])


def shuffled_apart(images, labels):
    x_learn, _, x_judge, _ = shuffled(images, labels)
    return x_learn, labels[40:], x_judge, labels[:40]


def every_fifth(images, labels):
    judge = np.arange(len(images)) % 5 == 0
    return parts(images, labels, ~judge, judge)


def one_class(images, labels):
    return parts(images, labels, np.arange(40), np.arange(40, 200))


@pytest.mark.parametrize(
    "split, right", [(shuffled, True), (every_fifth, True), (shuffled_apart, False), (one_class, False)]
)
def test_folders(split, right):
    assert checks.split(split) == right


@pytest.mark.parametrize(
    "number, right",
    [
        (lambda validation, test: test[int(np.argmax(validation))], True),
        (lambda validation, test: test[validation.index(max(validation))], True),
        (lambda validation, test: max(test), False),
        (lambda validation, test: max(validation), False),
        (lambda validation, test: max(zip(validation, test))[1], False),
    ],
)
def test_one_number(number, right):
    assert checks.number(number) == right


def test_pixels_normalisation_and_accuracy():
    images = utils.load_images()[0][:50]
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3, strides=4), keras.layers.BatchNormalization(), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((32, 32, 3)), *layers, keras.layers.Dense(1, activation="sigmoid")])
    model(images / np.float32(255), training=True)

    def predict(training):
        return lambda model, images: np.ravel(model(images / np.float32(255), training=training))

    def one_by_one(model, images):
        return np.concatenate([predict(True)(model, images[[place]]) for place in range(len(images))])

    assert checks.answer(lambda model, images: model.predict(images[..., ::-1] / 255, verbose=0)[:, 0], model, images)
    assert not checks.answer(lambda model, images: model.predict(images / 255, verbose=0)[:, 0], model, images)
    assert checks.predict(predict(False), model, images)
    assert not checks.predict(one_by_one, model, images) and not checks.predict(predict(True), model, images)
    assert checks.accuracy(lambda labels, p: np.mean((p >= 0.5) == labels))
    assert not checks.accuracy(lambda labels, p: np.mean(((p >= 0.5) == labels)[abs(p - 0.5) > 0.3]))
