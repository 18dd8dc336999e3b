"""The one error that is meant for the user's eyes."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend.

    The text is shown as it is, so it says what is wrong, the value seen and what to do.
    Everything else that is raised is a bug: logged with its traceback, shown as one plain sentence.
    `labels` are names of settings that stand in the text as they are, with what the page calls them ("" =
    what it calls any setting of that name): see server/wording.py.
    """

    def __init__(self, text: str = "", **labels: str) -> None:
        super().__init__(text)
        self.labels = labels
