// How it works, on the text of the page: chunk, search, neighbors, attention, next token, one step after the other.
// Gradio gives `element`. The numbers lie in the linked view; all text of others is put in as text.
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const dialog = element.querySelector('dialog');
const PAUSE = 3800;  // milliseconds at each step, while it plays
let data = null, at = 0, timer = null;

const make = (tag, words, kind) => {
  const made = document.createElement(tag);
  if (words !== undefined) made.textContent = words;
  if (kind) made.className = kind;
  return made;
};
const theirs = (tag, words, kind) => {
  const made = make(tag, words, kind);
  made.dir = 'auto';
  return made;
};
const button = (words, act) => {
  const made = make('button', words);
  made.type = 'button';
  made.onclick = act;
  return made;
};
const late = (made, place) => { made.style.setProperty('--late', place); return made; };
const card = (one, k, inside) => {
  const made = late(make('div', undefined, 'found-one'), k);
  made.style.setProperty('--own', data.colors[k]);
  const head = make('p', undefined, 'head');
  head.append(make('b', String(k + 1), 'rank'), theirs('span', one.title));
  made.append(head, inside);
  return made;
};
const row = (kind, parts) => { const made = make('div', undefined, kind); made.append(...parts); return made; };
const half = (one, r) => r < one.pieces.length / 2;
const shades = (one) => {
  const text = theirs('p', undefined, 'passage'), top = Math.max(...data.walk.neighbors.flatMap(n => n.weights), 1e-6);
  one.pieces.forEach((piece, r) => {
    const token = make('span', piece), share = one.weights[r] / top;
    if (share > 0.03) {
      token.className = 'read';
      token.style.setProperty('--share', `${Math.round(12 + 76 * share)}%`);
    }
    if (r && half(one, r - 1) && !half(one, r)) text.append(make('i', '', 'border'));
    text.append(token);
  });
  return text;
};
const likely = (title, arm, t) => {
  const box = make('section'), list = make('ol', undefined, 'likely');
  box.append(make('h3', title));
  data.top[arm][t - 1].slice(0, 5).forEach((id, i) => {
    const p = data.p[arm][t - 1][i], item = make('li', undefined, id === data.ids[t] ? 'it' : ''), bar = make('i');
    bar.style.width = `${100 * p}%`;
    item.append(theirs('span', data.words[id]), bar, make('b', `${Math.round(100 * p)}%`));
    list.append(item);
  });
  box.append(list);
  return box;
};

const STEPS = [
  ['Chunk', () => [`The text is cut into chunks of ${data.chunkLen} tokens. The end of chunk ${data.walk.chunk} is the query.`,
    theirs('p', data.walk.query, 'query')]],
  ['Search', () => [data.walk.title
    ? 'The corpus is searched for these words and for the title of the text. The best matches come first.'
    : 'The corpus is searched for chunks like these words. The best matches come first.',
    row('scores', data.walk.neighbors.map((one, k) => {
      const made = late(make('p', undefined, 'score'), k), bar = make('i'), best = data.walk.neighbors[0].score || 1;
      made.style.setProperty('--own', data.colors[k]);
      bar.style.width = `${Math.max(4, 60 * one.score / best)}%`;
      made.append(make('b', String(k + 1), 'rank'), theirs('span', one.title), bar, make('small', one.score.toFixed(2)));
      return made;
    }))]],
  ['Neighbors', () => ['Each match is a neighbor: a chunk of another document, and what follows it there.',
    row('pair', data.walk.neighbors.map((one, k) => card(one, k, theirs('p', one.pieces.join(''), 'passage'))))]],
  ['Attention', () => ['Before it writes a token, the model reads in the neighbors. Stronger color, more attention.',
    row('pair', data.walk.neighbors.map((one, k) => card(one, k, shades(one))))]],
  ['Next token', () => {
    const t = data.walk.token, before = theirs('p', data.walk.before, 'query');
    before.append(theirs('b', data.labels[t], 'came'));
    return ['What it read changes what it expects next.', before,
      row('pair', [likely('with neighbors', 0, t), likely('without', 1, t)])];
  }],
];

const show = (step) => {
  at = step;
  const stage = dialog.querySelector('.stage'), [first, ...rest] = STEPS[at][1]();
  stage.replaceChildren(make('p', first, 'says'), ...rest);
  dialog.querySelectorAll('.steps button').forEach((b, i) => {
    if (i === at) b.setAttribute('aria-current', 'step');
    else b.removeAttribute('aria-current');
  });
};
const play = (going) => {
  clearInterval(timer);
  timer = going ? setInterval(() => (at + 1 < STEPS.length ? show(at + 1) : play(false)), PAUSE) : null;
  const pressed = dialog.querySelector('.play');
  if (pressed) pressed.textContent = going ? 'Pause' : 'Play';
};
const open = () => {
  const holder = document.querySelector('#linked .data');
  data = holder && JSON.parse(holder.textContent);
  dialog.replaceChildren();
  const head = make('div', undefined, 'bar'), stage = make('div', undefined, 'stage');
  stage.setAttribute('aria-live', 'polite');
  head.append(make('h2', 'How it works'), button('Close', () => dialog.close()));
  if (!data || !data.walk) {
    dialog.append(head, make('p', 'This text read no neighbors. Write one with retrieval on, then look again.'));
    dialog.showModal();
    return;
  }
  const steps = make('div', undefined, 'steps');
  STEPS.forEach(([name], i) => steps.append(button(`${i + 1} ${name}`, () => { play(false); show(i); })));
  const playing = button('Play', () => {
    if (timer) { play(false); return; }
    show(at + 1 < STEPS.length ? at + 1 : 0);
    play(true);
  });
  playing.classList.add('play');
  dialog.append(head, steps, stage, row('turns', [
    button('Back', () => { play(false); show(Math.max(0, at - 1)); }), playing,
    button('Next', () => { play(false); show(Math.min(STEPS.length - 1, at + 1)); }),
  ]));
  show(0);
  dialog.showModal();
  play(!calm.matches);
};
dialog.addEventListener('close', () => clearInterval(timer));
dialog.addEventListener('click', e => { if (e.target === dialog) dialog.close(); });
element.querySelector('.open').addEventListener('click', open);
