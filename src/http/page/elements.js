// Elements of the page. Everything that comes from the service is set as text, never as markup.

/** The element of an id, which is on the page. */
export function by(id) {
  return document.getElementById(id);
}

/** A new element. Of its properties those with `aria-`, `data-` or `role` are attributes; children are elements or texts. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [property, value] of Object.entries(properties)) {
    if (/^(aria-|data-|role$|scope$)/.test(property)) made.setAttribute(property, value);
    else made[property] = value;
  }
  made.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return made;
}

/** Sets a text, if it has changed: what is read aloud is not read again for nothing. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Shows a figure: as people read it, with its value for programs and all its digits for who points at it. */
export function figure(name, value, text, title = '') {
  for (const target of document.querySelectorAll(`[data-figure="${name}"]`)) {
    say(target, text);
    target.value = value ?? '';
    if (target.title !== title) target.title = title;
  }
}

/** Replaces what an element has, if what it is made of has changed since. */
export function fill(target, facts, make) {
  const key = JSON.stringify(facts);
  if (shown.get(target) === key) return;
  shown.set(target, key);
  target.replaceChildren(...make());
}

const shown = new WeakMap();

/** A bar: how much of the whole, 0 to 1. */
export function bar(target, share) {
  const part = Number.isFinite(share) ? Math.min(Math.max(share, 0), 1) : 0;
  target.firstElementChild.style.width = `${part * 100}%`;
  if (target.getAttribute('role') === 'meter') target.setAttribute('aria-valuenow', String(Math.round(part * 100)));
  return part;
}
