"""A model's name -> a local directory: as given, or downloaded from the Hugging Face hub and cached by its library."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ftjax import demo
from ftjax.errors import InputError, did_you_mean
from ftjax.pretrained.gguf import is_gguf

FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "special_tokens_map.json"]
FILES += ["merges.txt", "added_tokens.json", "sentencepiece.bpe.model", "spiece.model", "chat_template.jinja"]
FILES += ["generation_config.json", "adapter_config.json", "config_changes.json"]
"""What is downloaded: configuration, safetensors weights and tokenizer files; no pickles, no code."""
KERAS = ["tf_model.h5", "tf_model.h5.index.json"]
"""What is downloaded besides where there are no safetensors."""


def exists(path: Path) -> bool:
    """Whether a path is there; one that no system takes, such as a name of 5,000 characters, is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def refuse_links(directory: Path) -> None:
    """InputError for a link that leads out of a model's directory: an export copies files, and would give away what is there.

    Weights may be linked from elsewhere, as only tensors of them are read; so may what the hub's library links to its own
    store beside the directory.
    """
    inside = [directory.resolve()]
    if directory.parent.name == "snapshots":
        inside.append((directory.parent.parent / "blobs").resolve())
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and path.suffix not in (".safetensors", ".h5"):
            target = path.resolve()
            if not any(target.is_relative_to(place) for place in inside):
                raise InputError(f"{path}: a link to {target}, outside the model's directory; put a copy there instead.")


def beside(path: Path) -> str:
    """ " Did you mean ...?" for a path of which another one in the same place has nearly the name."""
    with contextlib.suppress(OSError, ValueError):
        return did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
    return ""


def model_directory(name_or_directory: str | Path) -> Path:
    """An existing directory or .gguf file as it is, `demo:NAME` out of `ftjax.demo`, or else a hub id (`name` or `owner/name`,
    `@revision` after it) downloaded.

    Raises InputError where it is neither, or the hub cannot be reached.
    """
    text = str(name_or_directory)
    if text.startswith("demo:"):
        return demo.model(text.removeprefix("demo:"))
    path = Path(name_or_directory).expanduser()
    if exists(path) and path.is_dir():
        refuse_links(path)
        if exists(path / "metrics.jsonl") and (path / "model" / "config.json").is_file():
            raise InputError(f"{text}: a run's directory, and not a model's; give {path / 'model'}.")
        if not any(exists(path / name) for name in ("config.json", "adapter_config.json")):
            models = sorted(found.parent for found in [*path.glob("model/config.json"), *path.glob("*/model/config.json")])
            raise InputError(f"{text}: no config.json" + (f"; a model is in {models[-1]}." if models else "."))
        return path
    if exists(path) and is_gguf(path):
        return path
    if exists(path):
        raise InputError(f"{text}: a file, not a model directory; give the directory that holds config.json, or a .gguf file.")
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise InputError(f"{text}: no such model directory.{beside(path)}")

    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = text.partition("@")
    near = beside(path)
    try:
        directory = Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=FILES))
        if not any(directory.glob("*.safetensors")):
            huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=KERAS)
    except HFValidationError:
        raise InputError(f"{text}: neither a directory nor a Hugging Face model id such as bert-base-uncased.{near}") from None
    except RepositoryNotFoundError:
        raise InputError(f"{text}: no such directory, and no such model on the hub (or it is private: log in).{near}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{text}: no such directory, and it could not be downloaded from the hub ({reason}).{near}") from None
    if not any((directory / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{text}: the hub's repository has no config.json; it is not a model for transformers.")
    return directory


def check_push(repository: str) -> None:
    """InputError unless `repository` is a name that the hub takes, somebody is logged in and the hub may be asked."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise InputError(f"--push-to-hub {repository}: no name of a repository; give OWNER/NAME or NAME.") from None
    if huggingface_hub.get_token() is None:
        raise InputError("--push-to-hub: nobody is logged in to the hub; run hf auth login, or set HF_TOKEN.")
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise InputError("--push-to-hub: HF_HUB_OFFLINE is set, which keeps the hub out; unset it.")


def push(directory: Path, repository: str, *, private: bool) -> str:
    """Upload a model directory to a repository of the hub, which is made if need be; its address.

    The token is the one of `hf auth login` or HF_TOKEN. Raises InputError where the hub refuses or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # of the library's own HTTP client, whichever that is

    try:
        made = huggingface_hub.create_repo(repository, private=private, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=made.repo_id, folder_path=directory, commit_message="Model trained with ftjax")
    except (HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--push-to-hub {repository}: the hub did not take it ({reason}); the model is in {directory}."
        ) from None
    return str(made.url)
