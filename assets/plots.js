// Every picture says what it shows: the sentence that its figure carries (layout.meta.alt) becomes the text
// alternative of the drawing. A click into a picture of targets (layout.meta.targets) is told to the page. Below each
// stand buttons that save it (assets/pictures.js).
const saves = () => {
  const line = document.createElement('p');
  line.className = 'saves';
  line.append('Save as ');
  for (const kind of ['png', 'svg']) {
    const button = document.createElement('button');
    button.type = 'button';
    button.dataset.save = kind;
    button.textContent = kind.toUpperCase();
    line.append(button, ' ');
  }
  return line;
};
const describe = () => {
  for (const plot of document.querySelectorAll('.js-plotly-plot')) {
    const {alt, targets} = plot.layout?.meta ?? {};
    if (!alt) continue;
    const [drawing, ...above] = plot.querySelectorAll('.main-svg');
    if (drawing && drawing.getAttribute('aria-label') !== alt) {
      drawing.setAttribute('role', 'img');
      drawing.setAttribute('aria-label', alt);
    }
    above.forEach(one => one.getAttribute('aria-hidden') || one.setAttribute('aria-hidden', 'true'));
    const box = plot.parentElement;
    if (plot.data?.length && !box.querySelector(':scope > .saves')) box.append(saves());
    if (targets && !plot.dataset.told) {
      plot.dataset.told = 'yes';
      plot.on('plotly_click', e => document.dispatchEvent(new CustomEvent(
        'retro-target', {detail: plot.layout.meta.targets[e.points[0].pointNumber[0]]})));
    }
  }
};
let asked = false;
new MutationObserver(() => {
  if (asked) return;
  asked = true;
  setTimeout(() => { asked = false; describe(); }, 200);
}).observe(document.body, {childList: true, subtree: true});
describe();
