// The linked text: a token chosen with mouse or keys shows its numbers, its neighbors and their tokens; a neighbor is
// edited in its card.
// Gradio gives `element` (this component) and `trigger`; assets/heatmap.js listens to "retro-chosen".
// All text of others is put in as text (textContent), never as HTML.
const BLUE = '47, 111, 190', ORANGE = '214, 103, 28', VIOLET = '124, 92, 191', TEAL = '22, 138, 128';
let data = null, by = 'copy', chosen = 0, filter = null, asked = false;

const calm = matchMedia('(prefers-reduced-motion: reduce)');
const all = (selector) => [...element.querySelectorAll(selector)];
const make = (tag, words, kind) => {
  const made = document.createElement(tag);
  if (words !== undefined) made.textContent = words;
  if (kind) made.className = kind;
  return made;
};
const theirs = (tag, words) => {  // text of others, in its own direction
  const made = make(tag, words);
  made.dir = 'auto';
  return made;
};
const token = (t) => element.querySelector(`[data-t="${t}"]`);
const chunkOf = (t) => Math.floor(t / data.chunkLen);
const signed = (x) => (x >= 0 ? '+' : '−') + Math.abs(x).toFixed(3);
const percent = (p) => p >= 0.0995 ? `${Math.round(100 * p)}%` : `${(100 * p).toFixed(1)}%`;

// --- colors ---------------------------------------------------------------------------------------
const tint = (t) => {
  const scale = data.scales[by];
  if (by === 'gain') {
    const g = data.gain[t];
    if (g === null) return '';
    return `rgba(${g > 0 ? BLUE : ORANGE}, ${(0.62 * Math.min(1, Math.abs(g) / scale)).toFixed(3)})`;
  }
  if (by === 'copy') return '';  // the style sheet fills what is copied
  const value = by === 'surprise' ? data.on[t] : data.entropy[t];
  if (value === null) return '';
  return `rgba(${by === 'surprise' ? VIOLET : TEAL}, ${(0.6 * Math.min(1, value / scale)).toFixed(3)})`;
};
const hexTint = (hex, alpha) =>
  `rgba(${[1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)).join(', ')}, ${alpha})`;
const paint = () => {
  all('.text [data-t]').forEach(span => {
    const t = Number(span.dataset.t);
    span.style.backgroundColor = t < data.labels.length ? tint(t) : '';
    span.classList.toggle('unused', filter !== null && !used(t));
  });
  element.querySelector('.text').classList.toggle('by-copy', by === 'copy');
  all('.switch button').forEach(b => b.setAttribute('aria-pressed', b.dataset.by === by));
  legend();
};
const legend = () => {
  const scale = element.querySelector('.scale');
  if (!scale) return;
  const ramp = (from, to) => `linear-gradient(90deg, ${from}, ${to})`;
  const bar = make('i', undefined, 'ramp');
  const says = {
    gain: [`hurt ${-data.scales.gain} nat`, `+${data.scales.gain} nat helped`,
      `linear-gradient(90deg, rgba(${ORANGE}, .62), transparent, rgba(${BLUE}, .62))`],
    surprise: ['expected', `${data.scales.surprise} nat or more`, ramp('transparent', `rgba(${VIOLET}, .6)`)],
    entropy: ['attention on one token', `spread over all (${data.scales.entropy} nat)`,
      ramp('transparent', `rgba(${TEAL}, .6)`)],
  }[by];
  scale.replaceChildren();
  if (by === 'copy') {
    return;
  }
  bar.style.background = says[2];
  scale.append(make('span', says[0]), bar, make('span', says[1]));
  const under = make('span', 'underlined', 'underlined');
  under.style.setProperty('--own', data.colors[0] || 'gray');
  if (data.colors.length) scale.append(under, make('span', '= copied'));
};

// --- a neighbor chosen: the tokens that did not use it are dimmed -----------------------------------
const used = (t) => {
  if (t >= data.labels.length || chunkOf(t) !== filter.chunk + 1) return false;
  const effect = data.shapley[t][filter.neighbor], from = data.from[t];
  return Math.abs(effect || 0) >= data.used || (from && from[0] === filter.neighbor && data.copied[t] >= 5);
};
const toggleFilter = (card) => {
  const chunk = Number(card.dataset.chunk), neighbor = Number(card.dataset.neighbor);
  const same = filter && filter.chunk === chunk && filter.neighbor === neighbor;
  filter = same ? null : {chunk, neighbor};
  all('.card .name').forEach(b => b.setAttribute('aria-pressed', !same && b.closest('.card') === card));
  paint();
};

