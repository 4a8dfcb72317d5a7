// The page in a browser, over a service with real entries.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { figure, launch, open, overhang, until, violations } from './browser.js';
import { HOSTILE, Service, newKey, traffic } from './service.js';

let browser;
let service;

before(async () => {
  [browser, service] = await Promise.all([launch(), new Service(['--capacity-entries', '4096', '--page-price-per-million-tokens', '0.13', '--page-currency', 'EUR']).start()]);
  await traffic(service);
});

after(async () => {
  await browser?.close();
  await service?.end();
});

const ready = (page) => page.locator('#standing[data-state="ready"]').waitFor();

/** Opens the page, does something with it, and holds it to having made no trouble. */
async function look(options, work) {
  const { url = service.url, problems = [], ...rest } = options;
  const page = await open(browser, url, rest);
  try {
    await work(page);
    const found = page.problems.filter((problem) => !problems.some((expected) => expected.test(problem)));
    assert.deepEqual(found, []);
  } finally {
    await page.context().close();
  }
}

/** The page's figures, and those of `/stats` under the same names. */
async function compared(page) {
  const { store, queue, windows, items, evictions, money, census, http, ...stats } = await service.get('/stats?census=true');
  const expected = {
    'hit-rate': stats.hit_rate,
    'hit-rate-15m': windows['15m'].hit_rate,
    'hit-rate-1h': windows['1h'].hit_rate,
    'store-entries': store.entries,
    'store-capacity': store.capacity_entries,
    'store-bytes': store.allocated_bytes,
    'store-evicted': evictions.capacity,
    'queue-texts': queue.texts,
    'queue-texts-max': queue.texts_max,
    'tokens-saved': stats.tokens_saved,
    'tokens-computed': stats.tokens - stats.tokens_saved,
    'money-saved': money.saved,
    'money-spent': money.spent,
    'requests-1m': http.latency.hits.requests + http.latency.misses.requests,
    'latency-hits-p50': http.latency.hits.p50_ms,
    'latency-hits-p99': http.latency.hits.p99_ms,
    'latency-misses-p50': http.latency.misses.p50_ms,
    'latency-misses-p99': http.latency.misses.p99_ms,
  };
  const wrong = [];
  const hold = (name, shown, value) => {
    if (String(shown) !== String(value ?? '')) wrong.push(`${name}: ${shown} is not ${value}`);
  };
  for (const [name, value] of Object.entries(expected)) hold(name, await figure(page, name), value);
  for (const [status, count] of Object.entries(items)) {
    hold(status, await page.locator(`[data-items="${status}"]`).evaluate((found) => found.value), count);
    hold(`${status} of the hour`, await page.locator(`[data-items="${status}-1h"]`).evaluate((found) => found.value), windows['1h'].items[status]);
  }
  for (const kind of ['namespaces', 'tags']) {
    const rows = await page.locator(`#${kind} tr`).evaluateAll((rows) => rows.map((row) => [row.querySelector('th').title, row.querySelector('data').value]));
    const counts = census[kind].map(({ name, entries }) => [name, String(entries)]);
    hold(kind, JSON.stringify(rows), JSON.stringify(counts));
  }
  return wrong.join('; ');
}

test('the figures are those of /stats', async () => {
  await look({}, async (page) => {
    await ready(page);
    await until('the figures agree', () => compared(page));
    assert.notEqual(await figure(page, 'hit-rate'), '');
    assert.match(await page.locator('#money').textContent(), /^€[\d.]+ saved$/);
    await service.embed('something that was not asked for before');
    await until('they follow', () => compared(page));
    await until('charts are drawn', async () => ((await page.locator('.plot canvas').count()) === 3 ? '' : 'not yet'));
  });
});

