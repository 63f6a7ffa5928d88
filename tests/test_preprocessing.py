import dataclasses
import hashlib
import importlib.util
import io
import json
import math
import pathlib
import struct

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnext import pillow, registry
from keras_resnext.preprocessing import (
    decode_predictions,
    eval_transform,
    preprocess_input,
    usual_classes,
)

anywhere = pytest.mark.anywhere
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
# Bilinear and bicubic, with and without a cut, of odd and even differences.
TRANSFORMS = {
    "resnext50_32x4d/imagenet1k_v2": (232, 224, Image.Resampling.BILINEAR),
    "resnext50_32x4d/imagenet1k_v1": (256, 224, Image.Resampling.BILINEAR),
    "resnext50_32x4d/a3_in1k": (235, 224, Image.Resampling.BICUBIC),
    "resnext50_32x4d/ra_in1k": (303, 288, Image.Resampling.BICUBIC),
    "resnext50_32x4d/a1h_in1k": (288, 288, Image.Resampling.BICUBIC),
}
# Only what scikit-image's wheel contains: nothing here is downloaded.
PICTURES = (
    "astronaut.png",
    "brick.png",  # grey
    "chelsea.png",
    "coffee.png",
    "color.png",
    "horse.png",
    "logo.png",  # transparent
    "motorcycle_left.png",
    "page.png",  # grey
    "retina.jpg",
    "rocket.jpg",
)


def picture(name):
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        pytest.skip("scikit-image, which brings the pictures, is missing")
    return pathlib.Path(spec.origin).parent / "data" / name


def reference(path, resize, crop, resample):
    """The textbook way, in 0..1: Pillow's resize, a slice of the array."""
    image = Image.open(path)
    if image.mode == "P":
        image = image.convert("RGBA")
    image = image.convert("RGB")
    width, height = image.size
    if width < height:
        size = resize, math.floor(resize * height / width)
    else:
        size = math.floor(resize * width / height), resize
    pixels = np.asarray(image.resize(size, resample)) / 255
    top, left = (round((n - crop) / 2) for n in pixels.shape[:2])
    return pixels[top : top + crop, left : left + crop]


def unit(x):
    """Returns normalised values as values in 0..1."""
    return np.asarray(x) * STD + MEAN


def random(shape, dtype="uint8", seed=0):
    values = np.random.default_rng(seed).integers(0, 256, shape)
    return values.astype(dtype)


def expected(x, axis=-1):
    x = np.moveaxis(np.float64(x), axis, -1)
    return np.moveaxis((x / 255 - MEAN) / STD, -1, axis)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def small(crop=4, resize=4):
    row = registry.CHECKPOINTS["resnet18", "imagenet1k_v1"]
    return eval_transform(dataclasses.replace(row, crop=crop, resize=resize))


# preprocess_input


@anywhere
@pytest.mark.parametrize("shape", [(5, 6, 3), (2, 5, 6, 3)])
@pytest.mark.parametrize(
    "dtype",
    ["uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"],
)
def test_arrays_keep_their_kind_and_are_not_written(shape, dtype):
    x = random(shape, dtype)
    x.flags.writeable = False
    before = x.copy()
    y = preprocess_input(x, data_format="channels_last")
    assert isinstance(y, np.ndarray)
    assert y.dtype == (dtype if "float" in dtype else "float32")
    np.testing.assert_array_equal(x, before)
    tolerance = {"float16": 4e-3, "bfloat16": 4e-2}.get(dtype, 1e-6)
    y = y.astype("float64")
    np.testing.assert_allclose(y, expected(x), atol=tolerance)


@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 3, 5, 6)])
def test_channels_first(shape):
    x = random(shape)
    y = preprocess_input(x, data_format="channels_first")
    np.testing.assert_allclose(y, expected(x, axis=-3), atol=1e-6)
    tensor = preprocess_input(keras.ops.convert_to_tensor(x), "channels_first")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(tensor), y, atol=1e-6)


