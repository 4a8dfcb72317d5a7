// The figures of `/stats` on the page.

import { bar, by, element, figure, fill, say } from './elements.js';
import { bytes, count, duration, exact, milliseconds, money, percent, rate } from './format.js';

/** Where answers come from, in the order of the path: what they are called, and what that means. */
export const SOURCES = [
  ['hit', 'cached', 'in the store, by the text’s key'],
  ['token_hit', 'same tokens', 'in the store, under another spelling of the text'],
  ['joined', 'joined', 'computed for somebody else at the same moment'],
  ['remote', 'shared tier', 'from the tier shared with other machines'],
  ['reused', 'reused', 'a near-duplicate’s vector, within its bound'],
  ['computed', 'computed', 'by the model'],
];

const EMPTY = 'Nothing is stored yet.';

/** Shows one model's figures, `of`, and the service's. */
export function show(stats, of, history) {
  hitRates(of);
  latency(stats.http?.latency);
  tokens(of);
  queue(of.queue);
  store(of);
  sources(of);
  figure('inputs-per-second', history.rate, rate(history.rate));
  census(of.census, of.store?.entries ?? 0);
  reuse(of.reuse);
}

function share(name, value) {
  figure(name, value, percent(value ?? undefined), value === null || value === undefined ? 'nothing was answered' : `${(value * 100).toFixed(3)} %`);
}

function number(name, value) {
  figure(name, value, count(value), exact(value));
}

function hitRates(of) {
  share('hit-rate', of.hit_rate);
  for (const window of ['1m', '15m', '1h']) share(`hit-rate-${window}`, of.windows?.[window]?.hit_rate);
  mix(of.windows?.['1m']?.items ?? {});
}

/** The last minute's sources as one bar. The table says the same in numbers. */
function mix(items) {
  const stack = by('mix');
  if (!stack.firstElementChild) stack.append(...SOURCES.map(([status]) => element('span', { 'data-status': status })));
  const all = Object.values(items).reduce((sum, items) => sum + items, 0);
  for (const part of stack.children) part.style.width = all > 0 ? `${(100 * (items[part.dataset.status] ?? 0)) / all}%` : '0';
}

function latency(found) {
  for (const kind of ['hits', 'misses']) {
    for (const quantile of ['p50', 'p99']) {
      const value = found?.[kind]?.[`${quantile}_ms`] ?? undefined;
      figure(`latency-${kind}-${quantile}`, value, milliseconds(value), value === undefined ? 'no such request in the last minute' : '');
    }
  }
  number('requests-1m', found ? found.hits.requests + found.misses.requests : undefined);
}

function tokens(of) {
  const computed = of.tokens - of.tokens_saved;
  number('tokens-saved', of.tokens_saved);
  number('tokens-computed', computed);
  share('tokens-saved-share', of.tokens > 0 ? of.tokens_saved / of.tokens : undefined);
  by('money').hidden = by('spent').hidden = !of.money;
  if (!of.money) return;
  const { saved, spent, currency, per_million_tokens: price } = of.money;
  figure('money-saved', saved, `${money(saved, currency)} saved`, `at ${price} ${currency} a million tokens`);
  figure('money-spent', spent, money(spent, currency), `at ${price} ${currency} a million tokens`);
}

function level(target, part) {
  target.dataset.level = part >= 0.95 ? 'full' : part >= 0.8 ? 'high' : '';
}

function queue(found) {
  number('queue-texts', found?.texts);
  number('queue-texts-max', found?.texts_max);
  const meter = by('queue-fill');
  level(meter, bar(meter, found?.texts / found?.texts_max));
  fill(by('lanes'), found?.lanes?.map(({ lane, texts }) => [lane, texts]) ?? [], () =>
    (found?.lanes ?? []).map(({ lane, texts }) =>
      element('div', {}, element('dt', {}, lane), element('dd', {}, element('data', { value: texts, title: exact(texts) }, count(texts)))),
    ),
  );
}

function store({ store: found, evictions, memory }) {
  number('store-entries', found?.entries);
  number('store-capacity', found?.capacity_entries);
  // A full store is as it should be: it makes room. It is no warning.
  bar(by('store-fill'), found?.entries / found?.capacity_entries);
  figure('store-bytes', found?.allocated_bytes, bytes(found?.allocated_bytes), `${exact(found?.allocated_bytes)} bytes`);
  const resident = memory?.resident_bytes ?? undefined;
  figure('memory-bytes', resident, bytes(resident), 'in RAM, mapped pages of the store included');
  number('store-evicted', evictions?.capacity);
}

