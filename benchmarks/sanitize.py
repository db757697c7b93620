"""The kernel tests over native code that is compiled with sanitizers.

    python -m benchmarks.sanitize [--sanitizer address|undefined|thread ...]

The package is copied to a temporary folder and its C files are built there by gcc. The address
sanitizer replaces malloc for the whole process, so that tensors of torch have guarded ends too, and a
read beyond a ragged row of codes is found. Masked loads of AVX-512 are not instrumented, but read
nothing where the mask is zero by definition; whole loads are. The thread sanitizer runs with four
threads on a small runtime of our own (`team.c`), whose waiting it understands.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("cpu", "conv", "cpu_attention", "direct", "interleave")
TESTS = [f"tests/kernels/test_{name}.py" for name in FILES]
FLAGS = {
    "address": ["-fsanitize=address"],
    "undefined": ["-fsanitize=undefined"],
    "thread": ["-fsanitize=thread", "-Wl,-Bsymbolic", str(Path(__file__).with_name("team.c"))],
}
# What a sanitizer must stop, or the run has no worth: codes that end before the last row does.
PROBES = {
    "address": """
from minifloat.kernels import fast
from minifloat.spec import FP4_G128, LayerSpec
from tests.kernels.problems import problem
x, layer = problem(LayerSpec(FP4_G128), 1, 512, 4)
fast.linear(x, layer._replace(codes=layer.codes[:, :-64].contiguous()))
"""
}
LIBRARIES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}


def build(source: Path, sanitizer: str) -> None:
    """The extension of `source`, a folder with `src/minifloat`."""
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "ext-modules"
    ]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    out = source / "src/minifloat/kernels/native" / f"_native{suffix}"
    out.unlink(missing_ok=True)
    flags = ["-O1", "-g", "-fopenmp", "-fno-omit-frame-pointer", "-fPIC"]
    objects = []
    for name in extension["sources"]:
        objects.append(str(source / name) + ".o")
        command = ["gcc", *flags, *FLAGS[sanitizer][:1], "-c", str(source / name), "-o"]
        subprocess.run([*command, objects[-1]], check=True)
    runtime = [] if sanitizer == "thread" else ["-fopenmp"]
    command = ["gcc", "-shared", "-fPIC", *FLAGS[sanitizer], *runtime, *objects, "-o", str(out)]
    subprocess.run(command, check=True)


def run(sanitizer: str, tests: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for part in ("src", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, source / part)
        shutil.copy(ROOT / "pyproject.toml", source)
        build(source, sanitizer)
        where = subprocess.run(
            ["gcc", f"-print-file-name={LIBRARIES[sanitizer]}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        quiet = source / "suppressions"  # torch's own threads wait in its libgomp, unseen
        quiet.write_text("race:libtorch\nrace:libgomp\nmutex:libtorch\n")
        environment = os.environ | {
            "LD_PRELOAD": where,
            "PYTHONPATH": f"{source / 'src'}:{source}",
            "ASAN_OPTIONS": "detect_leaks=0",  # Python frees little when it ends
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "TSAN_OPTIONS": f"halt_on_error=1:suppressions={quiet}",
            "OMP_NUM_THREADS": "4" if sanitizer == "thread" else "1",
        }
        if probe := PROBES.get(sanitizer):
            command = [sys.executable, "-c", probe]
            found = subprocess.run(
                command, check=False, cwd=source, env=environment, capture_output=True, text=True
            )
            if "heap-buffer-overflow" not in found.stderr:
                raise SystemExit(f"the {sanitizer} sanitizer did not stop the probe")
        command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", *tests]
        started = time.perf_counter()
        code = subprocess.run(command, check=False, cwd=source, env=environment).returncode
        print(f"{sanitizer}: exit {code} after {time.perf_counter() - started:.0f} s", flush=True)
        return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sanitizer", nargs="*", choices=list(FLAGS), default=["address", "undefined"]
    )
    parser.add_argument("tests", nargs="*", default=TESTS)
    args = parser.parse_args()
    sys.exit(max(run(name, args.tests) for name in args.sanitizer))


if __name__ == "__main__":
    main()