@anywhere
def test_the_setting_of_keras_is_the_default():
    x = random((3, 5, 6))
    before = keras.config.image_data_format()
    try:
        keras.config.set_image_data_format("channels_first")
        y = preprocess_input(x)
    finally:
        keras.config.set_image_data_format(before)
    np.testing.assert_allclose(y, expected(x, axis=-3), atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float32"])
def test_backend_tensors(dtype):
    x = keras.ops.convert_to_tensor(random((2, 5, 6, 3), dtype))
    before = keras.ops.convert_to_numpy(x).copy()
    y = preprocess_input(x)
    assert keras.ops.is_tensor(y)
    assert keras.backend.standardize_dtype(y.dtype) == (
        "float16" if dtype == "float16" else "float32"
    )
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(x), before)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(y),
        preprocess_input(before),
        atol=4e-3 if dtype == "float16" else 1e-6,
    )


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_symbolic_tensors_become_a_part_of_the_model(dtype, tmp_path):
    inputs = keras.Input((None, None, 3), dtype=dtype)
    model = keras.Model(inputs, preprocess_input(inputs))
    model.save(tmp_path / "model.keras")
    x = random((2, 5, 6, 3), dtype)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for network in (model, loaded):
        y = network.predict(x, verbose=0)
        np.testing.assert_allclose(y, expected(x), atol=1e-6)


@anywhere
def test_agrees_with_keras_applications():
    x = random((2, 5, 6, 3), "float32")
    theirs = keras.applications.imagenet_utils.preprocess_input(
        x.copy(), mode="torch"
    )
    np.testing.assert_allclose(preprocess_input(x), theirs, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_tf_data_with_any_backend(dtype):
    tf = pytest.importorskip("tensorflow")
    x = random((2, 5, 6, 3), dtype)
    dataset = tf.data.Dataset.from_tensor_slices(x)
    (y,) = dataset.map(preprocess_input).batch(2)
    assert y.dtype == tf.float32
    np.testing.assert_allclose(y.numpy(), preprocess_input(x), atol=1e-6)
    # Decoded pictures have no static rank there.
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(x), output_signature=tf.TensorSpec(None, dtype)
    )
    (y,) = dataset.map(preprocess_input).batch(2)
    np.testing.assert_allclose(y.numpy(), preprocess_input(x), atol=1e-6)


@anywhere
def test_unknown_data_format():
    with pytest.raises(ValueError, match=r"Received: data_format='NCHW'\."):
        preprocess_input(random((5, 6, 3)), data_format="NCHW")


@anywhere
@pytest.mark.parametrize("shape", [(5, 6, 1), (5, 6), (1, 2, 5, 6, 3)])
def test_shapes_that_are_no_rgb_image(shape):
    with pytest.raises(ValueError, match=r"RGB images.*Received: x.shape=\("):
        preprocess_input(random(shape))
    with pytest.raises(ValueError, match="data_format='channels_first'"):
        preprocess_input(random((2, 5, 6, 3)), "channels_first")


@anywhere
@pytest.mark.parametrize(
    "x", [[[[1, 2, 3]]], Image.new("RGB", (4, 4)), "cat.jpg", None]
)
def test_what_is_no_array(x):
    requirement = "`x` must be an array or a tensor. Received: x="
    with pytest.raises(ValueError, match=f"{requirement}'{type(x).__name__}'"):
        preprocess_input(x)


# decode_predictions


def scores(columns, **best):
    preds = np.zeros((1, columns), "float32")
    for index, score in best.items():
        preds[0, int(index[1:])] = score
    return preds


@anywhere
def test_imagenet_names():
    preds = scores(1000, c281=0.5, c0=0.25, c999=0.125)
    assert decode_predictions(preds, top=3) == [
        [
            ("n02123045", "tabby", 0.5),
            ("n01440764", "tench", 0.25),
            ("n15075141", "toilet_tissue", 0.125),
        ]
    ]
    both = np.concatenate([preds, scores(1000, c517=1.0)])
    first, second = decode_predictions(both)
    assert len(first) == len(second) == 5
    assert second[0] == ("n03126707", "crane", 1.0)
    assert isinstance(second[0][2], np.float32)


@anywhere
def test_names_are_those_of_keras():
    # Keras publishes the MD5 of its index, a JSON file: write that file.
    preds = np.arange(1000.0, 0, -1)[None]
    (decoded,) = decode_predictions(preds, top=1000)
    index = {str(i): row[:2] for i, row in enumerate(decoded)}
    assert (
        hashlib.md5(json.dumps(index).encode()).hexdigest()
        == "c2c37ea517e94d9795004a39431a14cb"
    )


@anywhere
def test_cifar10_names():
    preds = scores(10, c3=0.75, c9=0.25)
    assert decode_predictions(preds, top=2) == [
        [("cifar10_3", "cat", 0.75), ("cifar10_9", "truck", 0.25)]
    ]
    assert len(decode_predictions(preds, top=20)[0]) == 10


