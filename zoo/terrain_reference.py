"""What onnxruntime computes from the published graph of `zoo.terrain`, for the test of equality.

Why this file exists: the test should not need onnxruntime, so a few of its answers are committed.

    python -m zoo.terrain_reference MODEL.onnx tests/zoo/terrain_onnxruntime.json

needs numpy and onnxruntime alone. MODEL.onnx is what `zoo.terrain_weights.published` returns.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Sigma and difficulty of one image each; both ends of each range occur, and in both orders.
CASES = ((0.05, 0.0), (0.05, 1.0), (0.5, 0.3), (5.0, 0.6), (80.0, 1.0), (80.0, 0.0))
STRIDE = 251  # pixels between recorded values; prime to 128, so every column is met
SEED = 0


def inputs() -> tuple[Array, Array, Array]:
    """Noisy images [cases, 1, 128, 128], sigmas [cases] and difficulties [cases]."""
    sigma, difficulty = np.asarray(CASES, np.float32).T
    slope = np.linspace(-0.6, 0.6, 128, dtype=np.float32)
    hill = np.cos(5 * slope)[:, None] * slope
    # RandomState, since numpy promises never to change its stream.
    noise = np.random.RandomState(SEED).standard_normal((len(CASES), 1, 128, 128))
    noisy = hill + sigma[:, None, None, None] * noise.astype(np.float32)
    return noisy, sigma, difficulty


def picked(images: Array) -> Array:
    """The recorded pixels [cases, 66] of images [cases, 1, 128, 128]."""
    return images.reshape(len(images), -1)[:, ::STRIDE]


def moments(images: Array) -> Array:
    """Mean, standard deviation, minimum and maximum of each image: [cases, 4]."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    return np.stack([flat.mean(1), flat.std(1), flat.min(1), flat.max(1)], 1).astype(np.float32)


def record(model: Path) -> dict[str, Any]:
    """Run the graph one image at a time and return what the test compares."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    noisy, sigma, difficulty = inputs()
    found = []
    for i in range(len(CASES)):
        feed = {"noisy": noisy, "sigma": sigma, "difficulty": difficulty}
        found += session.run(None, {name: array[i : i + 1] for name, array in feed.items()})
    images = np.concatenate(found)
    return {
        "command": "python -m zoo.terrain_reference MODEL.onnx tests/zoo/terrain_onnxruntime.json",
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "moments": moments(images).tolist(),
        "picked": picked(images).tolist(),
    }


def main() -> None:
    """Record the answers of onnxruntime."""
    parser = argparse.ArgumentParser(prog="python -m zoo.terrain_reference", description=__doc__)
    parser.add_argument("model", type=Path, help="the published ONNX file")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    options.out.write_text(json.dumps(record(options.model)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
