"""An export pushed to the Hugging Face Hub with the user's own token, which is kept and shown nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import huggingface_hub  # its parts load on first use, which only who pushes waits for

from retro_demo.errors import UserError
from retro_demo.output_folder import EXPORT

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
TOKEN = re.compile(r"[!-~]{8,400}")
SAID = {
    401: "the token is wrong or has expired",
    403: "the token may not write there; make one with write access to that repository",
    404: "there is no such owner or repository",
    413: "a file is too large for the Hub",
    429: "there were too many requests; wait a few minutes",
}


def own_token() -> str:
    """The token of who runs this command: HF_TOKEN, or the one that `hf auth login` kept. UserError: none.

    Never for a visitor of the page: on a server it would be its owner's.
    """
    token = huggingface_hub.get_token()
    if not token:
        raise UserError(
            "There is no token for the Hub. Make one with write access at huggingface.co/settings/tokens and "
            "put it into the environment: HF_TOKEN=... (or run: hf auth login)."
        )
    return token


def push(export: Path, repo: str, token: str, *, private: bool) -> str:
    """Upload an export to the model repository OWNER/NAME, made where there is none; returns its address.

    The Hub is HF_ENDPOINT's, else huggingface.co. Raises UserError with what the Hub answered.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars  # pyright: ignore[reportPrivateImportUsage]

    check_address(repo, token)
    if not (export / EXPORT).exists():
        raise UserError(f"{export.name} is no export. Make one with: export RUN --out DIR")
    disable_progress_bars()
    # the HTTPError of the client that this version of the library uses: httpx or httpx2
    cut_off: type[Exception] = HfHubHTTPError.__bases__[0]  # pyright: ignore[reportAssignmentType]
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        url = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=export, repo_type="model", commit_message="Add a run of retro_demo"
        )
    except HfHubHTTPError as error:
        code = error.response.status_code
        raise UserError(f"The Hub refused {repo} ({code}): {SAID.get(code, 'try again later')}.") from None
    except ValueError:  # what the library itself finds wrong with a name or an answer
        raise UserError(f"The Hub cannot take {repo}. Check the name, and try again.") from None
    except (cut_off, OSError, RuntimeError) as error:
        raise UserError(
            f"The Hub at {api.endpoint} was not reached, or the upload broke off ({type(error).__name__}). "
            "Check the connection and push again: what is there already is not sent twice."
        ) from None
    return str(url)


def check_address(repo: str, token: str) -> None:
    """Raise UserError where a repository or token cannot be one; no message holds a token."""
    if not REPO.fullmatch(repo):
        raise UserError(f"The repository is {repo[:120]!r}; give it as OWNER/NAME.")
    if not TOKEN.fullmatch(token):
        raise UserError("That is no token of the Hub. Make one at huggingface.co/settings/tokens.")