@anywhere
def test_ties_go_to_the_lower_class():
    (row,) = decode_predictions(scores(10, c7=0.5, c2=0.5), top=4)
    assert [name for _, name, _ in row] == [
        "bird",
        "horse",
        "airplane",
        "automobile",
    ]


def test_predictions_may_be_tensors():
    preds = keras.ops.convert_to_tensor(scores(10, c3=1.0))
    assert decode_predictions(preds)[0][0] == ("cifar10_3", "cat", 1.0)


@anywhere
@pytest.mark.parametrize("shape", [(1000,), (1, 100), (2, 3, 1000)])
def test_predictions_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"Received: preds.shape=\("):
        decode_predictions(np.zeros(shape))


@anywhere
@pytest.mark.parametrize("top", [0, "3", 1.5, True])
def test_top_must_be_positive(top):
    with pytest.raises(ValueError, match=rf"Received: top={top!r}\. Leave it"):
        decode_predictions(np.zeros((1, 1000)), top=top)


# eval_transform


@anywhere
@pytest.mark.parametrize("name", PICTURES)
def test_transform_is_torchvisions_and_timms(name):
    path = picture(name)
    for checkpoint, arguments in TRANSFORMS.items():
        y = eval_transform(checkpoint)(path)
        assert y.dtype == np.float32
        # Far below the 1/255 that one grey level makes.
        np.testing.assert_allclose(
            unit(y), reference(path, *arguments), atol=1e-6
        )


@anywhere
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_transform_on_photographs(name):
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        pytest.skip("scikit-learn, which brings the photographs, is missing")
    path = pathlib.Path(spec.origin).parent / "datasets" / "images" / name
    for checkpoint, arguments in TRANSFORMS.items():
        y = eval_transform(checkpoint)(path)
        np.testing.assert_allclose(
            unit(y), reference(path, *arguments), atol=1e-6
        )


@anywhere
@pytest.mark.parametrize("key", registry.CHECKPOINTS, ids="/".join)
def test_every_checkpoint_has_its_transform(key):
    row = registry.CHECKPOINTS[key]
    y = eval_transform("/".join(key))(random((40, 50, 3)))
    assert eval_transform(row) == eval_transform("/".join(key))
    assert y.shape == (row.crop, row.crop, 3)


@anywhere
def test_an_architecture_stands_for_its_imagenet_checkpoint():
    assert (
        eval_transform("resnext50_32x4d").checkpoint
        == registry.CHECKPOINTS["resnext50_32x4d", "a1h_in1k"]
    )


@anywhere
@pytest.mark.parametrize(
    ("checkpoint", "advice"),
    [
        ("resnext29/cifar", "Pass one of resnext29/cifar10."),
        ("resnext29", "Pass one of resnext29/cifar10."),
        ("resnet50d", "Pass one of another architecture."),
        ("resnext50_32x4d/a9_in1k", "resnext50_32x4d/a1h_in1k, "),
        (5, "Pass, for instance, 'resnext50_32x4d/imagenet1k_v2'."),
    ],
)
def test_checkpoints_that_are_none(checkpoint, advice):
    with pytest.raises(ValueError, match="`checkpoint` must be") as caught:
        eval_transform(checkpoint)
    assert f"Received: checkpoint={checkpoint!r}. Pass" in str(caught.value)
    assert advice in str(caught.value)


def test_every_kind_of_input_gives_the_same():
    path = picture("chelsea.png")
    transform = eval_transform("resnext50_32x4d")
    y = transform(path)
    pixels = np.asarray(Image.open(path))
    pixels.flags.writeable = False
    for image in (
        str(path),
        path.read_bytes(),
        Image.open(path),
        pixels,
    ):
        result = transform(image)
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, y)
    # NumPy's arrays for tensors, too, save those of TensorFlow.
    result = transform(keras.ops.convert_to_tensor(pixels))
    on_tensorflow = keras.backend.backend() == "tensorflow"
    assert isinstance(result, np.ndarray) != on_tensorflow
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(result), y)


@anywhere
def test_preprocess_input_is_the_same_normalisation():
    pixels = random((4, 4, 3))
    np.testing.assert_allclose(
        small()(pixels), preprocess_input(pixels), atol=1e-6
    )


