// The invalidation form. It counts first, says what is meant, and changes something only when that is confirmed.

import { ask, explained } from './access.js';
import { by, element, say } from './elements.js';
import { entries } from './format.js';

const PATIENCE_MS = 60_000;

/** What the fields are called when they are told back. */
const WORDS = {
  keys: 'under the keys',
  inputs: 'of the texts',
  tags: 'with one of the tags',
  tag_glob: 'with a tag like',
  namespace: 'in the namespace',
  older_than: 'older than',
  model: 'of the model',
};

const ITEMS_TOLD_MAX = 8;

/** Sets up form and dialog. `model` answers the model to narrow to, if there are several; `changed` is called when something was. */
export function setUpInvalidation({ model, changed }) {
  const [form, dialog] = [by('invalidate-form'), by('confirm')];
  let counted = null;

  by('invalidate-in-namespace').addEventListener('change', ({ target }) => {
    by('invalidate-namespace').disabled = !target.checked;
    if (target.checked) by('invalidate-namespace').focus();
  });

  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const selector = selected();
    if (Object.keys(selector).length === 0) {
      tell('Say first which entries are meant: everything at once is not offered here.', 'failed');
      return;
    }
    if (model()) selector.model = model();
    const terms = { ...selector, mode: form.elements.mode.value };
    const reason = by('invalidate-reason').value.trim();
    if (reason) terms.reason = reason;
    tell('Counting …');
    busy(form, true);
    try {
      const { matched } = await ask('/invalidate', { body: { ...terms, dry_run: true }, patience: PATIENCE_MS });
      if (matched === 0) {
        tell('No entry is meant by that.');
        return;
      }
      tell(`${entries(matched)} would be ${terms.mode === 'soft' ? 'marked stale' : 'removed'}.`);
      counted = { terms, matched };
      confirm(dialog, selector, counted);
    } catch (error) {
      tell(explained(error), 'failed');
    } finally {
      busy(form, false);
    }
  });

  by('confirm-no').addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => {
    // Closed by Escape too. What was counted holds no longer.
    if (counted) tell(`Nothing was changed: ${entries(counted.matched)} stay.`);
    counted = null;
  });

  by('confirm-yes').addEventListener('click', async () => {
    if (!counted) return;
    const { terms } = counted;
    counted = null;
    dialog.close();
    busy(form, true);
    tell('Invalidating …');
    try {
      const { matched, removed, published, took_ms: took } = await ask('/invalidate', { body: { ...terms, dry_run: false }, patience: PATIENCE_MS });
      const done = terms.mode === 'soft' ? `${entries(matched)} marked stale` : `${entries(removed)} removed`;
      const others = published === false ? ' Other machines are told as soon as the shared tier can be reached.' : '';
      tell(`${done} in ${took.toFixed(1)} ms.${others}`, 'done');
      changed();
    } catch (error) {
      tell(explained(error), 'failed');
    } finally {
      busy(form, false);
    }
  });
}

/** Fills the form with the key of an entry that was found. */
export function chooseKey(key) {
  const form = by('invalidate-form');
  form.reset();
  by('invalidate-namespace').disabled = true;
  by('invalidate-more').open = true;
  by('invalidate-keys').value = key;
  tell('');
  by('invalidate-keys').focus();
}

function tell(text, kind = '') {
  by('invalidate-said').dataset.kind = kind;
  say(by('invalidate-said'), text);
}

function busy(form, is) {
  form.querySelector('button[type="submit"]').disabled = is;
}

/** Which entries the fields mean. */
function selected() {
  const lines = (id) => by(id).value.split('\n').map((line) => line.replace(/\r$/, '')).filter((line) => line !== '');
  const selector = {};
  const keys = lines('invalidate-keys').map((line) => line.trim());
  if (keys.length > 0) selector.keys = keys;
  const texts = lines('invalidate-texts');
  if (texts.length > 0) selector.inputs = texts;
  const tags = lines('invalidate-tags');
  if (tags.length > 0) selector.tags = tags;
  if (by('invalidate-glob').value !== '') selector.tag_glob = by('invalidate-glob').value;
  if (by('invalidate-in-namespace').checked) selector.namespace = by('invalidate-namespace').value.trim();
  const age = by('invalidate-age').value;
  if (age !== '') selector.older_than = Math.round(Number(age) * Number(by('invalidate-age-unit').value));
  return selector;
}

function confirm(dialog, selector, { terms, matched }) {
  const soft = terms.mode === 'soft';
  say(by('confirm-title'), soft ? `Mark ${entries(matched)} stale?` : `Remove ${entries(matched)}?`);
  say(by('confirm-text'), soft ? 'They are answered as before until they are next asked for, and computed anew then.' : 'They are computed anew when they are next asked for. This cannot be undone.');
  const told = Object.entries(selector).flatMap(([field, value]) => [element('dt', {}, WORDS[field]), element('dd', {}, words(field, value))]);
  by('confirm-what').replaceChildren(...told);
  say(by('confirm-yes'), soft ? 'Mark them stale' : 'Remove them');
  dialog.showModal();
  // The answer that changes nothing is the one at hand.
  by('confirm-no').focus();
}

function words(field, value) {
  if (field === 'namespace') return value || 'the default one';
  if (field === 'older_than') return `${value} seconds`;
  if (!Array.isArray(value)) return value;
  const more = value.length - ITEMS_TOLD_MAX;
  return value.slice(0, ITEMS_TOLD_MAX).join(', ') + (more > 0 ? ` and ${more} more` : '');
}
