"""A model's folder, its config, and the model without weights. Reads no tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foregate.errors import ModelError, need
from foregate.models import auto_class, fetch, find_dtype
from foregate.store.headers import INDEX, WEIGHTS, Stored, read_index


def fetch_folder(name: str) -> Path:
    """The folder of a checkpoint: `name` itself, or the hub's model of that name, downloaded where it is not yet.

    Raises: ModelError if there is none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"there is no model folder {name}; give one with a config.json, or a Hugging Face name")
    hub = need("huggingface_hub", "models")
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.py"]))
        index = folder / INDEX
        wanted = sorted(set(read_index(index).values())) if index.is_file() else [WEIGHTS]
        return Path(hub.snapshot_download(name, revision=folder.name, allow_patterns=["*.json", "*.py", *wanted]))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160].rstrip(". ")
        raise ModelError(
            f"cannot get the weights of {name}: it is no local folder, and the Hugging Face hub does not have it or "
            f"cannot be reached ({reason})"
        ) from error


def fetch_config(folder: Path, name: str, *, trust_remote_code: bool = False) -> Any:
    """The checkpoint's config. Raises: ModelError if it cannot be read, or the weights are quantised."""
    auto = need("transformers", "models").AutoConfig
    config = fetch(auto, str(folder), "config", trust_remote_code=trust_remote_code)
    refuse_quantised(config, name)
    return config


def refuse_quantised(config: Any, name: str) -> None:
    """Raises: ModelError if the config says that the weights are quantised."""
    for one in (config, config.get_text_config()):
        if quantised := getattr(one, "quantization_config", None):
            options = quantised if isinstance(quantised, dict) else quantised.to_dict()
            method = options.get("quant_method", "by a method it does not name")
            raise ModelError(
                f"{name} is quantised ({getattr(method, 'value', method)}), and foregate reads experts of 16 or 32 "
                "bits only; take the model's unquantised checkpoint, and `foregate pack --bits 8` or `--bits 4` to "
                "make it smaller"
            )


def skeleton(
    config: Any, name: str, dtype: str, tensors: Mapping[str, Stored], *, trust_remote_code: bool = False
) -> Any:
    """The model on the meta device, in evaluation mode: shapes and types as loaded, no weights.

    dtype  "auto" is the config's, or where that has none the first of the checkpoint's tensors that are numbers
    """
    torch, transformers = need("torch", "models"), need("transformers", "models")
    kind = find_dtype(torch, dtype)
    if kind == "auto":
        first = next((t.dtype for t in tensors.values() if "float" in t.dtype), "float32")
        kind = config.dtype or getattr(torch, first)
    auto = auto_class(transformers, config, name)
    options = {"trust_remote_code": True} if trust_remote_code else {}
    with torch.device("meta"):
        return auto.from_config(config, dtype=kind, **options).eval()