def test_tf_data_gives_the_same_bits():
    tf = pytest.importorskip("tensorflow")
    paths = [str(picture(name)) for name in ("chelsea.png", "rocket.jpg")]
    transform = eval_transform("resnext50_32x4d/a3_in1k")
    y = np.stack([transform(path) for path in paths])
    files = tf.data.Dataset.from_tensor_slices(paths)
    contents = files.map(tf.io.read_file)
    pixels = contents.map(
        lambda data: tf.io.decode_image(data, expand_animations=False)
    ).take(1)  # the PNG: decoders of JPEG differ
    for dataset in (files, contents, pixels):
        dataset = dataset.map(transform)
        assert dataset.element_spec.shape == (224, 224, 3)
        assert dataset.element_spec.dtype == tf.float32
        results = np.stack(list(dataset.as_numpy_iterator()))
        np.testing.assert_array_equal(results, y[: len(results)])
    eager = transform(tf.constant(paths[0]))
    assert tf.is_tensor(eager)
    np.testing.assert_array_equal(eager.numpy(), y[0])


@anywhere
def test_broken_files_in_tf_data_are_named(tmp_path):
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "broken.png"
    path.write_bytes(picture("chelsea.png").read_bytes()[:5000])
    dataset = tf.data.Dataset.from_tensors(str(path)).map(small())
    with pytest.raises(tf.errors.OpError, match=r"broken\.png"):
        next(iter(dataset))


@anywhere
@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 7), (90, 90, 90)),
        ("RGBA", (10, 200, 30, 0), (10, 200, 30)),
        ("CMYK", (0, 255, 0, 0), (255, 0, 255)),
        ("I;16", 90 * 256 + 255, (90, 90, 90)),
        ("I", 90 * 256 + 255, (90, 90, 90)),
        ("I", 90, (90, 90, 90)),
    ],
)
def test_modes_become_rgb(mode, colour, rgb):
    image = Image.new(mode, (6, 5), colour)
    sources = [image]
    if mode not in ("CMYK", "I"):
        sources.append(encoded(image))
    sources.append(encoded(image, "TIFF"))
    for source in sources:
        y = unit(small()(source)) * 255
        np.testing.assert_allclose(y, np.broadcast_to(rgb, y.shape), atol=1e-4)


@anywhere
def test_arrays_of_one_and_four_channels():
    grey, alpha = random((6, 4)), random((6, 4, 1))
    y = small()(np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(small()(grey), y)
    np.testing.assert_array_equal(small()(grey[..., None]), y)
    rgba = np.concatenate([np.stack([grey] * 3, axis=-1), alpha], axis=-1)
    np.testing.assert_array_equal(small()(rgba), y)


@anywhere
def test_what_is_no_picture_has_no_address():
    with pytest.raises(ValueError, match=r"10 bytes \(it is in none of the f"):
        small()(b"\0 no image")


@anywhere
def test_formats_that_pillow_lacks_are_not_named(monkeypatch):
    monkeypatch.setattr(pillow, "FORMATS", ("JPEG", "HEIF of nobody"))
    with pytest.raises(ValueError, match=r"the formats JPEG\)"):
        pillow.decode(b"\0 no image")


@anywhere
def test_postscript_is_not_run(tmp_path):
    path = tmp_path / "drawing.png"
    Image.new("RGB", (6, 5)).save(path, "EPS")
    encoded = path.read_bytes()
    for source in (path, encoded):
        with pytest.raises(ValueError, match="in none of the formats JPEG, "):
            small()(source)
    with pytest.raises(ValueError, match="a program, which is not run"):
        small()(Image.open(io.BytesIO(encoded)))


@anywhere
def test_icons_are_not_decoded():
    """Pillow decodes them as it opens them, of whatever size they are."""
    buffer = io.BytesIO()
    Image.new("1", (15_000, 15_000)).save(buffer, "PNG")
    png = buffer.getvalue()
    # One picture of 256 x 256, it says; its own header says otherwise.
    header = struct.pack("<3H4B2H2I", 0, 1, 1, 0, 0, 0, 0, 1, 1, len(png), 22)
    with pytest.raises(ValueError, match="in none of the formats JPEG, "):
        small()(header + png)


@anywhere
def test_palette_with_transparency():
    image = Image.new("P", (6, 5), 1)
    image.putpalette([1, 2, 3, 40, 50, 60])
    data = encoded(image, transparency=bytes([255, 0]))
    y = unit(small()(data)) * 255
    np.testing.assert_allclose(y, np.broadcast_to((40, 50, 60), y.shape), 1e-4)


@anywhere
def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 6), (v, v, v)) for v in (0, 255)]
    data = encoded(
        frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100
    )
    np.testing.assert_allclose(unit(small()(data)), 0, atol=1e-6)


