"""The command line: `keras-resnext`, or `python -m keras_resnext`.

Nothing is imported before a command is chosen that needs it: Keras and
TensorFlow take seconds.
"""

import importlib
import os
import sys

import keras_resnext
from keras_resnext.commands import arguments, console


def parser():
    """Returns what reads the command line."""
    main = console.Parser(
        prog="keras-resnext",
        description="ResNeXt for Keras 3: list the networks, classify "
        "pictures, export models to\nother runtimes. `keras-resnext COMMAND "
        "--help` says more.\n\n    keras-resnext predict cat.jpg",
    )
    main.add_argument(
        "--version",
        action="version",
        version=f"keras_resnext {keras_resnext.__version__}",
    )
    commands = main.add_subparsers(
        required=True, metavar="{" + ",".join(arguments.COMMANDS) + "}"
    )
    for name, (module, add, text, examples) in arguments.COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.\n\n{examples}",
        )
        command.set_defaults(
            module=f"keras_resnext.commands.{module}", reader=command
        )
        add(command)
    return main


def main(words=None):
    """Runs the command line, and returns its exit status.

    Args:
        words: Of the command line, by default the process's own.
    """
    args, unknown = parser().parse_known_args(words)
    if unknown:
        args.reader.error(f"unrecognized arguments: {' '.join(unknown)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with console.plain_errors(2, whole=words is None):
        return importlib.import_module(args.module).run(args)


if __name__ == "__main__":
    sys.exit(main())