// --- a token chosen -------------------------------------------------------------------------------
const likely = (title, arm, t) => {
  const row = make('div', undefined, 'row'), list = make('ol', undefined, 'likely');
  row.append(make('span', title, 'arm'));
  data.top[arm][t - 1].forEach((id, i) => {
    const p = data.p[arm][t - 1][i], item = make('li', undefined, id === data.ids[t] ? 'it' : '');
    const bar = make('i');
    bar.style.width = `${100 * p}%`;
    item.append(theirs('span', data.words[id]), bar, make('b', percent(p)));
    list.append(item);
  });
  row.append(list);
  return row;
};
const worth = (gain) => {  // what rounds to nothing neither helped nor hurt
  const none = Math.abs(gain) < 0.0005;
  return make('b', none ? 'gain 0.000' : `gain ${signed(gain)}`, none ? '' : gain > 0 ? 'helped' : 'hurt');
};
const facts = (line, t) => {
  const on = data.on[t], off = data.off[t], gain = data.gain[t];
  if (gain === null) { line.append(make('span', `surprise ${on.toFixed(2)} nat`)); return; }
  line.append(make('span', `surprise ${on.toFixed(2)} nat with neighbors, ${off.toFixed(2)} without:`), worth(gain));
  const from = data.from[t], n = data.copied[t];
  if (n <= 1) return;
  const go = make('button', `ends ${n} tokens of neighbor ${from[0] + 1}, ${from[1]}`, 'source');
  go.type = 'button';
  go.onclick = () => mark(t, true);
  line.append(go);
};
const shares = (t) => {
  const list = make('p', undefined, 'by-neighbor');
  data.shapley[t].forEach((value, k) => {
    const one = make('span', `${k + 1}: effect ${signed(value || 0)}, mass ${percent(data.mass[t][k])}`);
    one.style.setProperty('--own', data.colors[k]);
    list.append(one);
  });
  if (data.null[t] !== null) list.append(make('span', `nothing: mass ${percent(data.null[t])}`));
  return list;
};
// One line at first; the likeliest tokens come once a visitor chose a token.
const panel = (t) => {
  const box = element.querySelector('.token-panel'), end = t === data.labels.length;
  const line = make('p', undefined, 'which');
  box.replaceChildren(line);
  line.append(end ? make('b', 'What would come next') : theirs('b', data.labels[t]));
  if (!end) line.append(make('span', `token ${t + 1 - data.padding}, chunk ${chunkOf(t) + 1}`));
  if (t === data.padding) { line.append(make('span', 'the first: nothing came before it')); return; }
  if (!end) facts(line, t);
  if (!asked) return;
  if (!end && data.shapley[t].length) box.append(shares(t));
  if (data.gain[t] === null && !end) box.append(likely('expected', 0, t));
  else box.append(likely('retrieval on', 0, t), likely('off', 1, t));
};
const sourceTokens = (t) => {
  const from = t < data.labels.length ? data.from[t] : null;
  if (!from) return [];
  const card = found(chunkOf(t) - 1, from[0]);
  const last = from[2] + (from[1] === 'F' ? data.chunkLen : 0);
  return card ? [...Array(data.copied[t]).keys()].map(i => card.querySelector(`[data-r="${last - i}"]`))
    .filter(Boolean) : [];
};
// Scroll within the neighbors' own boxes only, unless asked to go there: the page must not jump.
const mark = (t, go) => {
  all('.card .hit').forEach(span => span.classList.remove('hit'));
  const hits = sourceTokens(t);
  hits.forEach(span => span.classList.add('hit'));
  if (!hits.length) return;
  const box = hits[0].closest('p');
  box.scrollTop = hits[0].offsetTop - box.clientHeight / 2;
  if (go) hits[0].scrollIntoView({block: 'center', behavior: calm.matches ? 'auto' : 'smooth'});
};
const keepIn = (box, span) => {  // a long text scrolls within its box
  const place = span.getBoundingClientRect(), frame = box.getBoundingClientRect();
  if (place.top < frame.top || place.bottom > frame.bottom) {
    box.scrollTop += place.top - frame.top - box.clientHeight / 2;
  }
};
const choose = (t, {focus = false, tell = true, byHand = true} = {}) => {
  if (!data) return;
  asked = asked || byHand;
  chosen = Math.max(data.padding, Math.min(data.labels.length, t));
  const span = token(chosen), number = String(chunkOf(chosen)), block = span.closest('.chunk');
  all('.text [data-t].chosen').forEach(s => { s.classList.remove('chosen'); s.tabIndex = -1; });
  span.classList.add('chosen');
  span.tabIndex = 0;
  all('.chunk').forEach(c => c.classList.toggle('chosen', c === block));
  all('.found').forEach(f => { f.hidden = f.dataset.of !== number; });
  keepIn(element.querySelector('.text'), span);
  if (focus) span.focus({preventScroll: false});
  panel(chosen);
  mark(chosen, false);
  if (tell) document.dispatchEvent(new CustomEvent('retro-chosen', {detail: {token: chosen}}));
};

