// Takes the pictures of docs/: the page over a service at work, in light, in dark, and on a phone.

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

import { launch, open, until } from './browser.js';
import { ROOT, Service } from './service.js';

const SECONDS = 150;
const WORDS = ['invoice', 'printer', 'password', 'delivery', 'contract', 'keyboard', 'holiday', 'meeting', 'licence', 'battery', 'refund', 'backup'];
const about = (number) => `a question about the ${WORDS[number % 12]} of customer ${number % 997} and the ${WORDS[(number * 5 + 1) % 12]} that came with it`;

/** Who asks for what: each namespace has texts of its own. */
const SITES = [
  { namespace: '', tags: ['source:tickets'], share: 0.62 },
  { namespace: 'handbook', tags: ['source:manual'], share: 0.27 },
  { namespace: 'archive', tags: ['source:scans', 'old'], share: 0.11 },
];

/** Clients at work, in waves: most of what they ask was asked before. */
async function work(service, until) {
  const fresh = SITES.map(() => 400);
  let failures = 0;
  const client = async (seed) => {
    let state = seed * 7919 + 1;
    const random = () => ((state = (state * 48_271) % 2_147_483_647) / 2_147_483_647);
    while (Date.now() < until) {
      const wave = 1 + 0.6 * Math.sin((Date.now() / 1000) * 0.13);
      const drawn = random();
      const at = drawn < SITES[0].share ? 0 : drawn < SITES[0].share + SITES[1].share ? 1 : 2;
      const { namespace, tags } = SITES[at];
      const asked = () => (random() < 0.12 * wave ? (fresh[at] += 1) : Math.floor(random() * fresh[at]));
      const numbers = Array.from({ length: random() < 0.3 ? 24 : 4 }, asked);
      const inputs = numbers.map((number) => (random() < 0.04 ? about(number).toUpperCase() : about(number)));
      const language = numbers[0] % 3 === 0 ? 'lang:de' : 'lang:en';
      try {
        await service.embed(inputs, { namespace, tags: [...tags, language, `customer:${numbers[0] % 40}`], payload: { customer: numbers[0] % 997 } });
      } catch {
        failures += 1;
      }
      await new Promise((wake) => setTimeout(wake, (60 + 240 * random()) / wave));
    }
  };
  await Promise.all(Array.from({ length: 8 }, (_, seed) => client(seed)));
  if (failures > 0) throw new Error(`${failures} requests failed`);
}

const browser = await launch();
const service = await new Service(['--page-price-per-million-tokens', '0.13', '--capacity-entries', '65536']).start();
try {
  for (const { namespace, tags } of SITES) await service.embed(Array.from({ length: 400 }, (_, number) => about(number)), { namespace, tags });
  const working = work(service, Date.now() + SECONDS * 1000);
  const shots = [['light', 1280, 900, 'page-light.png', false], ['dark', 1280, 900, 'page-dark.png', false], ['light', 390, 844, 'page-phone.png', true]];
  const pages = await Promise.all(shots.map(([scheme, width, height]) => open(browser, service.url, { scheme, width, height })));
  const ends = Date.now() + (SECONDS - 10) * 1000;
  await until('the charts are full', () => (Date.now() > ends ? '' : 'not yet'), SECONDS * 1000);
  for (const [at, [, , , name, whole]] of shots.entries()) {
    const path = join(ROOT, 'docs', name);
    await pages[at].getByLabel('Text', { exact: true }).fill(about(7));
    await pages[at].getByLabel('At most').fill('4');
    await pages[at].getByRole('button', { name: 'Search' }).click();
    await pages[at].locator('#found li').first().waitFor();
    // The bar at the top stays at the top.
    await pages[at].evaluate(() => (document.activeElement.blur(), scrollTo(0, 0)));
    const clip = whole ? { x: 0, y: 0, width: 390, height: 1560 } : undefined;
    await pages[at].screenshot({ path, fullPage: true, clip });
    const smaller = spawnSync('pngquant', ['--force', '--strip', '--skip-if-larger', '--output', path, '128', path]);
    if (smaller.status !== 0) throw new Error(`pngquant: ${smaller.stderr}`);
  }
  await working;
} finally {
  await browser.close();
  await service.end();
}
