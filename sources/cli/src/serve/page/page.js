// Asks the server once a second what there is, and shows it. Whatever comes from outside (names of
// objects, errors, names of programs) is put in as text, never as markup.
'use strict';

const EACH_MS = 1000;
const SAMPLES_MAX = 120;
const byId = (id) => document.getElementById(id);
const samples = [];
const objects = new Map();
let before = null;
let failures = 0;

const say = (id, text) => {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
};

function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

const whole = (count) => Math.round(count).toLocaleString('en');
const many = (count, what) => `${whole(count)} ${what}${count === 1 ? '' : 's'}`;
const percent = (share) => `${(share * 100).toFixed(share > 0.9 && share < 1 ? 1 : 0)} %`;

function dollars(usd) {
  if (usd === 0) return '$0';
  return usd >= 0.01 ? `$${usd.toLocaleString('en', { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`
    : `$${Number(usd.toPrecision(2))
      .toLocaleString('en', { maximumFractionDigits: 9 })}`;
}

function since(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds % 86400 / 3600)} h`;
}

// Enough to tell versions from each other, from both ends.
const short = (text) => text.length <= 28 ? text : `${text.slice(0, 12)}\u2026${text.slice(-12)}`;

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

// A line over the samples; `max` is what the top stands for.
function line(id, values, max) {
  const svg = byId(id);
  if (!svg.firstChild) {
    for (const name of ['under', 'over']) {
      const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
      path.setAttribute('class', name);
      svg.append(path);
    }
  }
  const first = SAMPLES_MAX - values.length;
  const points = values.flatMap((value, n) =>
    value === null ? [] : [`${first + n} ${(31 - 30 * Math.min(value / max, 1)).toFixed(2)}`]);
  const over = points.length ? `M${points.join('L')}` : '';
  const start = points.length ? points[0].split(' ')[0] : 0;
  const end = points.length ? points[points.length - 1].split(' ')[0] : 0;
  svg.firstChild.setAttribute('d', over && `${over}L${end} 32L${start} 32Z`);
  svg.lastChild.setAttribute('d', over);
}

function sums(state) {
  const { cache, source, saved, requests } = state;
  const all = cache.hit_blocks + cache.missed_blocks + cache.joined_blocks;
  say('hit-rate', all ? percent(cache.hit_blocks / all) : '\u2013');
  say('hit-detail', all ? `of ${many(all, 'block')}` : 'nothing was asked for yet');
  say('hit-bytes', bytes(saved.bytes));
  say('saved-requests', `${many(saved.requests, 'GET')} not made`);
  say('saved', dollars(saved.usd_internet));
  say('saved-detail', `at S3\u2019s list prices from the internet; ${dollars(saved.usd_region)} within the region`);
  say('source-bytes', bytes(source.bytes));
  say('source-detail', `${many(source.gets, 'GET')}, ${many(source.errors, 'error')}` +
    (source.throttles ? `, ${whole(source.throttles)} throttled` : ''));
  const share = cache.used_bytes / cache.bytes_max;
  say('used', bytes(cache.used_bytes));
  byId('room').value = share;
  say('room-detail', `${percent(share)} of ${bytes(cache.bytes_max)}` +
    (cache.evicted_bytes ? `, ${bytes(cache.evicted_bytes)} left` : ''));

  const now = { at: performance.now(), hit: cache.hit_blocks, all, requests: requests.total };
  if (before && before.requests <= now.requests && before.all <= now.all) {
    const seconds = (now.at - before.at) / 1000;
    const asked = now.all - before.all;
    samples.push({
      hit: asked ? (now.hit - before.hit) / asked : null,
      rate: (now.requests - before.requests) / seconds,
    });
    if (samples.length > SAMPLES_MAX) samples.shift();
  }
  before = now;
  const rate = samples.length ? samples[samples.length - 1].rate : 0;
  say('request-rate', `${rate >= 10 ? whole(rate) : rate.toFixed(1)}/s`);
  say('request-detail', `${whole(requests.total)} in all, ${whole(requests.failed)} failed, ` +
    `${whole(requests.under_way)} under way`);
  line('hit-line', samples.map((sample) => sample.hit), 1);
  line('request-line', samples.map((sample) => sample.rate), Math.max(10, ...samples.map((sample) => sample.rate)));
}

function cellName(resident, heat) {
  let name = 'cell';
  if (resident >= 100) name += ' here';
  else if (resident > 0) name += ` t${Math.min(Math.floor(resident / 10) + 1, 9)}`;
  return resident > 0 && heat !== '0' ? `${name} h${heat}` : name;
}

function card(object) {
  const root = make('article', 'object');
  const parts = { root, name: make('h3'), about: make('p'), map: make('div', 'map'), cells: [] };
  parts.map.setAttribute('role', 'img');
  root.append(parts.name, parts.about, parts.map);
  return parts;
}

function paint(parts, object) {
  const name = object.name ?? 'an object whose name cannot be read';
  if (parts.name.textContent !== name) parts.name.textContent = name;
  const cells = object.resident.length;
  const here = object.resident.filter((share) => share > 0).length;
  const warm = object.resident.filter((share, n) => share > 0 && object.heat[n] !== '0').length;
  const each = object.bytes / cells;
  const about = `${bytes(object.cached_bytes)} of ${bytes(object.bytes)} here` +
    (object.version ? `, version ${short(object.version)}` : '') + `; a square is ${bytes(each)}`;
  if (parts.about.textContent !== about) parts.about.textContent = about;
  const known = parts.cells.length === cells;
  if (!known) {
    parts.cells = object.resident.map(() => make('i', 'cell'));
    parts.map.replaceChildren(...parts.cells);
    parts.map.classList.toggle('few', cells < 100);
  }
  parts.cells.forEach((cell, n) => {
    const next = cellName(object.resident[n], object.heat[n]);
    if (cell.dataset.is === next) return;
    const fresh = known && (cell.dataset.is === undefined || cell.dataset.is === 'cell');
    cell.dataset.is = next;
    cell.className = fresh ? `${next} new` : next;
  });
  const label = `${here} of ${cells} parts are here, ${warm} were read lately`;
  if (parts.map.getAttribute('aria-label') !== label) parts.map.setAttribute('aria-label', label);
}

function objectsOf(state) {
  const ids = new Set(state.objects.map((object) => object.id));
  for (const [id, parts] of objects) {
    if (!ids.has(id)) {
      parts.root.remove();
      objects.delete(id);
    }
  }
  state.objects.forEach((object, n) => {
    let parts = objects.get(object.id);
    if (!parts) {
      parts = card(object);
      objects.set(object.id, parts);
    }
    paint(parts, object);
    const place = byId('objects').children[n];
    if (place !== parts.root) byId('objects').insertBefore(parts.root, place ?? null);
  });
  byId('objects-empty').hidden = state.objects.length > 0;
  byId('objects-more').hidden = state.objects.length < state.objects_max;
  say('objects-more', `These are the ${state.objects_max} with most bytes in the cache.`);
}

function clientsOf(state) {
  const rows = state.clients.map((client) => {
    const row = make('tr');
    row.append(make('td', '', client.who), make('td', '', client.protocol),
      make('td', 'number', whole(client.requests)), make('td', 'number', since(client.since_s)));
    return row;
  });
  byId('clients').tBodies[0].replaceChildren(...rows);
  byId('clients').hidden = rows.length === 0;
  byId('clients-empty').hidden = rows.length > 0;
  const { open, refused, denied } = state.connections;
  say('clients-count', (open > rows.length ? `${whole(rows.length)} of ${whole(open)}` : whole(open)) +
    (refused ? `, ${whole(refused)} refused as too many` : '') +
    (denied ? `, ${whole(denied)} denied` : ''));
}

function failuresOf(state) {
  byId('failures').replaceChildren(...state.failures.map((failed) => {
    const item = make('li', '', failed.what);
    const times = failed.times > 1 ? `, ${whole(failed.times)} times` : '';
    item.append(make('small', '', `${since(failed.ago_s)} ago${times}, ${failed.who}`));
    return item;
  }));
  byId('failures-empty').hidden = state.failures.length > 0;
}

function status(name, text) {
  byId('status').dataset.state = name;
  say('status', text);
}

async function ask() {
  try {
    const answer = await fetch('/api/state', { cache: 'no-store', signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    const state = await answer.json();
    failures = 0;
    status(state.stopping ? 'stopping' : 'live',
      `${state.stopping ? 'Stopping' : 'Live'}, up for ${since(state.uptime_s)}`);
    say('about', `extmem ${state.version}`);
    sums(state);
    objectsOf(state);
    clientsOf(state);
    failuresOf(state);
  } catch (error) {
    failures += 1;
    before = null;
    status('lost', 'The server does not answer; trying again');
  }
  // A server that is gone is asked less often; a page that nobody sees asks nothing.
  const wait = Math.min(EACH_MS * 2 ** Math.min(failures, 4), 15000);
  setTimeout(() => {
    if (!document.hidden) {
      ask();
      return;
    }
    before = null;
    document.addEventListener('visibilitychange', ask, { once: true });
  }, wait);
}

ask();
