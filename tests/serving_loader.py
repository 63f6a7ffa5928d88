"""Loads a SavedModel and answers requests as TensorFlow Serving does.

    python tests/serving_loader.py LIBRARIES MODEL < REQUESTS > REPLIES

LIBRARIES is the folder of TensorFlow's own, and MODEL that of one version.
REQUESTS is a pickled list: of each request the name of the tensor to feed, its
value, an array of float32 or a list of bytes, and the names of those to fetch.
REPLIES is a list of their values, for each request.

The model server's own binary is on no package index. This is its load path, on
the library of TensorFlow's wheel and with none of TensorFlow's Python: XLA is
disabled first, as the server does unless an experimental flag is given.
"""

import ctypes
import math
import pathlib
import pickle
import sys

import numpy as np

# Source: tensorflow/c/tf_datatype.h and c/tf_tstring.h.
FLOAT, STRING = 1, 7
STRING_BYTES = 24


class Output(ctypes.Structure):
    """`TF_Output`: what an operation of the graph gives."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class Server:
    """A version of a model, in a session."""

    def __init__(self, libraries, model):
        path = pathlib.Path(libraries, "libtensorflow_cc.so.2")
        self.library = ctypes.CDLL(str(path))
        self("_ZN10tensorflow21DisableXlaCompilationEv")  # it is C++
        self.status = self("TF_NewStatus")
        self.graph = self("TF_NewGraph")
        options = self("TF_NewSessionOptions")
        tags = (ctypes.c_char_p * 1)(b"serve")
        self.session = self(
            *("TF_LoadSessionFromSavedModel", options, None, model.encode()),
            *(tags, 1, self.graph, None, self.status),
        )
        self.check()

    def __call__(self, name, *arguments, result=ctypes.c_void_p):
        """Calls a function; its integers may be addresses, of 64 bits."""
        function = getattr(self.library, name)
        function.restype = result
        return function(
            *(ctypes.c_void_p(a) if type(a) is int else a for a in arguments)
        )

    def number(self, name, *arguments):
        return self(name, *arguments, result=ctypes.c_int64)

    def check(self):
        if self("TF_GetCode", self.status, result=ctypes.c_int):
            message = self("TF_Message", self.status, result=ctypes.c_char_p)
            sys.exit(message.decode())

    def place(self, name):
        name, _, index = name.partition(":")
        operation = self("TF_GraphOperationByName", self.graph, name.encode())
        return Output(operation, int(index))

    def tensor(self, value):
        strings = isinstance(value, list)
        shape = (len(value),) if strings else value.shape
        size = STRING_BYTES * len(value) if strings else value.nbytes
        made = self(
            *("TF_AllocateTensor", STRING if strings else FLOAT),
            *((ctypes.c_int64 * len(shape))(*shape), len(shape), size),
        )
        data = self("TF_TensorData", made)
        if strings:
            for i, string in enumerate(value):
                self("TF_StringInit", data + STRING_BYTES * i)
                place = data + STRING_BYTES * i
                self("TF_StringCopy", place, string, len(string))
        else:
            ctypes.memmove(data, np.ascontiguousarray(value).ctypes.data, size)
        return made

    def value(self, tensor):
        sides = self("TF_NumDims", tensor, result=ctypes.c_int)
        shape = [self.number("TF_Dim", tensor, i) for i in range(sides)]
        data = self("TF_TensorData", tensor)
        if self("TF_TensorType", tensor, result=ctypes.c_int) == FLOAT:
            size = self.number("TF_TensorByteSize", tensor)
            found = np.frombuffer(ctypes.string_at(data, size), "float32")
            return found.reshape(shape)
        found = np.empty(math.prod(shape), object)
        for i in range(len(found)):
            place = data + STRING_BYTES * i
            size = self.number("TF_StringGetSize", place)
            start = self("TF_StringGetDataPointer", place)
            found[i] = ctypes.string_at(start, size)
        return found.reshape(shape)

    def answer(self, feed, value, fetches):
        outputs = (Output * len(fetches))(*map(self.place, fetches))
        tensors = (ctypes.c_void_p * len(fetches))()
        self(
            *("TF_SessionRun", self.session, None),
            *((Output * 1)(self.place(feed)),),
            *((ctypes.c_void_p * 1)(self.tensor(value)), 1),
            *(outputs, tensors, len(fetches)),
            *(None, 0, None, self.status),
        )
        self.check()
        return [self.value(tensor) for tensor in tensors]


def main():
    server = Server(*sys.argv[1:])
    requests = pickle.load(sys.stdin.buffer)  # of the test that waits
    replies = [server.answer(*request) for request in requests]
    pickle.dump(replies, sys.stdout.buffer)


if __name__ == "__main__":
    main()
