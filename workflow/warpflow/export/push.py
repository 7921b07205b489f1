"""Push a folder to the Hugging Face hub. The token stays where huggingface_hub keeps it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id


def check_push(repository: str, api: HfApi) -> None:
    """Find out before any work whether a push can go through.

    Args:
        repository: ORG/NAME.

    Raises:
        ValueError: the name is invalid, there is no token, or the repository exists already.
        OSError: the hub does not answer, or refuses the token.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push {repository}: expected ORG/NAME; {error}") from None
    if repository.count("/") != 1:
        raise ValueError(f"--push {repository}: expected ORG/NAME, an organisation or a user first")
    if not (api.token or get_token()):
        raise ValueError(
            f"--push {repository}: there is no token. Run `hf auth login`, or put one that may "
            "write into the environment as HF_TOKEN"
        )
    if api.repo_exists(repository):
        raise ValueError(
            f"--push {repository}: this repository is there already, and nothing is overwritten: "
            "give another name, or delete it on the hub"
        )


def push_folder(folder: Path, repository: str, api: HfApi, private: bool = True) -> str:
    """Make a repository and upload a folder into it, as one commit.

    Returns: the repository's address.

    Raises:
        OSError: the hub refused; the folder is still there to be pushed again.
    """
    try:
        made = api.create_repo(repository, private=private, exist_ok=False)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export by warpflow"
        )
    except HfHubHTTPError as error:
        raise OSError(f"--push {repository}: {error}; the model is in {folder}") from error
    return str(made)
