// One sweep, live.

import { get } from '/static/api.js';
import { budget, button, enqueue, narrow, pause, promote, resume } from '/static/actions.js';
import {
  duration,
  facts as factList,
  h,
  metric,
  number,
  param,
  path,
  pill,
  plural,
  redraw,
  replace,
  say,
  section,
} from '/static/dom.js';
import { chartsOf } from '/static/sweep_charts.js';
import { notesOf } from '/static/sweep_notes.js';
import { workersOf } from '/static/sweep_workers.js';
import { Table } from '/static/table.js';

const SLOW = 2000; // trials; beyond, conclusions are drawn when they are asked for

export function open(root, { sweep }) {
  const trials = new Map();
  let version = '',
    facts = null,
    links = null,
    concluded = 0,
    refresh = null,
    ranked = null;
  const openTrial = n => {
    location.hash = `#/sweep/${path(sweep)}/trial/${n}`;
  };
  const done = () => {
    version && poll();
  };
  const sign = () => (facts.goal === 'maximize' ? 1 : -1);
  const byValue = (a, b) => sign() * (b.value - a.value) || a.number - b.number;
  function leaders() {
    ranked ??= [...trials.values()].filter(one => one.ranks).sort(byValue);
    return ranked;
  }
  // What the panels draw; the facts are those of the last poll.
  const view = {
    sweep,
    trials,
    openTrial,
    done,
    sign,
    leaders,
    get facts() {
      return facts;
    },
  };
  const charts = chartsOf(view),
    workers = workersOf(view),
    notes = notesOf(view);

  const head = {
    state: h('span', {}),
    text: h('p', { class: 'muted' }),
    reading: h('progress', { max: 1, hidden: true, 'aria-label': 'Reading' }),
  };
  const buttons = {
    enqueue: button('Enqueue', () => enqueue(facts, leaders()[0]?.params, null, done)),
    narrow: button('Narrow', () => narrow(facts, done)),
    budget: button('Budget', () => budget(facts, done)),
    pause: button('Pause', () => (facts.paused_by ? resume : pause)(facts, done)),
    promote: button('Promote', () => promote(facts)),
  };
  const reports = h('span', { class: 'links' });
  const tiles = Object.fromEntries(
    ['best', 'trials', 'time', 'cost', 'speed', 'warnings'].map(name => [
      name,
      { value: h('b', {}, '…'), more: h('small', {}) },
    ]),
  );
  const NAMES = {
    best: 'Best',
    trials: 'Trials',
    time: 'Time',
    cost: 'Cost',
    speed: 'Pace',
    warnings: 'Warnings',
  };

  let board = null;
  const boardPlace = h('div', {}),
    filter = h('input', {
      type: 'search',
      placeholder: 'Filter  ( / )',
      'aria-label': 'Filter the trials',
      oninput: () => board?.filter(filter.value),
    });
  const conclusions = h('div', {}),
    about = h('div', {});

  root.append(
    h(
      'div',
      { class: 'title' },
      h('div', {}, h('h1', {}, sweep, ' ', head.state), head.text, head.reading),
      h('div', { class: 'buttons' }, Object.values(buttons), reports),
    ),
    h(
      'div',
      { class: 'tiles' },
      Object.entries(tiles).map(([name, tile]) =>
        h('div', { class: 'tile' }, h('span', {}, NAMES[name]), tile.value, tile.more),
      ),
    ),
    charts.first,
    h('section', {}, h('div', { class: 'title' }, h('h2', {}, 'Leaderboard'), filter), boardPlace),
    workers.element,
    h('div', { class: 'pair' }, section('What decides', conclusions), charts.slice),
    charts.parallel,
    notes.both,
    notes.log,
    section('About', about),
  );
  for (const one of Object.values(buttons)) one.disabled = true;

  async function poll() {
    const found = await get(`/api/sweeps/${path(sweep)}?since=${encodeURIComponent(version)}`);
    if (!found.same) {
      if (found.all) trials.clear();
      for (const one of found.trials) trials.set(one.number, one);
      [facts, version, ranked] = [found.sweep, found.version, null];
      facts.skew = Date.now() / 1000 - facts.now;
      draw(found.share);
      await others(found.share);
    } else tick();
    return found.share < 1 ? 'more' : undefined;
  }

  async function others(share) {
    if (links === null) {
      links = await get(`/api/sweeps/${path(sweep)}/links`);
      replace(
        reports,
        h(
          'a',
          {
            class: 'button',
            href: links.report,
            target: '_blank',
            rel: 'noopener',
            'aria-label': 'Report of this sweep',
          },
          'Report',
        ),
        h(
          'a',
          {
            class: 'button',
            href: links.mlflow,
            target: '_blank',
            rel: 'noopener',
            'aria-label': 'This sweep in MLflow',
          },
          'MLflow',
        ),
        h(
          'a',
          { class: 'button', href: `#/compare/${path(sweep)}`, 'aria-label': 'Compare with another sweep' },
          'Compare',
        ),
      );
    }
    if (share < 1) return;
    notes.drawLog(await get(`/api/sweeps/${path(sweep)}/log`));
    if (trials.size <= SLOW && Date.now() - concluded > (facts.status === 'running' ? 5000 : 0)) conclude();
    else if (!concluded)
      replace(conclusions, button(`Compute for ${plural(trials.size, 'trial')}`, conclude));
  }

  // They may take seconds: meanwhile the rest of the page goes on.
  async function conclude() {
    concluded = Infinity;
    let said;
    try {
      said = await get(`/api/sweeps/${path(sweep)}/conclusions`);
    } catch (error) {
      replace(conclusions, h('p', { class: 'muted' }, error.message));
      return;
    } finally {
      concluded = Date.now();
    }
    redraw(conclusions, said, () => [
      said.verdict.map(line => h('p', {}, line)),
      said.importances.length
        ? h(
            'div',
            { class: 'bars' },
            said.importances.map(([name, share]) => {
              const bar = h('i', {});
              bar.style.width = `${100 * share}%`;
              return [h('span', {}, name), h('span', {}, bar), h('span', {}, `${Math.round(100 * share)}%`)];
            }),
          )
        : null,
      h('h3', {}, 'What to try next'),
      h(
        'ul',
        {},
        said.steps.map(step => h('li', {}, step)),
      ),
      said.balance ? h('p', { class: 'bad' }, said.balance) : null,
    ]);
    if (said.importances.length) charts.show(said.importances[0][0]);
  }

  function tick() {
    if (facts?.status !== 'running') return;
    const gone = Date.now() / 1000 - facts.skew - facts.now,
      counting = facts.counts.running > 0;
    say(tiles.time.value, duration(facts.seconds + (counting ? gone : 0)));
    say(tiles.time.more, timeLeft(counting ? gone : 0));
  }

  function timeLeft(gone) {
    if (facts.status !== 'running') return facts.ended_by || facts.status;
    if (facts.paused_by) return `paused by ${facts.paused_by}`;
    return facts.seconds_left === null
      ? 'time left not known yet'
      : `about ${duration(Math.max(0, facts.seconds_left - gone))} left`;
  }

  function draw(share) {
    const best = leaders()[0],
      total = trials.size,
      ended = facts.status === 'finished';
    redraw(head.state, [facts.paused_by, facts.status], () =>
      pill(facts.paused_by ? 'paused' : facts.status),
    );
    say(head.text, `${facts.goal} ${facts.metric} over ${facts.space.map(one => one.name).join(', ')}`);
    head.reading.hidden = share > 0.98;
    head.reading.value = share;
    for (const [name, one] of Object.entries(buttons))
      one.disabled = name === 'promote' ? best === undefined : ended;
    say(buttons.pause, facts.paused_by ? 'Resume' : 'Pause');
    say(tiles.best.value, metric(facts.metric, best?.value));
    say(
      tiles.best.more,
      best ? `trial ${best.number}, epoch ${best.epoch} of ${best.epochs}` : 'no result yet',
    );
    say(
      tiles.trials.value,
      facts.budget.trials
        ? `${total.toLocaleString('en')} / ${facts.budget.trials.toLocaleString('en')}`
        : total.toLocaleString('en'),
    );
    say(
      tiles.trials.more,
      Object.entries(facts.counts)
        .map(([state, many]) => `${many} ${state}`)
        .join(', '),
    );
    say(tiles.time.value, duration(facts.seconds));
    say(tiles.time.more, timeLeft(0));
    const [spent, ...more] = facts.cost.split(/, |; /);
    say(tiles.cost.value, spent);
    say(tiles.cost.more, more.join(', '));
    say(
      tiles.speed.value,
      facts.epochs_per_minute === null ? '-' : `${number(facts.epochs_per_minute)} epochs/min`,
    );
    say(
      tiles.speed.more,
      `${plural(facts.epochs, 'epoch')}${facts.images_per_second ? `, ${Math.round(facts.images_per_second).toLocaleString('en')} images/s` : ''}`,
    );
    const warned = Object.values(facts.warnings).reduce((a, b) => a + b, 0);
    say(tiles.warnings.value, String(warned));
    say(
      tiles.warnings.more,
      Object.entries(facts.warnings)
        .slice(0, 2)
        .map(([name, many]) => `${name.split('.').pop().replaceAll('_', ' ')} in ${many}`)
        .join(', ') || 'no rule had anything to say',
    );
    drawBoard();
    charts.drawCurves();
    workers.draw();
    notes.draw();
    // What is below the first screen is drawn once the browser has time for it.
    clearTimeout(refresh);
    refresh = setTimeout(() => {
      charts.drawSlice();
      charts.drawParallel();
    }, 30);
    redraw(about, [facts.space, facts.budget, facts.workers], () =>
      factList([
        ['data', facts.source],
        ['workers', String(facts.workers)],
        [
          'budget',
          Object.entries(facts.budget)
            .map(([name, limit]) => `${name} ${limit}`)
            .join(', '),
        ],
        ...facts.space.map(one => [one.name, one.text]),
      ]),
    );
  }

  function drawBoard() {
    if (board === null) {
      board = new Table({
        label: 'Leaderboard',
        open: row => openTrial(row.number),
        rows: 14,
        empty: 'no trial has begun',
        sort: { column: 0, up: true },
        mark: row => (row.state === 'running' ? 'live' : ''),
        columns: [
          {
            name: '#',
            text: row => (row.place === Infinity ? '-' : String(row.place)),
            value: row => row.place,
          },
          { name: 'trial', text: row => String(row.number), value: row => row.number },
          { name: facts.metric, text: row => metric(facts.metric, row.value), value: row => row.value },
          { name: 'epoch', text: row => String(row.epoch || '-'), value: row => row.epoch },
          { name: 'trained', text: row => `${row.done}/${row.epochs}`, value: row => row.done },
          { name: 'state', left: true, state: true, text: row => row.state },
          ...facts.space.map(one => ({
            name: one.name,
            left: one.choices?.some(choice => typeof choice === 'string'),
            text: row => param(row.params[one.name]),
            value: row => row.params[one.name],
          })),
          {
            name: 'warnings',
            left: true,
            text: row => row.warnings.map(name => name.replaceAll('_', ' ')).join(', '),
          },
        ],
      });
      boardPlace.append(board.element);
    }
    for (const one of trials.values()) one.place = Infinity;
    leaders().forEach((one, index) => {
      one.place = index + 1;
    });
    board.set([...trials.values()]);
  }

  return { poll, leave: () => clearTimeout(refresh) };
}
