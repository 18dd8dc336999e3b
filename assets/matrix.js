// A target that was chosen in the matrix (a click on its row) or in the table of it (a button) is shown.
element.addEventListener('click', e => {
  const button = e.target.closest('[data-target]');
  if (button) trigger('select', {passage: Number(button.dataset.target)});
});
if (element.closest('#evidence-caption')) document.addEventListener('retro-target', e => {
  if (element.isConnected) trigger('select', {passage: e.detail});
});
