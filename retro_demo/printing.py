"""Events on the terminal: one JSON object a line, or lines for people."""

from __future__ import annotations

import json

from retro_demo.events import Event, Finished, Progress, Retrieved, Started, Step, Token


def print_json(event: Event) -> None:
    print(json.dumps(event.to_json()), flush=True)


class Printer:
    """Events as lines for people; a generation streams as text."""

    def __init__(self) -> None:
        self.steps = 0
        self.writing = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Token):
            print(event.text, end="", flush=True)
            self.writing = True
            return
        if self.writing:
            print()
            self.writing = False
        if line := self.line(event):
            print(line, flush=True)

    def line(self, event: Event) -> str:
        if isinstance(event, Started):
            self.steps = event.about.get("steps", 0)
            return f"{event.job}: from step {event.step}" if self.steps else f"{event.job}: begun"
        if isinstance(event, Progress):
            return f"{event.stage}: {event.done} of {event.total}"
        if isinstance(event, Step):
            speed = f"{event.tokens_per_second:.0f} tokens/s"
            return (
                f"step {event.step} of {self.steps}: loss {event.loss:.4f} nats, {speed}"
                if event.step % 10 == 0
                else ""
            )
        if isinstance(event, Retrieved):
            found = "; ".join(f"{n['title']} ({n['score']:.2f})" for n in event.neighbors) or "none"
            return f"  [chunk {event.chunk + 1}: {found}]"
        values = {name: value for name, value in event.to_json().items() if name != "event"}
        if isinstance(event, Finished) and "neighbors" in values:
            return "\n\n".join(
                f"{n['score']:.3f}  {n['title']} (chunk {n['chunk']})\n"
                f"  N: {n['text']!r}\n  F: {n['continuation']!r}"
                for n in values["neighbors"]
            )
        if isinstance(event, Finished):
            values = {
                name: value for name, value in values.items() if name not in ("document_tokens", "text")
            }
        return f"{type(event).__name__.lower()}: " + ", ".join(
            f"{name} {value}" for name, value in values.items()
        )
