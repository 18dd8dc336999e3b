// Tabs as everywhere on the web: the Tab key stops at the chosen one only, the arrow keys go along them.
const STEPS = {ArrowRight: 1, ArrowLeft: -1};
const rove = () => {
  for (const tab of document.querySelectorAll('[role="tablist"] [role="tab"]')) {
    const stop = tab.getAttribute('aria-selected') === 'true' ? 0 : -1;
    if (tab.tabIndex !== stop) tab.tabIndex = stop;
  }
};
document.addEventListener('keydown', e => {
  const tab = e.target.closest('[role="tab"]'), list = tab && tab.closest('[role="tablist"]');
  if (!list || !(e.key in STEPS || e.key === 'Home' || e.key === 'End')) return;
  const tabs = [...list.querySelectorAll('[role="tab"]')].filter(t => t.offsetParent && !t.disabled);
  const at = tabs.indexOf(tab), step = STEPS[e.key];
  const to = step ? (at + step + tabs.length) % tabs.length : e.key === 'Home' ? 0 : tabs.length - 1;
  e.preventDefault();
  tabs[to].click();
  tabs[to].focus();
});
new MutationObserver(rove).observe(
  document.body, {childList: true, subtree: true, attributes: true, attributeFilter: ['aria-selected', 'tabindex']});
rove();