// --- a neighbor edited in its card -------------------------------------------------------------------
const words = (card, part) => [...card.querySelectorAll('[data-r]')]
  .filter(s => (Number(s.dataset.r) < data.chunkLen) === (part === 'n')).map(s => s.textContent).join('');
const grow = (area) => { area.style.height = 'auto'; area.style.height = `${area.scrollHeight + 2}px`; };
// What was typed and is not written yet, by place: a text that is drawn anew, by another edit, gets it back.
const drafts = new Map();
let sent = null, drawn;
const keyOf = (card) => `${card.dataset.chunk} ${card.dataset.neighbor}`;
const found = (chunk, neighbor) => element.querySelector(`.card[data-chunk="${chunk}"][data-neighbor="${neighbor}"]`);
const whole = (card) => JSON.stringify([words(card, 'n'), words(card, 'f')]);
const typed = (card) => ({n: card.querySelector('textarea.n').value, f: card.querySelector('textarea.f').value});
const keepDraft = (card) => drafts.set(keyOf(card), {...typed(card), of: whole(card)});
const say = (card, sentence, kind) => {
  card.querySelector('.told')?.remove();
  const told = make('p', sentence, `told ${kind}`);
  told.setAttribute('role', 'status');
  card.append(told);
};
const open = (card, texts) => {
  const box = make('div', undefined, 'editing'), fields = {};
  for (const [part, name] of [['n', 'N: the neighbor'], ['f', 'F: what follows it']]) {
    const label = make('label', name), area = make('textarea');
    area.className = part;
    area.dir = 'auto';
    area.value = texts[part];
    area.addEventListener('input', () => { grow(area); keepDraft(card); });
    area.addEventListener('keydown', e => {
      if (e.key === 'Escape') { e.stopPropagation(); unedit(card); }
      if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) send(card, 'write', typed(card));
    });
    label.append(area);
    box.append(label);
    fields[part] = area;
  }
  const row = make('div', undefined, 'acts');
  for (const [act, name] of [['write', 'Write with this'], ['cancel', 'Cancel']]) {
    const button = make('button', name, act);
    button.type = 'button';
    button.dataset.act = act;
    row.append(button);
  }
  box.append(row);
  card.classList.add('open');
  card.querySelector('.passages').after(box);
  Object.values(fields).forEach(grow);
  return fields;
};
const edit = (card, word, go = true) => {
  if (card.querySelector('.editing')) return;
  const fields = open(card, {n: words(card, 'n'), f: words(card, 'f')});
  const field = word && !fields.n.value.includes(word) ? fields.f : fields.n, from = word ? field.value.indexOf(word) : -1;
  field.focus({preventScroll: true});
  if (from >= 0) field.setSelectionRange(from, from + word.length);
  else field.setSelectionRange(0, 0);
  const box = card.querySelector('.editing');
  if (go) box.scrollIntoView({block: 'nearest', behavior: calm.matches ? 'auto' : 'smooth'});
};
const unedit = (card) => {
  drafts.delete(keyOf(card));
  card.querySelector('.told')?.remove();
  card.querySelector('.editing').remove();
  card.classList.remove('open');
  card.querySelector('[data-act="edit"]').focus({preventScroll: true});
};
const send = (card, act, texts = {}) => {
  if (card.classList.contains('sent')) return;
  if (element.querySelector('.card.sent')) {  // one at a time
    say(card, 'Another edit is under way. Send this one when it has come: what you typed stays here.', 'busy');
    return;
  }
  card.querySelector('.told')?.remove();
  sent = act === 'write' ? keyOf(card) : null;
  if (sent) keepDraft(card);
  const waits = make('p', 'Waiting for its turn.', 'waits');  // ui/linked_view.py says there what for
  waits.setAttribute('role', 'status');
  card.append(waits);
  card.classList.add('sent');
  card.setAttribute('aria-busy', 'true');
  card.querySelectorAll('textarea').forEach(area => { area.readOnly = true; });
  trigger('select', {act, chunk: Number(card.dataset.chunk), neighbor: Number(card.dataset.neighbor), token: chosen,
    ...texts});
};
const reopen = () => {
  if (seen !== drawn) {
    if (!('edited' in element.querySelector('.linked').dataset)) drafts.clear();  // another text was asked for
    else if (sent) drafts.delete(sent);  // its words are the neighbor's now
  }
  drawn = seen;
  sent = null;
  for (const [key, draft] of drafts) {
    const card = found(...key.split(' '));
    if (!card || card.querySelector('.editing')) continue;
    open(card, draft);
    if (whole(card) !== draft.of) say(card, 'You typed this for the neighbor that stood here before.', 'kept');
  }
};
const tryIt = (button) => {
  const {chunk, neighbor, old, new: other} = button.dataset;
  choose((Number(chunk) + 1) * data.chunkLen, {byHand: false});
  const card = found(chunk, neighbor);
  edit(card, old, false);
  for (const area of card.querySelectorAll('textarea')) area.value = area.value.replaceAll(old, other);
  button.disabled = true;
  send(card, 'write', typed(card));
};
element.addEventListener('dblclick', e => {
  const card = e.target.closest('.card');
  if (!data || !card || !e.target.closest('.passages')) return;
  const word = String(getSelection()).trim();
  edit(card, word.length > 1 ? word : e.target.closest('[data-r]')?.textContent.trim());
});

