// What the tokens of the chosen chunk read, a panel for each neighbor: rows are tokens as they were
// written, columns the neighbor's tokens, N and then F. Drawn on canvases; a click on a cell chooses both.
const LABEL = 96, FOOT = 62, CELL_HEIGHT = 15, LEAST = 9;
let data = null, weights = null, chosen = 0, width = 0, column = null;  // the cell that was clicked

const decode = (text) => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const tone = (hex, alpha) =>
  `rgba(${[1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)).join(', ')}, ${alpha})`;
const own = (text) => `\u2068${text}\u2069`;  // in its own direction, between what is ours
const short = (text, most) => own(text.length > most ? text.slice(0, most - 1) + '…' : text);
const chunk = () => Math.floor(chosen / data.shape[1]) - 1;
const weight = (u, row, k, r) => {
  const [, C, K, R] = data.shape;
  return weights[((u * C + row) * K + k) * R + r] / 255;
};

// What draws on a canvas, and the same as SVG for a file: rect, frame, dotted upright line, text.
const MONO = 'ui-monospace, Menlo, Consolas, monospace';
const onCanvas = (pen) => ({
  rect: (x, y, w, h, color) => { pen.fillStyle = color; pen.fillRect(x, y, w, h); },
  frame: (x, y, w, h, color) => {
    pen.strokeStyle = color;
    pen.lineWidth = 1.5;
    pen.setLineDash([]);
    pen.strokeRect(x, y, w, h);
  },
  border: (x, height, color) => {
    pen.globalAlpha = 0.45;
    pen.strokeStyle = color;
    pen.setLineDash([2, 3]);
    pen.beginPath();
    pen.moveTo(x, 0);
    pen.lineTo(x, height);
    pen.stroke();
    pen.globalAlpha = 1;
  },
  text: (words, x, y, {color, size, alpha, bold, turned}) => {
    pen.save();
    pen.translate(x, y);
    if (turned) pen.rotate(-Math.PI / 2);
    pen.globalAlpha = alpha;
    pen.font = `${bold ? 'bold ' : ''}${size}px ${MONO}`;
    pen.textAlign = 'right';
    pen.fillStyle = color;
    pen.fillText(words, 0, 0);
    pen.restore();
  },
});
const asText = (words) => words.replace(/[&<>]/g, c => ({'&': '&amp;', '<': '&lt;', '>': '&gt;'}[c]));
const asSvg = (parts) => ({
  rect: (x, y, w, h, color) => parts.push(`<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="${color}"/>`),
  frame: (x, y, w, h, color) => parts.push(
    `<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="none" stroke="${color}" stroke-width="1.5"/>`),
  border: (x, height, color) => parts.push(
    `<path d="M${x} 0V${height}" stroke="${color}" stroke-dasharray="2 3" stroke-opacity="0.45"/>`),
  text: (words, x, y, {color, size, alpha, bold, turned}) => parts.push(
    `<text transform="translate(${x} ${y})${turned ? ' rotate(-90)' : ''}" text-anchor="end" fill="${color}" ` +
    `fill-opacity="${alpha}" font-family="${MONO}" font-size="${size}"${bold ? ' font-weight="bold"' : ''}>` +
    `${asText(words)}</text>`),
});

// One neighbor: the weights of each row, the tokens of both sides, what is chosen.
const panel = (pen, u, k, rows, wide) => {
  const [, C, , R] = data.shape, first = (u + 1) * C, cell = wide / R, foot = rows * CELL_HEIGHT;
  const color = getComputedStyle(element).color;
  for (let row = 0; row < rows; row++) {
    const t = first + row, y = row * CELL_HEIGHT, mine = t === chosen;
    for (let r = 0; r < R; r++) {
      const w = weight(u, row, k, r);
      if (w <= 0.004) continue;
      pen.rect(LABEL + r * cell, y, Math.max(1, cell - 1), CELL_HEIGHT - 1,
        tone(data.colors[k], (0.04 + 0.96 * w).toFixed(3)));
    }
    pen.text(t < data.labels.length ? short(data.labels[t], 11) : '▸ next', LABEL - 6, y + 11,
      {color, size: 10, alpha: mine ? 1 : 0.7, bold: mine});
    if (mine) pen.frame(LABEL - 0.5, y - 0.5, wide, CELL_HEIGHT, color);
  }
  if (column && column.neighbor === k) pen.frame(LABEL + column.place * cell - 0.5, 0.5, cell, foot, color);
  pen.border(LABEL + R / 2 * cell - 0.5, foot + FOOT, color);
  data.neighbors[u][k].tokens.forEach((word, r) =>
    pen.text(short(word, 10), LABEL + (r + 0.5) * cell + 3, foot + 4, {color, size: 9, alpha: 0.8, turned: true}));
};

