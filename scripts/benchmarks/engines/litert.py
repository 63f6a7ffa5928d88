"""LiteRT on our export."""

from benchmarks import tasks


def infer(task, precision):
    """LiteRT's interpreter on our export."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        str(tasks.artifact(task, "litert", precision)),
        num_threads=tasks.THREADS,
    )
    images = tasks.images(task)
    (image,) = interpreter.get_input_details()
    (output,) = interpreter.get_output_details()
    interpreter.resize_tensor_input(image["index"], images.shape)
    interpreter.allocate_tensors()

    def run():
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return run
