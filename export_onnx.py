"""Write service/model.onnx, with which app.py answers without TensorFlow. Notebook 06 calls this."""

import utils  # before Keras: it keeps TensorFlow's start-up notes quiet
import numpy as np
import onnx
import onnxruntime

PATH = utils.OUTPUT / "service" / "model.onnx"


def halve(model):
    """Store an ONNX model's weights as float16 where that loses nothing, as with VGG16's convolutions.

    A Cast node brings each back to float32, once, when the model is loaded.
    """
    for tensor in list(model.graph.initializer):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1000 and (values == values.astype(np.float16)).all():
            name = tensor.name + "_float16"
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float16), name))
            model.graph.node.insert(0, onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT))


def is_up_to_date(model):
    """Whether the file there gives the same answers already: 20 MB that say the same are not written anew."""
    if not PATH.is_file():
        return False
    images = utils.load_ship_truck()[0][:50]
    session = onnxruntime.InferenceSession(PATH, providers=["CPUExecutionProvider"])
    there = dict(zip((output.name for output in session.get_outputs()), session.run(None, {"image": images})))
    here = model.predict(images, verbose=0)
    return there.keys() == here.keys() and all(np.allclose(there[name], here[name], atol=1e-4) for name in here)


def main():
    model = utils.detector()
    if is_up_to_date(model):
        print(f"{utils.relative(PATH)} is up to date")
        return
    model(np.zeros((1, 32, 32, 3), np.uint8))  # Keras exports only what has been called
    with utils.atomic_write(PATH) as temporary:
        model.export(temporary, format="onnx", verbose=False)
        exported = onnx.load(temporary)
        halve(exported)
        onnx.checker.check_model(exported)
        onnx.save(exported, temporary)
    print(f"{utils.relative(PATH)}: {PATH.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
