"""A written folder goes to a repository on the Hub."""

from pathlib import Path

from huggingface_hub import HfApi


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload every file of the folder to a model repository, made if it is new; its address.

    Raises:
        ValueError: the Hub refuses, or cannot be reached; the folder stays as it is.
    """
    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="GRPO export")
    except Exception as error:  # of the Hub's library or of the network
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"push_to_hub={name!r}: {type(error).__name__}: {words}; {folder} is written; nearest valid: "
                         "a name that you may write to, after `hf auth login`") from error
    return str(url)
