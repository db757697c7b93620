"""What pyproject.toml cannot say: without OpenMP, which Apple's clang lacks, kernels have one thread."""

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

OPENMP = "-fopenmp"


class Build(build_ext):
    """Tries again without OpenMP; without any compiler that fails too, and the extension is left out."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (CompileError, LinkError):
            ext.extra_compile_args.remove(OPENMP)
            ext.extra_link_args.remove(OPENMP)
            super().build_extension(ext)


setup(cmdclass={"build_ext": Build})