test('a search finds entries with their tags and payloads', async () => {
  await look({}, async (page) => {
    await page.getByLabel('Text', { exact: true }).fill('an entry with a payload');
    await page.getByRole('button', { name: 'Search' }).click();
    const first = page.locator('#found li').first();
    await first.waitFor();
    assert.ok(Number(await first.locator('.similarity').textContent()) > 0.999);
    assert.deepEqual(await first.locator('.tag').allTextContents(), [HOSTILE, 'noted']);
    assert.deepEqual(JSON.parse(await first.locator('.payload').textContent()), { title: '<b>bold</b>', id: 7 });
    assert.match(await page.locator('#search-said').textContent(), /^10 entries/);

    await page.getByLabel('Tag', { exact: true }).fill('ticket');
    await page.getByRole('button', { name: 'Search' }).click();
    await until('only tickets are found', async () => ((await page.locator('#found li').count()) === 2 ? '' : 'not yet'));
    await page.getByLabel('Tag', { exact: true }).fill('no such tag');
    await page.getByRole('button', { name: 'Search' }).click();
    await until('nothing is found', async () => (/^Nothing/.test(await page.locator('#search-said').textContent()) ? '' : 'not yet'));
    assert.equal(await page.locator('#found li').count(), 0);
  });
});

test('a tag that is markup is text', async () => {
  await look({}, async (page) => {
    await ready(page);
    await page.locator('#tags th', { hasText: '<img src=x' }).waitFor();
    await page.getByLabel('Text', { exact: true }).fill('an entry with a payload');
    await page.getByRole('button', { name: 'Search' }).click();
    await page.locator('.tag', { hasText: '<img src=x' }).first().waitFor();
    await page.getByLabel('Tags one a line').fill(HOSTILE);
    await page.getByRole('button', { name: 'Count them' }).click();
    await page.locator('#confirm[open]').waitFor();
    assert.match(await page.locator('#confirm-what').textContent(), /<img src=x/);
    assert.equal(await page.locator('img[src="x"], main script').count(), 0);
    assert.equal(await page.evaluate(() => globalThis.hacked), undefined);
    await page.keyboard.press('Escape');
  });
});

test('nothing is invalidated before it is counted and confirmed', async () => {
  await service.embed(['to be gone 1', 'to be gone 2', 'to be gone 3'], { tags: ['gone:1'] });
  const entries = async () => (await service.get('/stats')).store.entries;
  const began = await entries();
  // The browser logs each answer that is an error.
  await look({ problems: [/422/] }, async (page) => {
    const said = page.locator('#invalidate-said');
    await page.getByRole('button', { name: 'Count them' }).click();
    assert.match(await said.textContent(), /Say first/);
    await page.getByLabel('Tag pattern').fill('gone:*');
    await page.getByLabel('Reason').fill('a test of the page');
    await page.getByRole('button', { name: 'Count them' }).click();
    await page.locator('#confirm[open]').waitFor();
    assert.equal(await page.locator('#confirm-title').textContent(), 'Remove 3 entries?');
    assert.match(await page.locator('#confirm-what').textContent(), /gone:\*/);
    await page.keyboard.press('Escape');
    await until('it says that nothing was changed', async () => (/Nothing was changed: 3 entries stay/.test(await said.textContent()) ? '' : 'not yet'));
    assert.equal(await entries(), began);

    // Marked stale they stay.
    await page.getByLabel('mark them stale').check();
    await page.getByRole('button', { name: 'Count them' }).click();
    await page.getByRole('button', { name: 'Mark them stale' }).click();
    await until('they are marked', async () => (/^3 entries marked stale/.test(await said.textContent()) ? '' : 'not yet'));
    assert.equal(await entries(), began);

    await page.getByLabel('remove them').check();
    await page.getByRole('button', { name: 'Count them' }).click();
    await page.getByRole('button', { name: 'Remove them' }).click();
    await until('they are gone', async () => (/^3 entries removed/.test(await said.textContent()) ? '' : 'not yet'));
    assert.equal(await entries(), began - 3);
    await until('the page shows it', async () => ((await figure(page, 'store-entries')) === String(began - 3) ? '' : 'not yet'));

    await page.getByRole('button', { name: 'Count them' }).click();
    await until('there are none', async () => (/No entry is meant/.test(await said.textContent()) ? '' : 'not yet'));
    // What the service refuses is told in its own words.
    await page.getByLabel('Older than').fill('99999999');
    await page.getByRole('button', { name: 'Count them' }).click();
    await until('it is refused', async () => (/an age has at most/.test(await said.textContent()) ? '' : await said.textContent()));
  });
});

