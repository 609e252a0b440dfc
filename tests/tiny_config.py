"""A config file for the command line: `tests/tiny_config.py:bpr,sasrec` trains these models."""

from ml_collections import ConfigDict

from tests import tiny


def get_config(arg: str = "") -> ConfigDict:
    return tiny.config(*(arg.split(",") if arg else ()))
