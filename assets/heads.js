// The overview of attention: a picture that is chosen, by click or key, opens the heatmap of that layer and head.
// Gradio gives `element` (this component) and `trigger`.
const STEP = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]};
const rows = () => [...element.querySelectorAll('tr')].map(row => [...row.querySelectorAll('button')]);
element.addEventListener('click', e => {
  const button = e.target.closest('button[data-layer]');
  if (!button) return;
  for (const one of rows().flat()) {
    one.setAttribute('aria-pressed', String(one === button));
    one.tabIndex = one === button ? 0 : -1;
  }
  const {layer, head} = button.dataset;
  trigger('select', {layer: Number(layer), head: Number(head)});
});
// the Tab key stops once, the arrow keys go along; to go there is not to choose
element.addEventListener('keydown', e => {
  const button = e.target.closest('button[data-layer]'), step = STEP[e.key];
  if (!button || !step) return;
  e.preventDefault();
  const all = rows(), down = all.findIndex(row => row.includes(button)), along = all[down].indexOf(button);
  const next = (all[down + step[0]] || [])[along + step[1]];
  if (!next) return;
  button.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