test('everything can be done with the keyboard', async () => {
  await service.embed('only for the keyboard', { tags: ['keyboard'] });
  await look({}, async (page) => {
    await ready(page);
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());
    const visible = () =>
      page.evaluate(() => {
        const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
        return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2;
      });
    await page.keyboard.press('Tab');
    assert.equal(await focused(), 'Skip to the figures');
    assert.ok((await page.locator('.skip').boundingBox()).y >= 0, 'the link is seen when it is reached');
    await page.keyboard.press('Enter');
    assert.equal(await focused(), 'main');
    const tabTo = async (wanted) => {
      for (let steps = 0; (await focused()) !== wanted; steps += 1) {
        assert.ok(steps < 60, `${wanted} is reached`);
        await page.keyboard.press('Tab');
        assert.ok(await visible(), `${await focused()} shows that it has the focus`);
      }
    };
    await tabTo('search-text');
    await page.keyboard.type('only for the keyboard');
    await page.keyboard.press('Enter');
    await page.locator('#found li').first().waitFor();
    await tabTo('Invalidate …');
    await page.keyboard.press('Enter');
    assert.equal(await focused(), 'invalidate-keys');
    assert.match(await page.locator('#invalidate-keys').inputValue(), /^[0-9a-f]{64}$/);
    await tabTo('Count them');
    await page.keyboard.press('Enter');
    await page.locator('#confirm[open]').waitFor();
    assert.equal(await focused(), 'confirm-no', 'the answer that changes nothing is at hand');
    await page.keyboard.press('Tab');
    assert.equal(await focused(), 'confirm-yes');
    await page.keyboard.press('Enter');
    await until('it is gone', async () => (/^1 entry removed/.test(await page.locator('#invalidate-said').textContent()) ? '' : 'not yet'));
    assert.equal((await service.post('/lookup', { inputs: ['only for the keyboard'] })).items[0].cached, false);
  });
});

for (const scheme of ['light', 'dark']) {
  for (const width of [1280, 768, 390, 320]) {
    test(`it fits and can be read by all: ${scheme}, ${width} pixels`, async () => {
      await look({ scheme, width, height: 844 }, async (page) => {
        await ready(page);
        await page.getByLabel('Text', { exact: true }).fill('an entry with a payload');
        await page.getByRole('button', { name: 'Search' }).click();
        await page.locator('#found li').first().waitFor();
        await page.locator('summary').click();
        await page.locator('#key-button').click();
        await until('charts are drawn', async () => ((await page.locator('.plot canvas').count()) === 3 ? '' : 'not yet'));
        assert.equal(await overhang(page), 0);
        assert.deepEqual(await violations(page), []);
        await page.getByLabel('Tags one a line').fill('corpus:places');
        await page.getByRole('button', { name: 'Count them' }).click();
        await page.locator('#confirm[open]').waitFor();
        assert.equal(await overhang(page), 0);
        assert.deepEqual(await violations(page), []);
      });
    });
  }
}

/** Answers `/stats` as the service does, changed. */
const altered = (change, ready) => async (page) => {
  await page.route('**/stats?*', async (route) => {
    const stats = await (await route.fetch()).json();
    await route.fulfill({ json: change(stats) });
  });
  if (ready) await page.route('**/ready', (route) => route.fulfill(ready));
};

