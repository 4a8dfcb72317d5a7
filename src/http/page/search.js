// The search box: entries near to a text, with their tags and payloads.

import { ask, explained } from './access.js';
import { bar, by, element, say } from './elements.js';
import { entries } from './format.js';

/** Longer payloads are cut on the page. */
const PAYLOAD_CHARS_MAX = 4000;

/** Sets up the form. `model` answers which model is looked at; `choose` is given the key of an entry to invalidate. */
export function setUpSearch({ model, choose }) {
  const form = by('search-form');
  let round = 0;
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    round += 1;
    const mine = round;
    tell('Searching …');
    try {
      const answer = await ask('/search', { body: request(model()), patience: 60_000 });
      if (mine !== round) return;
      const found = answer.results[0];
      tell(found.length === 0 ? 'Nothing is near to it, or nothing is cached.' : `${entries(found.length)}, the nearest first.`);
      by('found').replaceChildren(...found.map((one) => row(one, choose)));
    } catch (error) {
      if (mine !== round) return;
      by('found').replaceChildren();
      tell(explained(error), 'failed');
    }
  });
}

function tell(text, kind = '') {
  by('search-said').dataset.kind = kind;
  say(by('search-said'), text);
}

function request(model) {
  const body = { inputs: [by('search-text').value], k: Number(by('search-count').value) };
  if (by('search-similarity').value !== '') body.min_similarity = Number(by('search-similarity').value);
  if (by('search-tag').value !== '') body.tags = [by('search-tag').value];
  if (model) body.model = model;
  return body;
}

function row({ key, similarity, tags, payload }, choose) {
  const meter = element('span', { className: 'fill meter', 'aria-hidden': 'true' }, element('span'));
  bar(meter, similarity);
  const button = element('button', { type: 'button', className: 'quiet', 'aria-label': `Invalidate the entry ${key.slice(0, 8)}` }, 'Invalidate …');
  button.addEventListener('click', () => choose(key));
  const parts = [
    element('div', { className: 'line' }, element('span', { className: 'similarity', title: String(similarity) }, similarity.toFixed(4)), meter, button),
    element('div', { className: 'key mono' }, key),
  ];
  if (tags.length > 0) {
    parts.push(element('div', { className: 'line' }, ...tags.map((tag) => element('span', { className: 'tag' }, tag))));
  }
  if (payload !== undefined) {
    const text = JSON.stringify(payload, null, 2);
    const cut = text.length > PAYLOAD_CHARS_MAX ? `${text.slice(0, PAYLOAD_CHARS_MAX)} …` : text;
    // To be scrolled by keyboard it has to be reached by it.
    parts.push(element('pre', { className: 'payload mono', tabIndex: 0, role: 'group', 'aria-label': 'Payload' }, cut));
  }
  return element('li', {}, ...parts);
}
