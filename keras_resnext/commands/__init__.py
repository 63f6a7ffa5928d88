"""Commands: what `python -m keras_resnext` does, a module for each."""