test('huge numbers, long names, several models and all alerts fit on a phone', async () => {
  const huge = 987_654_321_987_654;
  const name = 'x'.repeat(256);
  const change = (stats) => {
    Object.assign(stats.store, { entries: huge, capacity_entries: huge + 1, allocated_bytes: huge * 3, degraded: `a sync failed: ${name}` });
    Object.assign(stats, { tokens: huge * 2, tokens_saved: huge, cache_enabled: false, remote: { ready: false, notices_pending: 9, error: name } });
    Object.assign(stats.queue, { texts: 16_000 });
    Object.assign(stats.money, { saved: huge, spent: huge });
    for (const status of Object.keys(stats.items)) stats.items[status] = huge;
    const named = { name, entries: huge };
    stats.census = { looked_at: 16_384, exact: false, namespaces: [{ ...named, name: 'n'.repeat(128) }], tags: [named, { ...named, name: HOSTILE }] };
    const certificate = { min_similarity: 0.98, max_violation: 0.05, tokens_min: 64, tokens_max: 255, expires: 4e9, audits: huge, audit_violations: huge / 10, suspended: true };
    stats.reuse = { ...stats.reuse, learnt: huge, audits: 1000, violations: 100, fields: [{ namespace: 'n'.repeat(128), certificates: [certificate] }] };
    const { models, http, ...one } = stats;
    return { ...stats, models: { 'tiny-mean': one, [name]: { ...one, model: 'other' } } };
  };
  for (const width of [390, 1280]) {
    await look({ width, scheme: 'dark', before: altered(change) }, async (page) => {
      await page.locator('#standing[data-state="troubled"]').waitFor();
      await until('alerts are told', async () => ((await page.locator('#alerts [data-severity="page"]').count()) >= 2 ? '' : await page.locator('#alerts').textContent()));
      assert.equal(await overhang(page), 0);
      await page.getByLabel('Model').selectOption(name);
      assert.equal(await overhang(page), 0);
      assert.equal(await figure(page, 'store-entries'), String(huge));
      assert.deepEqual(await violations(page), []);
      assert.doesNotMatch(await page.locator('main').innerText(), /NaN|Infinity|undefined|null|\[object/);
    });
  }
});

test('a service that is not ready is told so', async () => {
  const ready = { status: 503, json: { status: 503, detail: 'the service is shutting down' } };
  await look({ before: altered((stats) => stats, ready), problems: [/503/] }, async (page) => {
    await page.locator('#standing[data-state="away"]').waitFor();
    assert.match(await page.locator('#alerts').textContent(), /Not ready: the service is shutting down/);
    assert.equal(await page.locator('#trouble').isVisible(), false);
  });
});

test('a cache with nothing in it says so kindly', async () => {
  const fresh = await new Service().start();
  try {
    await look({ url: fresh.url }, async (page) => {
      await ready(page);
      const text = await page.locator('main').innerText();
      assert.doesNotMatch(text, /NaN|Infinity|undefined|null|\[object/);
      assert.equal(text.match(/Nothing is stored yet\./g).length, 2);
      assert.match(text, /Off: nobody has asked for it\./);
      assert.match(text, /No alert\./);
      assert.equal(await page.locator('#money').isVisible(), false, 'no price, no money');
      assert.equal(await figure(page, 'hit-rate'), '');
      await page.getByLabel('Text', { exact: true }).fill('anything');
      await page.getByRole('button', { name: 'Search' }).click();
      await until('nothing is found', async () => (/nothing is cached/.test(await page.locator('#search-said').textContent()) ? '' : 'not yet'));
      assert.deepEqual(await violations(page), []);
    });
  } finally {
    await fresh.end();
  }
});

test('with keys the page asks for one, keeps it in the tab, and says what it may not do', async () => {
  const asked = [];
  const guarded = async (page) => {
    await page.route(/\/(stats|ready|metrics|info|search|invalidate)(\?|$)/, async (route) => {
      const key = route.request().headers().authorization;
      asked.push(key);
      if (key === 'Bearer the-key' && route.request().url().endsWith('/invalidate')) {
        return route.fulfill({ status: 403, json: { status: 403, detail: 'the key may only read' } });
      }
      return key === 'Bearer the-key' ? route.continue() : route.fulfill({ status: 401, json: { status: 401, detail: 'a key is needed' } });
    });
  };
  await look({ before: guarded, problems: [/401/, /403/] }, async (page) => {
    await page.locator('#standing[data-state="denied"]').waitFor();
    assert.match(await page.locator('#trouble').innerText(), /asks for an API key \(401\)/);
    assert.deepEqual(await violations(page), []);
    const field = page.getByLabel('API key', { exact: true });
    await field.fill('wrong');
    await page.getByRole('button', { name: 'Use it' }).click();
    await until('the key is refused', async () => (/does not know this API key \(401\)/.test(await page.locator('#trouble').innerText()) ? '' : 'not yet'));
    await field.fill('the-key');
    await page.getByRole('button', { name: 'Use it' }).click();
    await ready(page);
    assert.equal(await field.inputValue(), '', 'the field does not keep it');
    const places = await page.evaluate(() => [localStorage.length, document.cookie, Object.values(sessionStorage).join()]);
    assert.deepEqual(places, [0, '', 'the-key']);
    await page.reload();
    await ready(page);

    await page.getByLabel('Tag pattern').fill('*');
    await page.getByRole('button', { name: 'Count them' }).click();
    await until('it may not', async () => (/may not do that \(403\)\. the key may only read/.test(await page.locator('#invalidate-said').textContent()) ? '' : 'not yet'));
    await page.getByRole('button', { name: 'API key set' }).click();
    await page.getByRole('button', { name: 'Forget it' }).click();
    await page.locator('#standing[data-state="denied"]').waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    assert.equal(asked.at(-1), undefined);
  });
});

test('a page that nobody sees, or that is paused, asks nothing', async () => {
  await look({}, async (page) => {
    await ready(page);
    let asked = 0;
    page.on('request', () => (asked += 1));
    const visibility = (state) =>
      page.evaluate((state) => {
        Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
      }, state);
    const silence = async () => {
      asked = 0;
      await page.waitForTimeout(3000);
      return asked;
    };
    await visibility('hidden');
    assert.equal(await silence(), 0);
    await visibility('visible');
    await until('it asks again', () => (asked > 0 ? '' : 'nothing'), 1500);
    await page.getByRole('button', { name: 'Pause' }).click();
    assert.equal(await silence(), 0);
    await page.getByRole('button', { name: 'Go on' }).click();
    await until('it asks again', () => (asked > 0 ? '' : 'nothing'), 1500);
  });
});

test('a service that goes is missed, tried more and more seldom, and found again', async () => {
  await look({ problems: [/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|Failed to load resource/] }, async (page) => {
    await ready(page);
    await until('there are figures', async () => ((await figure(page, 'store-entries')) > 0 ? '' : 'not yet'));
    const entries = await figure(page, 'store-entries');
    const tries = [];
    page.on('request', (request) => request.url().includes('/stats') && tries.push(Date.now()));
    await service.kill();
    await page.locator('#trouble').waitFor();
    assert.match(await page.locator('#trouble').innerText(), /The service does not answer\./);
    assert.equal(await page.locator('#standing').getAttribute('data-state'), 'away');
    assert.match(await page.locator('#updated').textContent(), /next try in/);
    assert.equal(await figure(page, 'store-entries'), entries, 'what was known last stays');
    assert.deepEqual(await violations(page), []);
    tries.length = 0;
    await until('it tries again', () => (tries.length >= 3 ? '' : `${tries.length} times`), 20_000);
    const pauses = [tries[1] - tries[0], tries[2] - tries[1]];
    assert.ok(pauses[1] > pauses[0] * 1.5, `${pauses} ms`);
    await page.getByLabel('Text', { exact: true }).fill('anything');
    await page.getByRole('button', { name: 'Search' }).click();
    await until('a search says so too', async () => (/does not answer/.test(await page.locator('#search-said').textContent()) ? '' : 'not yet'));

    await service.start();
    await page.getByRole('button', { name: 'Try now' }).click();
    await ready(page);
    assert.equal(await page.locator('#trouble').isVisible(), false);
    assert.equal(await figure(page, 'store-entries'), entries, 'what was answered is there again');
  });
});

test('a real service with keys: without one nothing is shown, to a tenant what it has, to the operator everything', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'vecmemo-keys-'));
  const [tenant, operator] = [newKey('--tenant', 'acme', '--scope', 'embed,search,invalidate'), newKey('--scope', 'embed,admin')];
  writeFileSync(join(folder, 'keys.toml'), tenant.table + operator.table);
  const guarded = await new Service(['--keys-file', join(folder, 'keys.toml')]).start();
  try {
    const answer = await fetch(`${guarded.url}/embed`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${tenant.token}` },
      body: JSON.stringify({ inputs: ['one', 'two'] }),
    });
    assert.equal(answer.status, 200);
    await look({ url: guarded.url, problems: [/401/, /403 \(Forbidden\) .*\/metrics/] }, async (page) => {
      const trouble = page.locator('#trouble');
      const says = (words) => until(`the page says ${words}`, async () => (words.test(await trouble.innerText()) ? '' : await trouble.innerText()));
      await says(/asks for an API key \(401\)/);
      await page.locator('#key').fill(tenant.token);
      await page.locator('#key').press('Enter');
      await says(/the tenant acme’s, who has 2 entries/);
      assert.equal(await page.locator('#standing').getAttribute('data-state'), 'denied');
      if (await page.locator('#key-panel').isHidden()) await page.locator('#key-button').click();
      await page.locator('#key').fill(operator.token);
      await page.locator('#key').press('Enter');
      await ready(page);
      assert.ok(await trouble.isHidden());
      assert.equal(await figure(page, 'store-entries'), '2');
    });
  } finally {
    await guarded.end();
    rmSync(folder, { recursive: true, force: true });
  }
});
