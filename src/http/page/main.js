// The page for operators: asks, shows, and puts the parts together.

import { Refused, explained, key, useKey } from './access.js';
import { Recent, alerts, counters } from './alerts.js';
import { Charts } from './charts.js';
import { by, element, fill, say } from './elements.js';
import { about, show } from './figures.js';
import { bytes, duration, entries as counted } from './format.js';
import { History } from './history.js';
import { chooseKey, setUpInvalidation } from './invalidate.js';
import { Poller } from './poll.js';
import { setUpSearch } from './search.js';

const history = new History();
const recent = new Recent();
const charts = new Charts();
const poller = new Poller(told);

let chosen = '';
let models = [];
let latest = null;
let lastAnswer = null;
let nextAt = null;

const seconds = () => Date.now() / 1000;

function told({ error, nextMs, ...found }) {
  nextAt = Date.now() + nextMs;
  if (error) failed(error);
  else answered(found);
  age();
}

function answered({ stats, ready, metrics, info }) {
  if (stats.tenant !== undefined) {
    narrowed(stats);
    return;
  }
  const now = seconds();
  lastAnswer = now;
  if (metrics) recent.add(now, counters(metrics));
  models = Object.entries(stats.models ?? { [stats.model]: stats });
  if (!models.some(([name]) => name === chosen)) {
    chosen = models[0][0];
    history.clear();
  }
  latest = { stats, ready, info };
  history.add(now, stats, current());
  by('trouble').hidden = true;
  by('main').dataset.old = 'false';
  render();
}

/** The key is one tenant's: the service tells it no figures but its own. */
function narrowed({ tenant, entries, bytes: size }) {
  stand('denied', 'One tenant’s key');
  by('main').dataset.old = 'true';
  lastAnswer = seconds();
  say(by('trouble-title'), 'A tenant’s key.');
  const whose = tenant === '' ? 'This API key is bound to namespaces of no tenant, which have' : `This API key is the tenant ${tenant}’s, who has`;
  say(by('trouble-text'), `${whose} ${counted(entries)} (${bytes(size)}). With it you can search and invalidate these, below; the figures are shown to a key with the scope admin.`);
  by('trouble').hidden = false;
}

/** The figures of the model that is looked at. */
function current() {
  return models.find(([name]) => name === chosen)[1];
}

function render() {
  const { stats, ready, info } = latest;
  choices();
  show(stats, current(), history);
  charts.show(history);
  about(stats, current(), info);
  const found = alerts({ models, ready, recent, now: seconds() });
  list(found);
  const state = ready && ready.status !== 'ready' ? 'away' : found.length > 0 ? 'troubled' : 'ready';
  const words = { away: 'Not ready', troubled: `Ready, ${found.length} alert${found.length === 1 ? '' : 's'}`, ready: 'Ready' };
  stand(state, words[state]);
}

function stand(state, words) {
  by('standing').dataset.state = state;
  say(by('standing-text'), words);
}

function list(found) {
  const facts = found.map(({ severity, name, title, advice }) => [severity, name, title, advice]);
  fill(by('alerts'), facts, () => {
    if (found.length === 0) {
      return [element('li', { 'data-severity': 'none' }, element('span', { className: 'kind' }, 'All well'), element('div', {}, 'No alert.'))];
    }
    return found.map(({ severity, name, title, advice }) => {
      const text = element('div', {}, element('strong', {}, title), advice ? ` — ${advice}` : '');
      if (name) text.append(' ', element('span', { className: 'name mono' }, name));
      return element('li', { 'data-severity': severity }, element('span', { className: 'kind' }, severity === 'page' ? 'Now' : 'Today'), text);
    });
  });
}

function failed(error) {
  history.skip(seconds());
  const denied = error instanceof Refused && (error.needsKey || error.forbids);
  const title = denied ? 'No access.' : error.status === 0 ? 'The service does not answer.' : 'The service does not answer as it should.';
  stand(denied ? 'denied' : 'away', denied ? 'No access' : 'No answer');
  by('main').dataset.old = 'true';
  say(by('trouble-title'), title);
  say(by('trouble-text'), denied || error.status !== 0 ? explained(error) : 'It may be restarting. The figures below are the last that were known; this page tries again by itself.');
  by('trouble').hidden = false;
  if (denied && by('key-panel').hidden) openKey(true);
  if (latest) charts.show(history);
}

/** Which models there are to look at. */
function choices() {
  const names = models.map(([name]) => name);
  const select = by('model');
  fill(select, names, () => names.map((name) => element('option', { value: name }, name)));
  select.hidden = names.length < 2;
  select.value = chosen;
  say(by('model-name'), names.length < 2 ? current().model : '');
}

function age() {
  const parts = [];
  if (poller.paused) parts.push('Paused');
  if (lastAnswer !== null) parts.push(`${duration(Math.max(0, seconds() - lastAnswer))} ago`);
  if (!by('trouble').hidden && !poller.paused && nextAt !== null) parts.push(`next try in ${duration(Math.max(0, (nextAt - Date.now()) / 1000))}`);
  say(by('updated'), parts.join(' · '));
}

function openKey(open) {
  by('key-panel').hidden = !open;
  by('key-button').setAttribute('aria-expanded', String(open));
}

by('model').addEventListener('change', ({ target }) => {
  chosen = target.value;
  history.clear();
  history.add(seconds(), latest.stats, current());
  render();
});

by('pause').addEventListener('click', () => {
  poller.paused = !poller.paused;
  by('pause').setAttribute('aria-pressed', String(poller.paused));
  say(by('pause'), poller.paused ? 'Go on' : 'Pause');
  age();
});

by('retry').addEventListener('click', () => poller.now());

by('key-button').addEventListener('click', () => {
  openKey(by('key-panel').hidden);
  if (!by('key-panel').hidden) by('key').focus();
});

by('key-panel').addEventListener('submit', (event) => {
  event.preventDefault();
  useKey(by('key').value);
  by('key').value = '';
  openKey(false);
  by('key-button').focus();
  named();
  poller.now();
});

by('key-forget').addEventListener('click', () => {
  useKey('');
  by('key').value = '';
  openKey(false);
  by('key-button').focus();
  named();
  poller.now();
});

function named() {
  say(by('key-button'), key() ? 'API key set' : 'API key');
}

const several = () => (models.length > 1 ? chosen : '');
setUpSearch({ model: several, choose: chooseKey });
setUpInvalidation({ model: several, changed: () => poller.now() });
setInterval(age, 1000);
named();
poller.start();
