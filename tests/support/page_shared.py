"""What tests of page share with others."""

from __future__ import annotations

ENDPOINTS = {
    "/build_corpus",
    "/search",
    "/train",
    "/run_status",
    "/stop_run",
    "/delete_my_data",
    "/resume_run",
    "/keep_weights",
    "/resume_build",
    "/generate",
    "/explain",
    "/evaluate",
    "/change_corpus",
    "/weigh",
    "/trace",
    "/open_document",
    "/export_run",
    "/import_run",
}
