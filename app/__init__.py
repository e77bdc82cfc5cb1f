"""PrefLab's web and domain: imports no torch, transformers, trl, peft, nor the worker."""

__version__ = "0.1.0"