element.addEventListener('click', e => {
  if (!data) return;
  const act = e.target.closest('[data-act]'), card = e.target.closest('.card');
  if (act && act.dataset.act === 'used') { toggleFilter(card); return; }
  if (act && act.dataset.act === 'edit') { edit(card); return; }
  if (act && act.dataset.act === 'cancel') { unedit(card); return; }
  if (act && act.dataset.act === 'write') { send(card, 'write', typed(card)); return; }
  if (act && act.dataset.act === 'try') { tryIt(act); return; }
  if (act) { send(card, act.dataset.act); return; }
  const pick = e.target.closest('[data-by]');
  if (pick) { by = pick.dataset.by; paint(); return; }
  const span = e.target.closest('.text [data-t]');
  if (span) { choose(Number(span.dataset.t), {focus: true}); return; }
  const block = e.target.closest('.text .chunk');
  if (block) choose(Math.max(data.padding, Number(block.dataset.chunk) * data.chunkLen));
});
element.addEventListener('keydown', e => {
  if (!data || !e.target.closest('.text')) return;
  const ahead = getComputedStyle(token(chosen).parentElement).direction === 'rtl' ? -1 : 1;
  const step = {ArrowRight: ahead, ArrowLeft: -ahead, ArrowDown: data.chunkLen, ArrowUp: -data.chunkLen}[e.key];
  if (e.key === 'Home') { e.preventDefault(); choose(0, {focus: true}); }
  if (e.key === 'End') { e.preventDefault(); choose(data.labels.length, {focus: true}); }
  if (step) { e.preventDefault(); choose(chosen + step, {focus: true}); }
});
// a cell of the heatmap marks its token and the neighbor's
document.addEventListener('retro-cell', e => {
  if (!data || !element.isConnected) return;
  choose(e.detail.token);
  all('.card .hit').forEach(span => span.classList.remove('hit'));
  const card = found(chunkOf(e.detail.token) - 1, e.detail.neighbor);
  const there = card && card.querySelector(`[data-r="${e.detail.place}"]`);
  if (there) {
    there.classList.add('hit');
    const box = there.closest('p');
    box.scrollTop = there.offsetTop - box.clientHeight / 2;
  }
});

let seen;
const fresh = () => {
  const holder = element.querySelector('.data');
  const stamp = holder && holder.dataset.stamp;  // Gradio may keep the nodes and change what is in them
  if (stamp === seen) return;
  seen = stamp;
  data = holder ? JSON.parse(holder.textContent) : null;
  if (!data) return;
  filter = null;
  const known = all('[data-by]').map(b => b.dataset.by);
  if (!known.includes(by)) by = known[0];
  paint();
  asked = false;
  choose(Number(element.querySelector('.linked').dataset.chosen), {byHand: false});
  reopen();
};
new MutationObserver(fresh).observe(
  element, {childList: true, subtree: true, attributes: true, attributeFilter: ['data-stamp']});
fresh();
