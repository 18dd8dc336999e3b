// What is typed or chosen runs in the direction of its own first letter: Arabic and Hebrew from the right. Gradio gives
// each field one direction; the texts that Python makes have dir="auto" of their own.
const FIELDS = 'textarea, input:not([type]), input[type="text"], [role="option"]';
const turn = () => {
  for (const field of document.querySelectorAll(FIELDS)) if (field.dir !== 'auto') field.dir = 'auto';
};
let waits = false;
new MutationObserver(() => {
  if (waits) return;
  waits = true;
  requestAnimationFrame(() => { waits = false; turn(); });
}).observe(document.body, {childList: true, subtree: true});
turn();
