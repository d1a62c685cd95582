"""What notebook 10 asks of a repair. It holds the answers, so do not read it before you have your own."""

import numpy as np


def _told_apart(n):
    """Return n images of noise, (n, 32, 32, 3) uint8, whose red tells which one it is, 1 to n, in all copies."""
    images = np.random.default_rng(3).integers(0, 256, (n, 32, 32, 3), np.uint8)
    images[..., 0] = np.arange(1, n + 1).reshape(-1, 1, 1)
    return images


def _parts(split, classes):
    """Split images that can be told apart: ids and labels to learn from, ids and labels to judge by."""
    learn, labels_learn, judge, labels_judge = split(_told_apart(len(classes)), classes)
    return learn[:, 16, 16, 0].astype(int) - 1, labels_learn, judge[:, 16, 16, 0].astype(int) - 1, labels_judge


def prepare(prepare):
    """Whether no copy of a validation image is learnt from, nothing is lost, and there are still more images."""
    classes = np.arange(200) % 7 % 2
    learn, labels_learn, judge, labels_judge = _parts(prepare, classes)
    apart = not set(learn) & set(judge) and len(set(learn) | set(judge)) == 200
    right_labels = (classes[learn] == labels_learn).all() and (classes[judge] == labels_judge).all()
    return bool(apart and right_labels and 30 <= len(set(judge)) <= 50 and len(learn) > len(set(learn)))


def answer(answer, model, images):
    """Whether the network gets the pixels that it was trained on: blue first, 0 to 1."""
    expected = model.predict(images[..., ::-1] / 255, verbose=0)[:, 0]
    return bool(np.allclose(np.ravel(answer(model, images)), expected, atol=1e-4))


def honest_number(validation, test):
    """Return the test accuracy after the epoch that the validation images choose, the first where several are best."""
    return test[int(np.argmax(validation))]


def number(number):
    """Whether the epoch is chosen without the test accuracies, also where several epochs are equally good."""
    for validation, test in np.random.default_rng(1).integers(80, 90, (100, 2, 30)) / 100:
        last_best = len(validation) - 1 - int(np.argmax(validation[::-1]))
        allowed = {honest_number(validation, test), test[last_best]}
        if number(list(validation), list(test)) not in allowed:
            return False
    return True


def predict(predict, model, images):
    """Whether images are normalised by what was learnt, not by each other."""
    expected = model.predict(images / 255, verbose=0)[:, 0]
    alone = np.concatenate([np.ravel(predict(model, images[[place]])) for place in range(5)])
    return bool(
        np.allclose(np.ravel(predict(model, images)), expected, atol=1e-4)
        and np.allclose(alone, expected[:5], atol=1e-4)
    )


def split(split):
    """Whether both parts hold both classes, with their own labels, and a fifth is kept for validation."""
    classes = np.repeat([0, 1], 100)
    learn, labels_learn, judge, labels_judge = _parts(split, classes)
    mixed = all(0.25 < np.mean(labels) < 0.75 for labels in (labels_learn, labels_judge))
    right_labels = (classes[learn] == labels_learn).all() and (classes[judge] == labels_judge).all()
    whole = sorted([*learn, *judge]) == list(range(200)) and 30 <= len(judge) <= 50
    return bool(mixed and right_labels and whole)


def accuracy(accuracy):
    """Whether all images count."""
    random = np.random.default_rng(2)
    labels, probability = random.integers(0, 2, 1000), random.random(1000)
    return bool(np.isclose(accuracy(labels, probability), np.mean((probability >= 0.5) == labels)))
