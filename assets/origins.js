// Where a text came from: a button opens a document at a place, selected words become the phrase.
// Gradio gives `element` (this component) and `trigger`. Offsets count code points, as Python does.
element.addEventListener('click', e => {
  const button = e.target.closest('button[data-chunk], button[data-document], button[data-first]');
  if (!button) return;
  const {chunk, document, start, end, first} = button.dataset;
  if (chunk !== undefined) trigger('select', {open: 'chunk', first: Number(chunk), end: 0});
  else if (first !== undefined) trigger('select', {open: 'tokens', first: Number(first), end: Number(end)});
  else trigger('select', {open: 'document', document, first: Number(start), end: Number(end)});
});
const place = (node, offset) => {
  const inside = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
  const piece = inside.closest('[data-at]');
  if (!piece || !element.contains(piece)) return null;
  const before = node.nodeType === Node.TEXT_NODE ? [...node.data.slice(0, offset)].length : 0;
  return Number(piece.dataset.at) + before;
};
const chosen = () => {
  const selection = getSelection();
  if (!selection.rangeCount || selection.isCollapsed) return;
  const range = selection.getRangeAt(0);
  const first = place(range.startContainer, range.startOffset), end = place(range.endContainer, range.endOffset);
  if (first !== null && end !== null && end > first) trigger('select', {open: 'phrase', first, end});
};
for (const kind of ['mouseup', 'keyup', 'touchend']) {
  element.addEventListener(kind, e => { if (e.target.closest('.traced')) setTimeout(chosen, 0); });
}
// a document that was opened is scrolled to its place, within its own frame
const show = () => {
  const whole = element.querySelector('.whole'), mark = whole?.querySelector('mark');
  if (mark && whole.dataset.shown !== 'yes') {
    whole.dataset.shown = 'yes';
    whole.scrollTop = mark.offsetTop - whole.clientHeight / 3;
    const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    whole.scrollIntoView({block: 'nearest', behavior: calm ? 'auto' : 'smooth'});
  }
};
new MutationObserver(show).observe(element, {childList: true, subtree: true});
show();
