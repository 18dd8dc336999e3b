"""An export pushed to the Hugging Face Hub with the user's own token, which is kept and shown nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from retro_demo.errors import UserError
from retro_demo.sharing import MANIFEST

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
TOKEN = re.compile(r"[!-~]{8,400}")
SAID = {
    401: "the token is wrong or has expired",
    403: "the token may not write there; make one with write access to that repository",
    404: "there is no such repository or owner",
    413: "a file is too large for the Hub",
    429: "there were too many requests; wait a few minutes",
}


def own_token() -> str:
    """The token of who runs this command: HF_TOKEN, or the one that `hf auth login` kept. UserError: none.

    Never for a visitor of the page: on a server it would be its owner's.
    """
    token = get_token()
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
    if not REPO.fullmatch(repo):
        raise UserError(f"The repository is {repo[:120]!r}; give it as OWNER/NAME.")
    if not TOKEN.fullmatch(token):
        raise UserError("The token is no token of the Hub: it has 8 or more letters, digits or signs.")
    if not (export / MANIFEST).exists():
        raise UserError(f"{export.name} is no export. Make one with: export RUN --out DIR")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        url = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=export,
            repo_type="model",
            commit_message="Add a run of retro_demo",
        )
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        raise UserError(f"The Hub refused {repo} ({code}): {SAID.get(code, 'try again later')}.") from None
    except (HFValidationError, LocalTokenNotFoundError, ValueError) as error:
        raise UserError(f"The Hub cannot take {repo} ({type(error).__name__}). Check the name.") from None
    except (OSError, RuntimeError) as error:  # no way there, or it broke off
        raise UserError(
            f"The Hub at {api.endpoint} was not reached, or the upload broke off ({type(error).__name__}). "
            "Check the connection and push again: what is there already is not sent twice."
        ) from None
    return str(url)
