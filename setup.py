"""What pip installs: grpo, and in grpo/_project what is beside it in a checkout, so that no common name is taken."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

BESIDE = ("data", "kernels", "rewards")


class WithoutThisFile(build_py):
    """The programs train.py and eval.py are modules of grpo._project, and so would this file be."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


inside = [name for name in find_packages() if name.split(".")[0] in BESIDE]
setup(
    cmdclass={"build_py": WithoutThisFile},
    packages=[*find_packages(include=["grpo", "grpo.*"]), "grpo._project", "grpo._project.recipes",
              *(f"grpo._project.{name}" for name in inside)],
    package_dir={"grpo._project": ".", "grpo._project.recipes": "recipes",
                 **{f"grpo._project.{name}": name.replace(".", "/") for name in inside}},
    package_data={"grpo": ["py.typed"], "grpo._project.recipes": ["*.yaml"],
                  "grpo._project.data": ["tiny_qwen2/*", "tiny_coder/*"], "grpo._project.kernels": ["*.json"],
                  "grpo._project.rewards.sandbox": ["inside/*.py"]},
)