@anywhere
def test_exif_rotation_is_ignored():
    image = Image.fromarray(random((8, 8, 3)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = encoded(image, exif=exif.tobytes()), encoded(image)
    assert turned != plain
    np.testing.assert_array_equal(small()(turned), small()(plain))


@anywhere
@pytest.mark.parametrize(("size", "before"), [(3, 0), (2, 1), (1, 1)])
def test_what_is_smaller_than_the_crop_is_padded_with_black(size, before):
    y = unit(small(crop=4, resize=size)(np.full((9, 9, 3), 255, "uint8")))
    inside = slice(before, before + size)
    np.testing.assert_allclose(y[inside, inside], 1, atol=1e-6)
    assert np.isclose(y, 1, atol=1e-6).all(-1).sum() == size**2
    np.testing.assert_allclose(y.sum(), 3 * size**2, atol=1e-4)


@anywhere
@pytest.mark.parametrize(
    ("length", "start"), [(4, 0), (5, 0), (6, 1), (7, 2), (9, 2), (11, 4)]
)
def test_odd_crops_round_to_the_even_neighbour(length, start):
    columns = np.arange(length, dtype="uint8") * 20
    pixels = np.broadcast_to(columns[None, :, None], (4, length, 3))
    y = unit(small(crop=4)(np.ascontiguousarray(pixels)))
    assert round(y[0, 0, 0] * 255 / 20) == start


@anywhere
@pytest.mark.parametrize("length", [5, 1000])
def test_broken_pictures(tmp_path, length):
    data = picture("chelsea.png").read_bytes()[:length]
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"image='.*broken\.png' \(.+\)\. Replace or remove"
    ):
        small()(path)
    with pytest.raises(ValueError, match=f"image={length} bytes"):
        small()(data)


@anywhere
def test_a_picture_that_pillow_has_opened_may_be_broken():
    data = picture("chelsea.png").read_bytes()[:50_000]
    with pytest.raises(ValueError, match=r"image=a picture \(.+\)\. Replace"):
        small()(Image.open(io.BytesIO(data)))


@anywhere
def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        small()(tmp_path / "absent.png")


@anywhere
def test_16_bits_that_are_dark_stay_so():
    """Where a picture says how many bits it has, nothing is guessed."""
    values = np.full((5, 6), 90, ">u2")
    pgm = b"P5 6 5 65535\n" + values.tobytes()
    for source in (pgm, encoded(Image.fromarray(values.astype("uint16")))):
        np.testing.assert_allclose(unit(small()(source)), 0, atol=1e-6)


@anywhere
def test_paths_without_an_end():
    with pytest.raises(ValueError, match=r"'a\\x00b' \(no path has a zero"):
        small()("a\0b")


@anywhere
@pytest.mark.parametrize(
    "header", [b"P6\n4 5\n255\n", b"P6 # of # mine\n#too\n 4 5 255\n"]
)
def test_a_picture_without_a_zero_byte_in_tf_data(header):
    tf = pytest.importorskip("tensorflow")
    data = header + b"\x7f\x10\x20" * 20
    dataset = tf.data.Dataset.from_tensors(data).map(small())
    np.testing.assert_array_equal(next(iter(dataset)), small()(data))


@anywhere
@pytest.mark.parametrize("name", ["P6", "P5 4.png", "P7 1 1 1"])
def test_paths_that_begin_as_pictures_do(name, tmp_path, monkeypatch):
    tf = pytest.importorskip("tensorflow")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (6, 5), "red").save(name, "PNG")
    dataset = tf.data.Dataset.from_tensors(name).map(small())
    np.testing.assert_array_equal(next(iter(dataset)), small()(name))


@anywhere
def test_float_pictures_have_no_range():
    with pytest.raises(ValueError, match="floating-point and have no range"):
        small()(encoded(Image.new("F", (6, 5), 0.5), "TIFF"))


@anywhere
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5, 3), "float32"),
        np.zeros((3, 5, 5), "uint8"),
        np.zeros((1, 1, 5, 5, 3), "uint8"),
        np.zeros((0, 5, 3), "uint8"),
    ],
    ids=["float", "channels first", "five axes", "empty"],
)
def test_arrays_that_are_no_picture(image):
    with pytest.raises(ValueError, match=r"Received: image.shape=\("):
        small()(image)


# Limits


