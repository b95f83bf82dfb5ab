// Looks at the page of `extmem serve` as a person would, in a headless Chromium. The test that
// starts it (sources/cli/tests/it/page.rs) is the client that reads meanwhile:
//
//   node page.mjs http://127.0.0.1:9010/ [FOLDER for pictures]
//
// It prints a line for each step that went well, and waits for a line before the next. Any failure
// ends it with a text and code 1.

import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const [url, pictures] = process.argv.slice(2);
const WAIT = { timeout: 30000 };

const places = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome'];
const executablePath = places.find((path) => path && existsSync(path));
if (!executablePath) {
  console.log('missing: chromium');
  process.exit(0);
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function done(step) {
  console.log(step);
  if ((await lines.next()).done) throw new Error('the test has ended');
}
function must(good, what) {
  if (!good) throw new Error(what);
}

const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  const noise = [];
  let refused = 0;
  const asked = [];
  page.on('console', (message) => {
    if (!['error', 'warning'].includes(message.type())) return;
    // What the browser itself says of a request that was not answered, which no page can prevent.
    const failed = message.text().startsWith('Failed to load resource: net::ERR_')
      && message.location().url === new URL('api/state', url).href;
    if (failed) refused += 1;
    else noise.push(message.text());
  });
  page.on('pageerror', (error) => noise.push(String(error)));
  page.on('request', (request) => asked.push(request.url()));
  const quiet = () => must(noise.length === 0, `the console says: ${noise.join('; ')}`);
  // What came from sources, as it is shown: GETs, and MiB.
  const fetched = async () => {
    const [size, unit] = (await text('#source-bytes')).split(' ');
    const shown = await text('#source-detail');
    const count = /^([\d,]+) GETs?, 0 errors$/.exec(shown);
    must(count && ['B', 'KiB', 'MiB'].includes(unit), `from sources: ${size} ${unit}, ${shown}`);
    const scale = { B: 2 ** -20, KiB: 2 ** -10, MiB: 1 }[unit];
    return { gets: Number(count[1].replaceAll(',', '')), mib: Number(size) * scale };
  };
  const text = (selector) => page.locator(selector).innerText();
  const shot = async (name) => {
    if (pictures) await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
  };

  await page.goto(url);
  await page.locator('#status[data-state=live]').waitFor(WAIT);
  must(await page.locator('#objects-empty').isVisible(), 'there is something in an empty cache');
  await done('empty');

  // One block of the first object has been read.
  const cells = page.locator('.object').first().locator('.cell');
  const warm = page.locator('.cell.here.h1');
  await page.locator('#objects .cell.here').first().waitFor(WAIT);
  await page.locator('#objects .cell.here.h1').first().waitFor(WAIT);
  const names = async () => cells.evaluateAll((all) => all.map((one) => one.className));
  const lit = (await names()).flatMap((name, n) => name.includes('here') ? [n] : []);
  must(lit.length === 1 && lit[0] === 5, `the parts that are here: ${lit}`);
  must((await page.locator('.map').first().getAttribute('aria-label')).includes('1 of'), 'no label');
  must(await warm.count() >= 1, 'nothing is warm');
  must((await text('#clients')).includes('V000'), 'no client');
  const one = await fetched();
  must(one.gets === 1 && one.mib === 1 / 16, `one block: ${one.gets} GETs, ${one.mib} MiB`);
  await done('warm');

  // It has been read again and again, and others for the first time.
  await page.locator('#objects .cell.here.h3').first().waitFor(WAIT);
  await page.locator('#objects .cell').nth(6).and(page.locator('.here')).waitFor(WAIT);
  await page.locator('#objects .cell').nth(69).and(page.locator('.here')).waitFor(WAIT);
  // 65 blocks of 64 KiB at least, and no byte of the 9,000,000 twice.
  const all = await fetched();
  must(all.gets > 1 && all.mib >= 4.1 && all.mib <= 8.6, `${all.gets} GETs, ${all.mib} MiB`);
  must((await text('#hit-rate')).includes('%'), 'no hit rate');
  must((await text('#saved')).startsWith('$'), 'no dollars');
  await done('hot');

  // An object and an error with markup in their names are there, as text.
  await page.locator('.object', { hasText: '<img src=x onerror=' }).waitFor(WAIT);
  await page.locator('#failures li', { hasText: '<b>gone' }).waitFor(WAIT);
  must(await page.locator('#objects img, #failures b, #failures img').count() === 0, 'markup');
  must(!(await page.content()).includes('hidden-from-view'), 'a signature is shown');
  await shot('desktop');

  // On a phone nothing is wider than it.
  for (const [width, height] of [[390, 844], [320, 640]]) {
    await page.setViewportSize({ width, height });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    must(wide <= width, `${wide} pixels on a screen of ${width}`);
    const out = await page.evaluate(() => [...document.querySelectorAll('body *')]
      .filter((one) => !one.closest('.unseen') && one.getBoundingClientRect().right > innerWidth + 1)
      .map((one) => one.tagName + (one.id && `#${one.id}`)));
    must(out.length === 0, `beyond the edge at ${width}: ${out}`);
    const small = await page.locator('.object h3').first()
      .evaluate((one) => parseFloat(getComputedStyle(one).fontSize));
    must(small >= 14, `letters of ${small} pixels`);
    await shot(`phone-${width}`);
  }
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    const luminance = await page.evaluate(() => {
      const parts = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).map(Number);
      return (parts[0] + parts[1] + parts[2]) / 3;
    });
    must((colorScheme === 'dark') === (luminance < 128), `${colorScheme} is ${luminance}`);
  }
  if (pictures) await page.waitForTimeout(1000); // colours fade
  await page.setViewportSize({ width: 390, height: 844 });
  await shot('phone-dark');
  await page.setViewportSize({ width: 1280, height: 900 });
  await shot('desktop-dark');

  // What a screen reader has to go by.
  const nameless = await page.evaluate(() => [...document.querySelectorAll('img, svg, [role=img], meter')]
    .filter((one) => !one.hasAttribute('alt') && !one.getAttribute('aria-label'))
    .map((one) => one.outerHTML.slice(0, 80)));
  must(nameless.length === 0, `without a name: ${nameless}`);
  must(await page.locator('main').count() === 1 && await page.locator('h1').count() === 1, 'landmarks');
  const elsewhere = asked.filter((one) => !one.startsWith(url));
  must(elsewhere.length === 0, `asked elsewhere: ${elsewhere}`);
  quiet();
  must(refused === 0, 'a request was not answered by a server that is there');
  await done('shown');

  // The server was killed, and has come back at the same address.
  await page.locator('#status[data-state=lost]').waitFor(WAIT);
  await done('lost');
  await page.locator('#status[data-state=live]').waitFor(WAIT);
  // The page by itself has nothing to say of that, and goes on as before.
  quiet();
  must(refused > 0, 'nothing was refused by a server that was gone');
  const before = refused;
  const answer = await page.waitForResponse((one) => one.url().endsWith('/api/state'), WAIT);
  must(answer.ok(), `the state after that: ${answer.status()}`);
  await page.locator('#status[data-state=live]').waitFor(WAIT);
  quiet();
  must(refused === before, 'a request was not answered by the server that came back');
  await done('back');
} catch (error) {
  console.log(`failed: ${error.message.replaceAll('\n', ' ')}`);
  process.exitCode = 1;
} finally {
  await browser.close();
  process.stdin.destroy();
}