const draw = () => {
  const panels = element.querySelector('.panels');
  if (!data || !panels) return;
  const [L, C, , R] = data.shape, u = chunk();
  panels.replaceChildren();
  const reading = element.querySelector('.reading'), saves = element.querySelector('.saves');
  const nothing = u < 0 || u >= L || !data.neighbors[u].length;
  saves.hidden = nothing;
  if (nothing) {
    reading.textContent = u < 0
      ? 'The first chunk reads nothing. Choose a token further on.' : 'Nothing was looked up for this chunk.';
    return;
  }
  const first = (u + 1) * C;
  const rows = Math.min(C, data.labels.length + 1 - first);
  const wide = Math.max(element.clientWidth - LABEL - 4, R * LEAST), cell = wide / R;
  reading.textContent = 'Point at a cell for its weight; click it to mark both tokens.';
  data.neighbors[u].forEach((neighbor, k) => {
    const box = document.createElement('figure');
    const title = document.createElement('figcaption');
    title.textContent = `${k + 1} ${own(neighbor.title)}`;
    title.style.borderLeft = `4px solid ${data.colors[k]}`;  // as text the color would be too pale
    title.style.paddingLeft = '0.4rem';
    const scroll = document.createElement('div');
    scroll.className = 'scroll';
    scroll.tabIndex = 0;
    scroll.setAttribute('role', 'group');
    scroll.setAttribute('aria-label', `Attention to neighbor ${k + 1}; the arrow keys scroll it`);
    const canvas = document.createElement('canvas');
    const height = rows * CELL_HEIGHT + FOOT, ratio = window.devicePixelRatio || 1;
    canvas.width = (LABEL + wide) * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${LABEL + wide}px`;
    canvas.style.height = `${height}px`;
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label',
      `Attention of ${rows} tokens to neighbor ${k + 1}, ${neighbor.title}; the table has the numbers.`);
    const pen = canvas.getContext('2d');
    pen.scale(ratio, ratio);
    panel(onCanvas(pen), u, k, rows, wide);
    canvas.picture = () => {  // for assets/pictures.js
      const parts = [];
      panel(asSvg(parts), u, k, rows, wide);
      return parts.join('');
    };
    const at = (e) => {
      const place = canvas.getBoundingClientRect();
      const r = Math.floor((e.clientX - place.left - LABEL) / cell);
      const row = Math.floor((e.clientY - place.top) / CELL_HEIGHT);
      return r >= 0 && r < R && row >= 0 && row < rows ? {token: first + row, row, neighbor: k, place: r} : null;
    };
    canvas.addEventListener('mousemove', e => {
      const cellAt = at(e);
      if (!cellAt) return;
      const r = cellAt.place, part = r < R / 2 ? 'N' : 'F';
      const who = cellAt.token < data.labels.length ? own(data.labels[cellAt.token]) : 'what comes next';
      reading.textContent = `Before ${who} (token ${cellAt.token + 1 - data.padding}) was written: weight ` +
        `${(weight(u, cellAt.row, k, r) * data.top).toFixed(4)} on ${own(neighbor.tokens[r])} of ${part}, neighbor ${k + 1}`;
    });
    canvas.addEventListener('click', e => {
      const cellAt = at(e);
      if (!cellAt) return;
      column = cellAt;
      document.dispatchEvent(new CustomEvent('retro-cell', {detail: cellAt}));
    });
    scroll.append(canvas);
    box.append(title, scroll);
    panels.append(box);
    if (scroll.scrollWidth > scroll.clientWidth + 1) {  // a cue that there is more
      const cue = document.createElement('p');
      cue.className = 'caption cue';
      cue.textContent = 'Scroll sideways for the rest \u2192';
      box.insertBefore(cue, scroll);
      scroll.classList.add('more');
      scroll.addEventListener('scroll', () =>
        scroll.classList.toggle('more', scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 2));
    }
  });
};

document.addEventListener('retro-chosen', e => {
  if (!element.isConnected) return;
  if (column && column.token !== e.detail.token) column = null;
  chosen = e.detail.token;
  draw();
});
let seen;
const fresh = () => {
  const holder = element.querySelector('.data');
  const stamp = holder && holder.dataset.stamp;  // Gradio may keep the nodes and change what is in them
  if (stamp === seen) return;
  seen = stamp;
  data = holder ? JSON.parse(holder.textContent) : null;
  weights = data && decode(data.weights);
  const marked = document.querySelector('#linked .chosen[data-t]');
  if (marked) chosen = Number(marked.dataset.t);
  draw();
};
new MutationObserver(fresh).observe(
  element, {childList: true, subtree: true, attributes: true, attributeFilter: ['data-stamp']});
new ResizeObserver(() => {
  if (element.clientWidth === width) return;
  width = element.clientWidth;
  draw();
}).observe(element);
fresh();