@anywhere
def test_a_phone_makes_no_bomb(monkeypatch):
    """Below our limit Pillow's own warnings and errors are lifted."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    small()(encoded(Image.fromarray(random((8, 8, 3)))))
    assert Image.MAX_IMAGE_PIXELS == 20


@anywhere
@pytest.mark.parametrize(
    ("side", "message"),
    [
        ((9, 8), r"at most 64 pixels.*of 9 x 8 pixels\. .*`max_pixels`"),
        ((1, 101), r"at most 100 times.*of 1 x 101 pixels\. Make it smaller"),
    ],
)
def test_pictures_that_are_too_large(side, message):
    transform = eval_transform("resnext50_32x4d", max_pixels=64)
    image = Image.new("L", side)
    data = encoded(image)
    for source in (image, data, np.asarray(image)):
        with pytest.raises(ValueError, match=message):
            transform(source)


@anywhere
@pytest.mark.parametrize("max_pixels", [0, -1, 1.5, None, True])
def test_limits_that_are_none(max_pixels):
    with pytest.raises(ValueError, match="`max_pixels` must be a positive"):
        eval_transform("resnext50_32x4d", max_pixels)


# Many at once


def test_many_pictures_are_as_each_one(tmp_path):
    transform = eval_transform("resnext29/cifar10")
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (5, 40, 36, 3), dtype="uint8")
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    expected = np.stack([transform(image) for image in images])
    for many in (
        images,
        list(images),
        paths,
        tuple(map(str, paths)),
        np.array(list(map(str, paths))),
        [path.read_bytes() for path in paths],
        [Image.open(path) for path in paths],
        keras.ops.convert_to_tensor(images),
    ):
        found = keras.ops.convert_to_numpy(transform(many))
        np.testing.assert_array_equal(found, expected)
    assert transform([]).shape == (0, 32, 32, 3)
    with pytest.raises(FileNotFoundError):
        transform([*paths, tmp_path / "none.png"])
    with pytest.raises(ValueError, match="4 bytes"):
        transform([paths[0], b"none"])
    with pytest.raises(ValueError, match=r"image.shape=\(\)"):
        transform([1, 2])


@anywhere
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_is_several_times_in_a_list(form):
    """Pillow decodes an opened one at first use, which is for one thread."""
    data = encoded(Image.fromarray(random((200, 300, 3))), form)
    transform = small()
    expected = np.stack([transform(data)] * 16)
    for _ in range(10):
        image = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(transform([image] * 16), expected)


def test_many_pictures_inside_of_a_dataset(tmp_path):
    tf = pytest.importorskip("tensorflow")
    transform = eval_transform("resnext29/cifar10")
    images = np.random.default_rng(0).integers(0, 255, (5, 40, 36, 3), "u1")
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    expected = transform(images)
    for many in (images, paths):
        dataset = tf.data.Dataset.from_tensor_slices(many).batch(3)
        dataset = dataset.map(transform)
        assert dataset.element_spec.shape.as_list() == [None, 32, 32, 3]
        found = np.concatenate(list(dataset.as_numpy_iterator()))
        np.testing.assert_array_equal(found, expected)


@anywhere
@pytest.mark.parametrize("outputs", [10, 1000])
def test_usual_classes_are_in_the_order_of_the_outputs(outputs):
    found = usual_classes(outputs)
    (decoded,) = decode_predictions(-np.arange(outputs)[np.newaxis], outputs)
    assert found == [(wnid, name) for wnid, name, _ in decoded]
    found.clear()  # a copy
    assert len(usual_classes(outputs)) == outputs
    assert usual_classes(outputs + 1) == []


@anywhere
def test_labels_of_ones_own():
    scores = np.array([[0.2, 0.7, 0.1], [0.5, 0.1, 0.4]])
    for labels in (["a", "b", "c"], ("a", "b", "c"), np.array(list("abc"))):
        first, second = decode_predictions(scores, top=2, labels=labels)
        assert first == [("b", "b", 0.7), ("a", "a", 0.2)]
        assert [name for _, name, _ in second] == ["a", "c"]
    ten = decode_predictions(np.eye(10), top=1, labels=list("0123456789"))
    assert ten[3] == [("3", "3", 1.0)]
    with pytest.raises(ValueError, match=r"must have the shape \(batch, 2\)"):
        decode_predictions(scores, labels=["a", "b"])
    with pytest.raises(ValueError, match="a list of names"):
        decode_predictions(scores, labels=[1, 2, 3])
    with pytest.raises(ValueError, match=r"a list of names.*labels='abc'"):
        decode_predictions(scores, labels="abc")
    with pytest.raises(ValueError, match=r"a list of names.*labels='5'"):
        decode_predictions(scores, labels=5)
    with pytest.raises(ValueError, match="`labels` for other classes"):
        decode_predictions(scores)
