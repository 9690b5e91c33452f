"""Packs trained weights into every wheel, and the compiled kernels where GLOBALCNN_WHEEL_LIBRARY names them.

A wheel with kernels (`make wheel`) is for one platform and for every Python: the library stands on PyTorch's
stable ABI and does not know Python. Without the variable the wheel is pure Python, and the kernels are
compiled on first use.
"""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LIBRARY = os.environ.get("GLOBALCNN_WHEEL_LIBRARY")


class WithLibrary(build_py):
    def run(self):
        super().run()
        weights = Path(self.build_lib) / "globalcnn" / "weights"
        if not self.editable_mode:  # an editable install reads them where they are
            weights.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path("weights").glob("*.*")):
                shutil.copy2(file, weights)
        if LIBRARY:
            folder = Path(self.build_lib) / "globalcnn" / "ops" / "native" / "lib"
            folder.mkdir(parents=True, exist_ok=True)
            for library in Path(LIBRARY).parent.glob(f"*{Path(LIBRARY).stem.split('-')[-1]}.so"):
                shutil.copy2(library, folder)  # for PyTorch, and for ONNX Runtime alone


class OfOnePlatform(Distribution):
    def has_ext_modules(self):
        return bool(LIBRARY)


class ForEveryPython(bdist_wheel):
    def get_tag(self):
        tag = super().get_tag()
        return ("py3", "none", tag[2]) if LIBRARY else tag


setup(distclass=OfOnePlatform, cmdclass={"build_py": WithLibrary, "bdist_wheel": ForEveryPython})
