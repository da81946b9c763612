"""Only what pyproject.toml cannot say: the wheel carries `data/` inside the package, as csrlhf_kit/shipped."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["csrlhf_kit*"]), "csrlhf_kit.shipped"],
    package_dir={"csrlhf_kit.shipped": "data"},
    package_data={"csrlhf_kit.figures": ["*.jinja"], "csrlhf_kit.shipped": ["**/*"]},
)
