// What was seen, for as long as charts are wide: half an hour at the usual pace. Pure.

/** The most moments that are kept. */
export const MOMENTS_MAX = 900;

/** Between moments further apart nothing is known, seconds. */
const GAP_SECONDS = 20;

export class History {
  #moments = [];
  #last = null;

  /** Takes in an answer of `/stats` that came at `time`, in seconds. `of` is the model's part. */
  add(time, stats, of) {
    const items = Object.entries(of.items ?? {});
    const before = this.#last;
    this.#last = { time, items: new Map(items), uptime: stats.http?.uptime_seconds ?? 0, fingerprint: of.fingerprint };
    const elapsed = before ? time - before.time : 0;
    const counted = items.map(([status, now]) => [status, now - (before?.items.get(status) ?? 0)]);
    const restarted = before && (this.#last.uptime < before.uptime || before.fingerprint !== of.fingerprint || counted.some(([, count]) => count < 0));
    const usable = before && elapsed > 0 && elapsed <= GAP_SECONDS && !restarted;
    const rates = usable ? new Map(counted.map(([status, count]) => [status, count / elapsed])) : null;
    const latency = stats.http?.latency;
    this.#moments.push({
      time,
      rates,
      hits: latency?.hits?.p99_ms ?? null,
      misses: latency?.misses?.p99_ms ?? null,
      queue: of.queue?.texts ?? null,
    });
    if (this.#moments.length > MOMENTS_MAX) this.#moments.splice(0, this.#moments.length - MOMENTS_MAX);
  }

  /** Notes that nothing is known of a moment. */
  skip(time) {
    if (this.#moments.at(-1)?.queue === null) return;
    this.#moments.push({ time, rates: null, hits: null, misses: null, queue: null });
    this.#last = null;
  }

  /** Forgets everything: another model is looked at. */
  clear() {
    this.#moments = [];
    this.#last = null;
  }

  get moments() {
    return this.#moments;
  }

  /** Inputs a second at the last moment; `null` if that is not known. */
  get rate() {
    const rates = this.#moments.at(-1)?.rates;
    return rates ? [...rates.values()].reduce((sum, rate) => sum + rate, 0) : null;
  }
}
