"""An export as a repository of the Hugging Face hub: pushed when asked, private if it is new."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from runner.errors import ConfigError


def refuse(hub: str) -> None:
    """Refuse to push before anything is exported, where it cannot work.

    Args:
        hub: OWNER/NAME of the repository.

    Raises:
        ConfigError: That is no such name, or nobody is logged in here.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
        raise ConfigError(f"hub={hub}: must be OWNER/NAME, of letters, digits, '.', '_' and '-'")
    if get_token() is None:
        raise ConfigError(
            f"hub={hub}: nobody is logged in to the hub here. Run `hf auth login`, or set HF_TOKEN"
        )


def push(folder: Path, hub: str) -> str:
    """Upload a folder; a repository that is not there yet is made, private.

    Args:
        folder: Whole by now.
        hub: OWNER/NAME of the repository.

    Returns:
        Its address.

    Raises:
        ConfigError: The hub cannot be reached, or refuses it; the folder stays.
    """
    api = HfApi()
    try:
        address = api.create_repo(hub, private=True, exist_ok=True)
        api.upload_folder(repo_id=hub, folder_path=folder, commit_message=f"Export {folder.name}")
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"hub={hub}: {error}\nThe export itself is whole: {folder}") from error
    return str(address)
