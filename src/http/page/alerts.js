// What somebody should look at: the conditions of `deploy/prometheus/alerts.yaml` that one machine can see by itself, under
// the same names, and what `/ready` says. Pure.

import { count, entries, percent } from './format.js';

/** How long what has happened is told, seconds. */
export const RECENT_SECONDS = 300;

/** Counters of `/metrics` that nothing else tells. */
const COUNTERS = {
  refused: { name: 'vecmemo_queue_refused_texts_total', labels: /lane="(query|ingest)"/ },
  failures: { name: 'vecmemo_inference_failures_total' },
  unwritten: { name: 'vecmemo_store_write_failures_total' },
  writeErrors: { name: 'vecmemo_store_write_errors_total' },
  requests: { name: 'vecmemo_http_requests_total', labels: /route="(?!\/health|\/ready|\/metrics|\/stats)/ },
  errors: { name: 'vecmemo_http_requests_total', labels: /status="5xx"/, also: /route="(?!\/health|\/ready|\/metrics|\/stats)/ },
};

/** The sums of what is wanted of an answer of `/metrics`. */
export function counters(text) {
  const sums = Object.fromEntries(Object.keys(COUNTERS).map((counter) => [counter, 0]));
  for (const line of text.split('\n')) {
    const [, name, labels, value] = /^([a-z_0-9]+)(\{[^}]*\})? (\S+)/.exec(line) ?? [];
    if (!name) continue;
    for (const [counter, wanted] of Object.entries(COUNTERS)) {
      const fits = name === wanted.name && (!wanted.labels || wanted.labels.test(labels)) && (!wanted.also || wanted.also.test(labels));
      if (fits) sums[counter] += Number(value) || 0;
    }
  }
  return sums;
}

/** Readings of counters that are not older than is told. What grew is told; a restart begins anew. */
export class Recent {
  #readings = [];

  add(time, reading) {
    const last = this.#readings.at(-1)?.reading;
    if (last && Object.keys(reading).some((counter) => reading[counter] < last[counter])) this.#readings = [];
    this.#readings.push({ time, reading });
    while (this.#readings.length > 2 && this.#readings[1].time <= time - RECENT_SECONDS) this.#readings.shift();
  }

  grown(counter) {
    const [first, last] = [this.#readings[0], this.#readings.at(-1)];
    return first ? last.reading[counter] - first.reading[counter] : 0;
  }
}

const alert = (severity, name, title, advice = '') => ({ severity, name, title, advice });

/**
 * The alerts, those for somebody now (`page`) before those for today (`ticket`).
 *
 * @param {{models: [string, object][], ready: object|null, recent: Recent, now: number}} facts
 */
export function alerts({ models, ready, recent, now }) {
  const found = [];
  const several = models.length > 1;
  const grown = (counter) => recent.grown(counter);

  if (ready && ready.status !== 'ready') found.push(alert('page', '', `Not ready: ${ready.detail ?? 'requests are refused'}`, 'Load balancers send nothing here meanwhile.'));
  if (ready?.model && ready.model !== 'ok') found.push(alert('page', '', `The model: ${ready.model}`, 'Hits are answered, misses may not be.'));
  for (const [name, of] of models) {
    const subject = several ? `${name}: ` : '';
    found.push(...ofModel(of, subject, now));
  }
  // What /ready says of the store, unless the figures have said it better.
  const stores = ['VecmemoStoreDegraded', 'VecmemoEntriesDamaged'];
  if (ready?.store && ready.store !== 'ok' && !found.some(({ name }) => stores.includes(name))) {
    found.push(alert(/degraded/.test(ready.store) ? 'page' : 'ticket', '', `The store is ${ready.store}`, 'Requests are answered all the same.'));
  }

  if (grown('failures') > 0) found.push(alert('page', 'VecmemoModelFails', `The model has failed ${count(grown('failures'))} batches in the last minutes`, 'The log has the cause.'));
  if (grown('refused') > 0) found.push(alert('page', 'VecmemoQueueRefuses', `${count(grown('refused'))} texts were answered 429 in the last minutes`, 'More misses come than the model can compute: more machines, a shared tier, or a slower ingestion.'));
  if (grown('unwritten') + grown('writeErrors') > 0) found.push(alert('page', 'VecmemoWritesFail', `${count(grown('unwritten') + grown('writeErrors'))} writes have failed in the last minutes`, 'Most often the disk is full. What is computed is answered and not kept.'));
  const share = grown('errors') / grown('requests');
  if (share > 14.4 * 0.001) found.push(alert('page', 'VecmemoErrorBudgetBurnsFast', `${percent(share)} of requests have failed in the last minutes`, 'The log has each with its cause and x-request-id.'));

  const order = ['page', 'ticket'];
  return found.sort((a, b) => order.indexOf(a.severity) - order.indexOf(b.severity));
}

function ofModel(of, subject, now) {
  const found = [];
  const { queue, store, remote, reuse, windows } = of;
  if (store?.degraded) found.push(alert('page', 'VecmemoStoreDegraded', `${subject}The store can no longer promise durability: ${store.degraded}`, 'Requests are answered, new entries may be lost.'));
  if (store?.quarantined > 0 || store?.lost_pages > 0) {
    const what = store.quarantined > 0 ? `${entries(store.quarantined)} found damaged` : 'a part of the file cannot be read';
    found.push(alert('ticket', 'VecmemoEntriesDamaged', `${subject}${what}, and not served`, 'Look at the disk; vecmemo verify says which entries.'));
  }
  if (of.cache_enabled === false) found.push(alert('ticket', 'VecmemoCacheOff', `${subject}The cache is switched off, everything is computed`, 'On again: vecmemo cache on --url …, or cache_enabled in the configuration.'));
  if (remote && !remote.ready) {
    found.push(alert('ticket', 'VecmemoTierAway', `${subject}The shared tier is away, or this machine is behind its epoch`, `This machine computes for itself meanwhile and serves its own entries.${remote.error ? ` Newest failure: ${remote.error}` : ''}`));
  }
  if (remote?.notices_pending > 0) found.push(alert('page', 'VecmemoInvalidationsUntold', `${subject}${count(remote.notices_pending)} invalidations are not known to the other machines`, 'They are kept on disk and told as soon as the servers can be reached.'));
  if (queue?.texts_max > 0) {
    const full = [{ ...queue, lane: '' }, ...(queue.lanes ?? [])].find((line) => line.texts >= 0.8 * line.texts_max);
    if (full) found.push(alert('ticket', '', `${subject}The queue is near full: ${count(full.texts)} of ${count(full.texts_max)} texts wait${full.lane ? ` in the lane ${full.lane}` : ''}`, 'Past it requests are answered 429.'));
  }
  const [quarter, hour] = [windows?.['15m'], windows?.['1h']];
  const answered = Object.values(quarter?.items ?? {}).reduce((sum, items) => sum + items, 0);
  if (answered > 900 && quarter.hit_rate < 0.5 * hour.hit_rate) {
    found.push(alert('ticket', 'VecmemoHitRateFell', `${subject}The hit rate fell: ${percent(quarter.hit_rate)} in 15 minutes, ${percent(hour.hit_rate)} in the last hour`, 'New texts, a changed prompt, another model; or entries have left.'));
  }
  const certificates = (reuse?.fields ?? []).flatMap((field) => field.certificates.map((one) => ({ ...one, namespace: field.namespace })));
  const off = certificates.filter((one) => one.suspended && one.expires > now);
  if (off.length > 0) found.push(alert('ticket', 'VecmemoReuseSuspended', `${subject}Audits have switched off ${count(off.length)} certificate${off.length === 1 ? '' : 's'} of reuse`, 'Texts are computed until a calibration has earned it again.'));
  if (reuse?.audits > 100 && reuse.violations / reuse.audits > 0.05) {
    found.push(alert('ticket', 'VecmemoReuseViolations', `${subject}${percent(reuse.violations / reuse.audits)} of audited reuses were below their floor`, 'Calibrate again, or ask for a higher floor.'));
  }
  return found;
}
