"""What setup.cfg cannot say: the configs, which lie beside the packages, go into the wheel as launcher/configs."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib, "launcher", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
