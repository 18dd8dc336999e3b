// Every picture can be saved as PNG and SVG: what is drawn with HTML has data-picture (the name of its file) and
// buttons in it; those of plotly get theirs here. Nothing leaves the machine.
const shown = (color) => color && color !== 'transparent' && !/,\s*0\)$/.test(color) && color !== 'none';
const escaped = (words) => words.replace(/[&<>"]/g, c => ({'&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;'}[c]));
const round = (x) => Math.round(10 * x) / 10;

// The words of a text node as they stand, a line at a time.
const lines = (node) => {
  const range = document.createRange(), found = [];
  for (const word of node.data.matchAll(/\S+\s?/g)) {
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].trimEnd().length);
    const box = range.getBoundingClientRect(), last = found.at(-1);
    if (!box.width) continue;
    if (last && Math.abs(last.bottom - box.bottom) < 2) Object.assign(last, {right: box.right, words: last.words + word[0]});
    else found.push({left: box.left, right: box.right, bottom: box.bottom, height: box.height, words: word[0]});
  }
  return found;
};

// What stands within an element as SVG: boxes with a ground or a border, shapes, canvases that can say how they
// are drawn, and words.
const asSvg = (root) => {
  const frame = root.getBoundingClientRect(), parts = [], size = [0, 0];
  const place = (x, y, w, h) => {
    size[0] = Math.max(size[0], x + w);
    size[1] = Math.max(size[1], y + h);
    return `x="${round(x)}" y="${round(y)}" width="${round(w)}" height="${round(h)}"`;
  };
  const walk = (one, alpha, right) => {
    if (one.matches('.saves, .data, .caption, [hidden]')) return;
    const style = getComputedStyle(one), box = one.getBoundingClientRect();
    if (style.display === 'none' || style.visibility === 'hidden') return;
    const x = box.left - frame.left + right, y = box.top - frame.top, seen = alpha * style.opacity;
    if (one.tagName === 'CANVAS') {
      if (one.picture) parts.push(`<g transform="translate(${round(x)} ${round(y)})">${one.picture()}</g>`);
      place(x, y, box.width, box.height);
      return;
    }
    const ground = one.tagName === 'rect' ? style.fill : style.backgroundColor;
    const opacity = round(10 * seen * (one.tagName === 'rect' ? style.fillOpacity : 1)) / 10;
    if (shown(ground) && box.width && box.height) {
      parts.push(`<rect ${place(x, y, box.width, box.height)} fill="${ground}" fill-opacity="${opacity}"/>`);
    }
    for (const [side, at] of [['Left', [0, 0, 0, 1]], ['Bottom', [0, 1, 1, 1]]]) {
      const wide = parseFloat(style[`border${side}Width`]);
      if (!wide || !shown(style[`border${side}Color`]) || !(one instanceof HTMLElement)) continue;
      const across = side === 'Left';
      parts.push(`<rect ${place(x, across ? y : y + box.height - wide, across ? wide : box.width,
        across ? box.height : wide)} fill="${style[`border${side}Color`]}"/>`);
    }
    const inside = right + (one.classList.contains('scroll') ? one.scrollLeft : 0);
    for (const child of one.childNodes) {
      if (child.nodeType === Node.ELEMENT_NODE) walk(child, seen, inside);
      if (child.nodeType !== Node.TEXT_NODE || !child.data.trim()) continue;
      for (const line of lines(child)) {
        const left = line.left - frame.left + inside, foot = line.bottom - frame.top;
        place(left, foot - line.height, line.right - line.left, line.height);
        parts.push(`<text x="${round(left)}" y="${round(foot - 0.22 * line.height)}" fill="${style.color}" ` +
          `fill-opacity="${seen}" font-family="${escaped(style.fontFamily)}" font-size="${style.fontSize}" ` +
          `font-weight="${style.fontWeight}">${escaped(line.words.trimEnd())}</text>`);
      }
    }
  };
  walk(root, 1, 0);
  const [wide, high] = size.map(one => Math.ceil(one) + 16);
  const ground = getComputedStyle(document.body).backgroundColor;
  return {wide, high, text: `<svg xmlns="http://www.w3.org/2000/svg" width="${wide}" height="${high}" ` +
    `viewBox="-8 -8 ${wide} ${high}"><rect x="-8" y="-8" width="${wide}" height="${high}" fill="${ground}"/>` +
    `${parts.join('')}</svg>`};
};

const keep = (blob, name) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
const save = async (picture, kind) => {
  const {wide, high, text} = asSvg(picture), name = `${picture.dataset.picture}.${kind}`;
  if (kind === 'svg') { keep(new Blob([text], {type: 'image/svg+xml'}), name); return; }
  const drawn = new Image(), canvas = document.createElement('canvas');
  drawn.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await drawn.decode();
  canvas.width = 2 * wide;
  canvas.height = 2 * high;
  canvas.getContext('2d').drawImage(drawn, 0, 0, 2 * wide, 2 * high);
  canvas.toBlob(blob => keep(blob, name), 'image/png');
};
document.addEventListener('click', e => {
  const button = e.target.closest('[data-save]');
  if (!button) return;
  const kind = button.dataset.save, picture = button.closest('[data-picture]');
  if (picture) { save(picture, kind); return; }
  const plot = button.closest('.saves').parentElement.querySelector('.js-plotly-plot');
  const name = plot.closest('[id]:not(.js-plotly-plot)')?.id || 'figure';
  window.Plotly.downloadImage(plot, {format: kind, filename: name, scale: kind === 'png' ? 2 : 1});
});
