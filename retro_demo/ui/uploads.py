"""Files that a program sent to the HTTP endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from retro_demo.errors import UserError


def uploaded(file: Any) -> tuple[str, Path]:
    """Name and place of an uploaded file; raises UserError for what was not uploaded here."""
    values = file if isinstance(file, dict) else getattr(file, "model_dump", dict)()
    path = Path(str(values.get("path") or "")).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise UserError("A file was not uploaded here. Send it with gradio_client's handle_file.")
    return str(values.get("orig_name") or path.name), path
