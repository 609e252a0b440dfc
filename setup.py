"""What `pyproject.toml` cannot say: the configs of the checkout are a package of the wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["xrec_jax*"]), "xrec_jax.configs"],
    package_dir={"xrec_jax.configs": "configs"},
)
