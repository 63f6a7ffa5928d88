"""Feeds pictures to `fit` and `evaluate`, in batches made ahead of time.

A batch is a pure function of seed, epoch and step. So a training that was
killed can go on in the middle of an epoch, with the batches that it would
have seen. Making one has two parts: `Plan` reads, crops and augments single
pictures with NumPy and Pillow, in threads; `Finish` resizes, mixes and
normalises whole batches with Keras, under TensorFlow in the graph of tf.data,
under JAX as one compiled function.

Grain keeps such a place, too, but draws for each picture alone, which takes
several times as long as to crop and mirror a batch of small arrays at once.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import time

import keras
import numpy as np
from keras import layers, ops
from PIL import Image, ImageOps

import keras_resnext
from common.threads import THREADS
from keras_resnext import pillow
from keras_resnext.registry import IMAGENET_MEAN, usual
from training import augment

# In 0..255, each colour's; normalisation turns it to zero.
_MEAN = [round(255 * mean) for mean in IMAGENET_MEAN]

# Of all batches that are made ahead of time.
_MOST_BYTES = 4 << 30

_TESTED = 250  # pictures in a batch to test with


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is in each training batch.

    Attributes:
        split: The `data.Split` to train with, or one whose images are
            features, float32 `(n, channels)`.
        recipe: A `recipes.Recipe`.
        size: Side of the pictures, in pixels.
        seed: Of the order and of the augmentation.
        worker: Number of this process among those that share each batch.
        workers: Number of these processes.
    """

    split: object
    recipe: object
    size: int
    seed: int
    worker: int = 0
    workers: int = 1

    @property
    def steps(self):
        """Number of batches in an epoch; the incomplete last is left out."""
        return len(self.split.labels) // self.recipe.batch_size

    def batch(self, epoch, step):
        """Returns pictures, labels and a key for further randomness.

        Returns:
            uint8 `(batch, height, width, 3)`, or features as they are; int64
            `(batch,)`; a non-negative int64.
        """
        chosen = np.array_split(self._chosen(epoch, step), self.workers)
        chosen = chosen[self.worker]
        # A zero at the end changes nothing.
        random = np.random.default_rng(
            [self.seed, int(epoch), int(step), self.worker]
        )
        images = self._images(chosen, random)
        return images, self.split.labels[chosen], random.integers(2**31)

    @property
    def forms(self):
        """Shape and type of each of these."""
        size, images = self.recipe.batch_size, self.split.images
        count = len(np.array_split(np.arange(size), self.workers)[self.worker])
        shape, dtype = (self.size, self.size, 3), np.dtype("uint8")
        if self._has_features:
            shape, dtype = images.shape[1:], images.dtype
        elif not self._single:
            shape = (min(images.shape[1:3]),) * 2 + (3,)
        labels, key = self.split.labels.dtype, np.dtype("int64")
        return [((count, *shape), dtype), ((count,), labels), ((), key)]

    @property
    def _has_features(self):
        images = self.split.images
        return isinstance(images, np.ndarray) and images.ndim == 2

    @property
    def _single(self):
        """Whether each picture is changed on its own."""
        recipe = self.recipe
        changed = recipe.augment != "none" or recipe.crop == "resized"
        return changed or not isinstance(self.split.images, np.ndarray)

    def _chosen(self, epoch, step):
        """Returns the numbers of the pictures in a batch."""
        order = _order(len(self.split.labels), self.seed, int(epoch))
        size, repeats = self.recipe.batch_size, self.recipe.repeats
        places = np.arange(int(step) * size, (int(step) + 1) * size)
        # A picture's repeats far from each other, so that workers share them.
        # Source: torchvision's `RASampler`.
        return np.concatenate(
            [order[places[i::repeats] // repeats] for i in range(repeats)]
        )

    def _images(self, chosen, random):
        images, recipe = self.split.images, self.recipe
        if self._has_features:
            return images[chosen]
        if self._single:
            images = [self._picture(images[i], random) for i in chosen]
            images = np.stack(images)
        else:
            images = _squares(images)[chosen]
        if recipe.crop == "pad":
            images = augment.pad_and_crop(images, random, _MEAN)
        if recipe.crop == "reflect":
            images = augment.pad_and_crop(images, random)
        if recipe.flip:
            images = augment.mirror(images, random)
        return images

    def _picture(self, image, random):
        """Returns one picture, which any source may have, as an array."""
        recipe, side = self.recipe, (self.size, self.size)
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        else:
            image = _decoded(image)
        if recipe.crop == "resized":
            image = augment.resized_crop(image, self.size, random)
        else:
            image = ImageOps.fit(image, side, Image.Resampling.BILINEAR)
        if recipe.augment == "trivial":
            image = augment.trivial_augment(image, random)
        if recipe.augment == "rand":
            image = augment.rand_augment(image, random, recipe.magnitude, _MEAN)
        if recipe.augment == "colours":
            image = augment.change_colours(image, random)
        return np.asarray(image)


@dataclasses.dataclass(frozen=True)
class Finish:
    """What is done to whole batches.

    Attributes:
        recipe: A `recipes.Recipe`.
        size: Side of the pictures, in pixels.
        classes: Number of the classes.
    """

    recipe: object
    size: int
    classes: int

    @functools.cached_property
    def mixers(self):
        """Keras's layers that change whole batches, each with its key.

        They are made once, and outside of graphs, as they have variables;
        what they draw depends on the batch's key instead.
        """
        recipe = self.recipe
        found = {}
        if recipe.mixup:
            found["mixup"] = layers.MixUp(recipe.mixup, dtype="float32")
        if recipe.cutmix:
            # A range of one value: else the parameter itself is drawn.
            found["cutmix"] = layers.CutMix(
                (recipe.cutmix, recipe.cutmix), dtype="float32"
            )
        if recipe.erasing:
            # Of normalised pictures, whose mean colour is zero: JAX and torch
            # take one number only.
            found["erasing"] = layers.RandomErasing(
                (recipe.erasing, recipe.erasing),
                fill_value=0.0,
                dtype="float32",
            )
        return found

    def __call__(self, images, labels, key):
        """Returns what the network takes: normalised images, targets.

        Args:
            images: From `Plan.batch`, as the next two.
            labels: Numbers of the classes.
            key: What all randomness here depends on.

        Returns:
            float32 `(batch, size, size, 3)`, about -2.2..2.7, and float32
            `(batch, classes)`, 0..1.
        """
        recipe = self.recipe
        targets = ops.one_hot(labels, self.classes, dtype="float32")
        if len(images.shape) == 2:
            return images, targets
        images = ops.cast(images, "float32")
        side = (self.size, self.size)
        if tuple(images.shape[1:3]) != side:
            images = ops.image.resize(images, side, antialias=True)
        images, targets = self._mix(images, targets, key)
        if recipe.loss == "sigmoid":
            # A picture mixed of two shows both, if not just a trace of one.
            # Source: section 3 of https://arxiv.org/abs/2110.00476, and the
            # threshold of its code.
            targets = ops.cast(targets > 0.2, "float32")
        images = keras_resnext.preprocess_input(images, "channels_last")
        if "erasing" in self.mixers:
            images, targets = self._mixed("erasing", images, targets, key)
        return images, targets

    def _mix(self, images, targets, key):
        """Applies MixUp or CutMix, of both either one or the other."""
        pairs = [
            self._mixed(name, images, targets, key)
            for name in ("mixup", "cutmix")
            if name in self.mixers
        ]
        if len(pairs) == 2:
            images, targets = (
                ops.where(key % 2 == 0, *both)
                for both in zip(*pairs, strict=True)
            )
        elif pairs:
            images, targets = pairs[0]
        return images, targets

    def _mixed(self, name, images, targets, key):
        layer = self.mixers[name]
        drawn = layer.get_random_transformation(
            images, seed=_Keys(key, 1000 * list(self.mixers).index(name))
        )
        return (
            layer.transform_images(images, drawn),
            layer.transform_labels(targets, drawn),
        )


def _squares(images):
    """Returns the centre of pictures, `(n, height, width, 3)`, as a view.

    `Finish` would squash what is no square, where the test cuts out its
    centre; the border is rounded as there.
    """
    side = min(images.shape[1:3])
    top, left = (round((length - side) / 2) for length in images.shape[1:3])
    return images[:, top : top + side, left : left + side]


def _decoded(image):
    """Returns the picture of a path, or of an encoded picture's bytes.

    Raises:
        ValueError: If that has changed since it was found sound.
    """
    try:
        return pillow.decode(image)
    except (OSError, ValueError) as error:
        name = f"{len(image)} bytes" if isinstance(image, bytes) else image
        reason = error.__cause__ or error
        raise ValueError(
            "Each picture to train with must be one that can be decoded. "
            f"Received: {name} ({reason}), which was perhaps changed since "
            "they were checked. Restore or remove it, and start again."
        ) from error


class _Keys(keras.random.SeedGenerator):
    """Keys for random numbers, counted from what it is made with.

    Keras's own generator keeps its place in a variable, which neither threads
    nor a resumed training would find where the batch needs it.
    """

    def __init__(self, key, count):
        self.key, self.count = key, itertools.count(count)

    def next(self, ordered=True):
        """Returns the next key, `(2,)`."""
        jax = keras.backend.backend() == "jax"
        dtype = "uint32" if jax else "int32"
        pair = [ops.cast(n, dtype) for n in (self.key, next(self.count))]
        return ops.stack(pair)


@functools.lru_cache(maxsize=4)
def _finish(recipe, size, classes):
    """Returns a `Finish`, the same one in each epoch."""
    finish = Finish(recipe, size, classes)
    finish.mixers  # noqa: B018, makes them here and not in a thread
    if keras.backend.backend() != "jax":
        return finish
    import jax

    # Else each of its sixty operations is started on its own.
    return jax.jit(finish)


@functools.lru_cache(maxsize=2)
def _order(count, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(count)


class Stream:
    """Makes batches in threads while the network learns from earlier ones.

    Attributes:
        plan: A `Plan`.
        threads: How many batches are made at a time.
        ahead: How many there are at most, with those that are finished.
        waited: Seconds that the training has waited for batches so far.
    """

    def __init__(self, plan, threads=THREADS):
        """Takes the plan, and how many threads there may be."""
        self.plan, self.waited = plan, 0.0
        # A processor for each would fill the memory of large machines.
        pixels = plan.recipe.batch_size * plan.size**2 // plan.workers
        most = _MOST_BYTES // (pixels * 3 * 4)  # float32
        self.ahead = max(2, min(2 * threads, most))
        self.threads = min(threads, self.ahead)
        self._finish = _finish(plan.recipe, plan.size, len(plan.split.classes))

    def epoch(self, epoch, first=0):
        """Returns what `fit` takes for one epoch.

        Args:
            epoch: Number of the epoch.
            first: Number of the step to begin with.
        """
        if keras.backend.backend() == "tensorflow":
            return self._dataset(epoch, first)
        return self._generator(epoch, first)

    def _generator(self, epoch, first):
        # Beta distributions on PyTorch come of the one generator that all
        # threads share, and PyTorch's own loader draws from it, too: Keras
        # seeds it, draws, and puts it back.
        alone = keras.backend.backend() == "torch"

        def finish(batch):
            return tuple(map(ops.convert_to_numpy, self._finish(*batch)))

        def make(step):
            batch = self.plan.batch(epoch, step)
            return batch if alone else finish(batch)

        steps = iter(range(first, self.plan.steps))
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            queue = collections.deque(
                pool.submit(make, step)
                for step in itertools.islice(steps, self.ahead)
            )
            while queue:
                start = time.perf_counter()
                batch = queue.popleft().result()
                batch = finish(batch) if alone else batch
                self._stop(start)
                queue.extend(
                    pool.submit(make, step)
                    for step in itertools.islice(steps, 1)
                )
                yield batch

    def _dataset(self, epoch, first):
        import tensorflow as tf

        plan = self.plan
        shapes, dtypes = zip(*plan.forms, strict=True)

        def make(step):
            parts = tf.numpy_function(
                functools.partial(plan.batch, epoch),
                [step],
                list(map(tf.as_dtype, dtypes)),
                stateful=False,  # else they come one by one
            )
            for part, shape in zip(parts, shapes, strict=True):
                part.set_shape(shape)
            images, targets = self._finish(*parts)
            if len(images.shape) == 4 and len(set(plan.recipe.sizes)) > 1:
                # One graph for all sizes. Else TensorFlow makes another one
                # for the second, and a resumed training, for which it is the
                # first, would round differently.
                images = tf.compat.v1.placeholder_with_default(
                    images, (images.shape[0], None, None, 3)
                )
            return images, targets

        batches = (
            tf.data.Dataset.range(first, plan.steps)
            .map(make, self.threads, deterministic=True)
            # What is made, or waits to be taken, is among `threads`.
            .prefetch(self.ahead - self.threads)
        )
        # The zip first asks the clock, then waits for the batch. TensorFlow's
        # own clock is not allowed where all is to be deterministic.
        clock = tf.data.Dataset.range(first, plan.steps).map(
            lambda step: tf.numpy_function(
                lambda step: time.perf_counter(), [step], tf.float64
            )
        )

        def stop(start, batch):
            tf.numpy_function(self._stop, [start], [])
            return batch

        options = tf.data.Options()
        # Its thread may go on sleeping at the end of an epoch, up to as long
        # as that took, and the iterator is not deleted before it wakes.
        options.autotune.enabled = False
        # It would wait in another thread.
        options.experimental_optimization.inject_prefetch = False
        timed = tf.data.Dataset.zip(clock, batches).map(stop)
        return timed.with_options(options)

    def _stop(self, start):
        self.waited += time.perf_counter() - float(start)


class Unchanged(keras.utils.PyDataset):
    """Batches in the order of a split, as they are when nothing is random.

    For tests, and for features that are computed once. Pictures are resized
    and cut out by `keras_resnext.eval_transform`.

    Attributes:
        split: A `data.Split`, whose images may also be features.
    """

    def __init__(self, split, recipe):
        """Takes the attributes, and the `recipes.Recipe` for the sizes."""
        super().__init__(workers=THREADS)
        self.split = split
        crop = recipe.test_size or recipe.sizes[-1]
        self._transform = keras_resnext.eval_transform(
            usual(recipe.test_resize or crop, crop)
        )

    def __len__(self):
        """Returns the number of batches."""
        return -(-len(self.split.labels) // _TESTED)

    def __getitem__(self, index):
        """Returns images or features, and one-hot targets."""
        chosen = slice(index * _TESTED, (index + 1) * _TESTED)
        labels, images = self.split.labels[chosen], self.split.images[chosen]
        if not (isinstance(images, np.ndarray) and images.ndim == 2):
            images = np.stack([self._transform(image) for image in images])
        # Not of `np.eye`, which has the square of the classes.
        targets = labels[:, None] == np.arange(len(self.split.classes))
        return images, targets.astype("float32")