function sources(of) {
  const spans = [['1m', of.windows?.['1m']?.items], ['1h', of.windows?.['1h']?.items], ['', of.items]];
  const sum = (items) => Object.values(items ?? {}).reduce((all, items) => all + items, 0);
  const rows = SOURCES.map(([status, name, meaning]) => ({
    status,
    name,
    meaning,
    cells: spans.map(([span, items]) => ({ span, items: items?.[status] ?? 0, share: sum(items) > 0 ? (items?.[status] ?? 0) / sum(items) : null })),
  }));
  fill(by('tiers'), rows, () =>
    rows.map(({ status, name, meaning, cells }) =>
      element(
        'tr',
        {},
        element('th', { scope: 'row', title: meaning }, element('span', { className: 'swatch', 'data-status': status, 'aria-hidden': 'true' }), name),
        ...cells.map(({ span, items, share }) =>
          element(
            'td',
            { className: span === '1h' ? 'hours' : '' },
            element('data', { value: items, title: exact(items), 'data-items': `${status}${span ? `-${span}` : ''}` }, count(items)),
            element('span', { className: 'share' }, ` ${percent(share ?? undefined)}`),
          ),
        ),
      ),
    ),
  );
}

function census(found, entries) {
  const note = (isCounted, otherwise) => (!found || entries === 0 ? '' : isCounted ? 'by entries' : `by entries, ${otherwise}`);
  // Entries may have come or gone since: a sample is much smaller than the whole.
  const all = found && (found.exact || found.looked_at > 0.9 * entries);
  say(by('namespaces-note'), note(all, `estimated from ${count(found?.looked_at)} of ${count(entries)}`));
  say(by('tags-note'), note(found?.exact, 'of those seen in a sample'));
  shares(by('namespaces'), found?.namespaces, entries, (name) => name || 'the default one', entries === 0 ? EMPTY : 'None are known.');
  shares(by('tags'), found?.tags, entries, (name) => name, entries === 0 ? EMPTY : 'No entry has a tag.');
}

function shares(target, rows, entries, named, empty) {
  const largest = rows?.[0]?.entries ?? 0;
  fill(target, [rows, entries, empty], () => {
    if (!rows?.length) return [element('tr', {}, element('td', { className: 'empty' }, empty))];
    return rows.map(({ name, entries }) => {
      const part = element('span', { className: 'fill', 'aria-hidden': 'true' }, element('span'));
      bar(part, entries / largest);
      return element(
        'tr',
        {},
        element('th', { scope: 'row', title: name }, element('span', {}, named(name))),
        element('td', { className: 'bar' }, part),
        element('td', {}, element('data', { value: entries, title: exact(entries) }, count(entries))),
      );
    });
  });
}

/** How a certificate stands. */
function standing(one, now) {
  if (one.suspended) return ['off', 'switched off'];
  if (one.expires <= now) return ['over', 'expired'];
  return ['serves', `serves, ${duration(one.expires - now)} left`];
}

function reuse(found) {
  const certificates = (found?.fields ?? []).flatMap((field) => field.certificates.map((one) => ({ ...one, namespace: field.namespace })));
  const learnt = found?.learnt ?? 0;
  const summary =
    certificates.length > 0
      ? `${count(found.reused)} reused; ${count(found.audits)} audited, ${count(found.violations)} below their floor`
      : learnt > 0
        ? `No promise is certified yet: ${count(learnt)} texts have been learnt from.`
        : 'Off: nobody has asked for it.';
  say(by('reuse-summary'), summary);
  by('reuse-scroll').hidden = certificates.length === 0;
  const now = Date.now() / 1000;
  const rows = certificates.map((one) => ({ one, state: standing(one, now) }));
  fill(by('reuse'), rows, () =>
    rows.map(({ one, state: [state, words] }) => {
      const measured = one.audits > 0 ? one.audit_violations / one.audits : undefined;
      return element(
        'tr',
        {},
        element('th', { scope: 'row' }, one.namespace || 'the default one'),
        element('td', {}, `cosine ≥ ${one.min_similarity.toFixed(2)}`),
        element('td', { className: 'number' }, one.tokens_max > 1e6 ? `from ${one.tokens_min}` : `${one.tokens_min} to ${one.tokens_max}`),
        element('td', { className: 'number' }, element('data', { value: one.audits }, count(one.audits))),
        element('td', { className: 'number' }, element('data', { value: measured ?? '', title: `${exact(one.audit_violations)} of ${exact(one.audits)}` }, percent(measured))),
        element('td', { className: 'number' }, percent(one.max_violation)),
        element('td', { className: 'state', 'data-state': state }, words),
      );
    }),
  );
}

/** The line at the foot of the page. */
export function about(stats, of, info) {
  const parts = [info?.version ? `vecmemo ${info.version}` : 'vecmemo', `up ${duration(stats.http?.uptime_seconds)}`];
  if (of.store?.dims) parts.push(`${of.store.dims} dimensions`);
  if (info?.device) parts.push(`on ${info.device}`);
  if (of.fingerprint) parts.push(`fingerprint ${of.fingerprint.slice(0, 16)}`);
  say(by('about'), parts.join(' · '));
}
