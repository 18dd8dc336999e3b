// Where a browser withholds its storage, Gradio's page stops at its first look at it. What is kept here instead ends with
// the page; the code of the workspace, which the page shows, brings it back.
try {
  window.localStorage.length;
} catch (withheld) {
  const kept = new Map();
  const storage = {
    getItem: (name) => kept.get(String(name)) ?? null,
    setItem: (name, text) => void kept.set(String(name), String(text)),
    removeItem: (name) => void kept.delete(String(name)),
    clear: () => kept.clear(),
    key: (at) => [...kept.keys()][at] ?? null,
    get length() { return kept.size; },
  };
  Object.defineProperty(window, "localStorage", { configurable: true, value: storage });
}
