"""Digests of what a run reads, so that a resumed run notices when it has changed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from lm_human_preferences.data.queries import dataset_folder
from lm_human_preferences.foundation.files import sha256
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.judging.judges import SENTENCE_JUDGES

_FILES_THAT_COUNT = (
    "*.safetensors",
    "pytorch_model*.bin",
    "config.json",
    "meta.json",
)  # of a model folder, of a data set


def input_digests(inputs: Mapping[str, str | None]) -> dict[str, str]:
    """The digest of what each flag's value names: a file, a model folder, a data set, or the folder of a judge of
    sentences. What lies elsewhere (an address, a hub's model, a function) or is not there has none.
    """
    digests = {}
    for flag, value in inputs.items():
        if value is None or "://" in value:
            continue
        if value.startswith(SENTENCE_JUDGES):
            path = find_path(value.partition(":")[2].partition("#")[0].partition("?")[0])
        else:
            path = dataset_folder(value.partition(":")[0]) if flag.endswith("dataset") else Path(value)
        if path.is_file():
            digests[flag] = sha256(path)
        elif path.is_dir():
            digests[flag] = _folder_digest(path)
    return digests


def _folder_digest(folder: Path) -> str:
    """Of the weights and configuration of a model folder, or of the description of a data set, which holds its files'
    digests.
    """
    files = sorted({path for pattern in _FILES_THAT_COUNT for path in folder.glob(pattern)})
    lines = [f"{path.name} {sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
