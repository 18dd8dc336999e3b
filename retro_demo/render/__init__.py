"""HTML and figures made from plain values, without gradio."""
