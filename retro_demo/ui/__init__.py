"""The page in gradio and its HTTP endpoints: a file for each tab."""
