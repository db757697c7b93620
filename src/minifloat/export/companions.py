"""What lies beside the weights of a model and goes where they go."""

import shutil
from pathlib import Path

_COPIED = (".json", ".txt", ".model", ".jinja")
_OURS = ("config.json", "report.json", "export.json")


def copy_companions(source: Path, out: Path) -> None:
    """Tokenizer, generation settings and templates, as they lie beside the weights."""
    for path in sorted(source.iterdir()):
        own = path.name in _OURS or path.name.endswith(".safetensors.index.json")
        wanted = path.is_file() and path.suffix in _COPIED and not own
        if wanted and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
