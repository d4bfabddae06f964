// One sweep, live.

import { get } from '/static/api.js';
import { budget, button, enqueue, narrow, pause, pin, promote, resume, stopTrial } from '/static/actions.js';
import {
  Chart,
  Parallel,
  STATE_COLOURS,
  axisAround,
  axisOf,
  axisValue,
  isPercent,
  told,
} from '/static/charts.js';
import {
  clock,
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
import { Table } from '/static/table.js';

const MAX_CURVES = 300; // the best ones; those that run are drawn in any case
const SLOW = 2000; // trials; beyond, conclusions are drawn when they are asked for

export function open(root, { sweep }) {
  const trials = new Map();
  let version = '',
    facts = null,
    links = null,
    concluded = 0,
    logged = '',
    refresh = null;
  const openTrial = n => {
    location.hash = `#/sweep/${path(sweep)}/trial/${n}`;
  };
  const tipOf = n => told(facts, trials.get(n));
  const charted = (label, more) => new Chart({ label, told: tipOf, open: openTrial, ...more });

  const head = {
    state: h('span', {}),
    text: h('p', { class: 'muted' }),
    reading: h('progress', { max: 1, hidden: true, 'aria-label': 'Reading' }),
  };
  const done = () => {
    version && poll();
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

  const curves = charted('Learning curves', { height: 300 }),
    course = charted('Best value so far', { height: 300 });
  const curvesNote = h('p', { class: 'key' });
  const timeline = charted('Workers over time', { height: 120, left: 76 });
  const rows = new Map(),
    idle = h('tr', {}, h('td', { colSpan: 7, class: 'muted' })),
    running = h('tbody', {}, idle),
    runningTable = h(
      'table',
      { class: 'plainly' },
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          ['worker', 'trial', 'epoch', 'value', 'since', 'values', ''].map(name =>
            h('th', { class: 'left' }, name),
          ),
        ),
      ),
      running,
    );
  let board = null;
  const boardPlace = h('div', {}),
    filter = h('input', {
      type: 'search',
      placeholder: 'Filter  ( / )',
      'aria-label': 'Filter the trials',
      oninput: () => board?.filter(filter.value),
    });
  const conclusions = h('div', {}),
    slice = charted('A parameter against the value', { height: 260 }),
    parallel = new Parallel({
      label: 'Parallel coordinates',
      height: 280,
      left: 16,
      told: tipOf,
      open: openTrial,
    });
  const which = h('select', { 'aria-label': 'Parameter', onchange: () => drawSlice() });
  const warnings = h('div', {}),
    requests = h('div', {}),
    log = h('div', { class: 'log', tabIndex: 0, role: 'log', 'aria-label': 'Decisions' }),
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
    h(
      'div',
      { class: 'pair' },
      section('Learning curves', curves.element, curvesNote),
      section('Best so far', course.element),
    ),
    h('section', {}, h('div', { class: 'title' }, h('h2', {}, 'Leaderboard'), filter), boardPlace),
    section(
      'Workers',
      h('div', { class: 'scroll-x' }, runningTable),
      timeline.element,
      h(
        'p',
        { class: 'key' },
        Object.entries({
          completed: 'completed',
          running: 'running',
          stopped: 'stopped',
          failed: 'failed',
          paused: 'paused or waiting',
        }).map(([state, text]) => [h('i', { class: `box ${STATE_COLOURS[state]}` }), text]),
      ),
    ),
    h(
      'div',
      { class: 'pair' },
      section('What decides', conclusions),
      h('section', {}, h('div', { class: 'title' }, h('h2', {}, 'One parameter'), which), slice.element),
    ),
    section('All parameters', parallel.element),
    h('div', { class: 'pair' }, section('Warnings', warnings), section('What people asked for', requests)),
    section('Log', log),
    section('About', about),
  );
  for (const one of Object.values(buttons)) one.disabled = true;

  const sign = () => (facts.goal === 'maximize' ? 1 : -1);
  const byValue = (a, b) => sign() * (b.value - a.value) || a.number - b.number;
  let ranked = null;
  function leaders() {
    ranked ??= [...trials.values()].filter(one => one.ranks).sort(byValue);
    return ranked;
  }

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
    drawLog(await get(`/api/sweeps/${path(sweep)}/log`));
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
    if (said.importances.length && !which.dataset.chosen) {
      which.value = said.importances[0][0];
      which.dataset.chosen = '1';
      drawSlice();
    }
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
    drawCurves();
    drawWorkers();
    drawRequests();
    if (!which.options.length)
      replace(
        which,
        facts.space.map(one => h('option', {}, one.name)),
      );
    // What is below the first screen is drawn once the browser has time for it.
    clearTimeout(refresh);
    refresh = setTimeout(() => {
      drawSlice();
      drawParallel();
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

  function drawCurves() {
    const best = leaders(),
      percent = isPercent(facts.metric),
      top = best[0];
    const shown = new Set([
      ...best.slice(0, MAX_CURVES),
      ...[...trials.values()].filter(one => one.state === 'running'),
    ]);
    const order = [...shown].filter(one => one !== top).reverse();
    const marks = [];
    let last = 1;
    for (const one of top ? [...order, top] : order) {
      if (!one.curve.length) continue;
      const end = one.curve[one.curve.length - 1],
        full = one.done >= one.epochs,
        live = one.state === 'running';
      last = Math.max(last, end[0]);
      marks.push({
        n: one.number,
        line: one.curve,
        colour: one === top ? 'blue' : live ? 'green' : full ? 'blue-soft' : 'grey',
        width: one === top ? 2.5 : live ? 1.8 : 1.2,
      });
      if (end[1] !== null)
        marks.push({
          n: one.number,
          dot: end,
          radius: 2.5,
          cross: !full && !live,
          colour: one === top ? 'blue' : live ? 'green' : full ? 'blue-soft' : 'orange',
        });
    }
    const values = [...shown].flatMap(one => one.curve.map(point => point[1]));
    curves.set({
      x: { low: 0.5, high: last + 0.5, whole: true },
      y: axisAround(values, percent),
      names: ['epoch', facts.metric],
      marks,
    });
    redraw(curvesNote, best.length > MAX_CURVES && best.length, () => [
      h('i', { class: 'blue' }),
      'best',
      h('i', { class: 'green' }),
      'running',
      h('i', { class: 'blue-soft' }),
      'to its end',
      h('i', { class: 'grey' }),
      'others',
      h('span', { class: 'orange' }, ' × '),
      'stopped or paused',
      best.length > MAX_CURVES ? ` (the best ${MAX_CURVES} of ${best.length.toLocaleString('en')})` : '',
    ]);
    const begun = [...best].sort((a, b) => a.number - b.number),
      steps = [],
      dots = begun.map(one => ({
        n: one.number,
        dot: [one.number + 1, one.value],
        colour: 'grey',
        radius: best.length > 2000 ? 1.5 : 2.5,
      }));
    let leader = null;
    for (const one of begun)
      if (leader === null || sign() * one.value > sign() * leader) {
        leader = one.value;
        steps.push([one.number + 1, leader]);
        dots.push({ n: one.number, dot: [one.number + 1, leader], colour: 'blue', radius: 3.5 });
      }
    if (leader !== null) steps.push([trials.size, leader]);
    const at = dots.findIndex(mark => mark.colour === 'blue');
    if (at >= 0) dots.splice(at, 0, { line: steps, steps: true, colour: 'blue', width: 2 });
    course.set({
      x: { low: 0, high: Math.max(1, trials.size), whole: true },
      y: axisAround(
        best.map(one => one.value),
        percent,
      ),
      names: ['trials begun', facts.metric],
      marks: dots,
    });
  }

  function drawWorkers() {
    const now = facts.now,
      spans = [...trials.values()].flatMap(one =>
        one.spans.map(([lane, start, end]) => ({ one, lane, start, end: end ?? now, open: end === null })),
      );
    const live = spans.filter(span => span.open).sort((a, b) => a.lane - b.lane);
    const kept = new Set(live.map(span => span.one.number));
    for (const [number, row] of rows)
      if (!kept.has(number)) {
        row.line.remove();
        rows.delete(number);
      }
    for (const { one, lane, start } of live) {
      if (!rows.has(one.number)) rows.set(one.number, workerRow(one));
      const { line, cells, pinning, stopping } = rows.get(one.number),
        pinned = facts.pinned.includes(one.number);
      const texts = [
        String(lane + 1),
        null,
        `${one.done} of ${one.epochs}`,
        metric(facts.metric, one.value),
        clock(start),
        null,
      ];
      texts.forEach((text, place) => {
        if (text !== null) say(cells[place], text);
      });
      say(pinning, pinned ? 'Pinned' : 'Pin');
      pinning.disabled = pinned;
      stopping.disabled = facts.stopping.includes(one.number);
      if (!line.isConnected) running.append(line);
    }
    idle.hidden = live.length > 0;
    say(
      idle.firstChild,
      facts.status !== 'running'
        ? 'no process runs this sweep'
        : facts.paused_by
          ? 'the sweep is paused: all workers are free'
          : 'no trial has a worker now',
    );
    // Breaks of the sweep are cut out: time goes on only while a trial has a worker.
    const sorted = [...spans].sort((a, b) => a.start - b.start),
      breaks = [];
    let until = sorted[0]?.start ?? 0,
      cut = until;
    for (const span of sorted) {
      if (span.start > until + 1) {
        cut += span.start - until;
        breaks.push([span.start, cut]);
      }
      until = Math.max(until, span.end);
    }
    const whole = Math.max(1, until - cut),
      minutes = whole > 180,
      unit = minutes ? 60 : 1;
    let next = 0,
      less = sorted[0]?.start ?? 0;
    const marks = sorted.map(({ one, lane, start, end }) => {
      while (next < breaks.length && breaks[next][0] <= start) less = breaks[next++][1];
      return {
        n: one.number,
        bar: [(start - less) / unit, (end - less) / unit, lane, 0.7],
        colour: STATE_COLOURS[one.state] ?? 'grey',
      };
    });
    const lanes = Math.max(facts.workers, 1 + spans.reduce((most, span) => Math.max(most, span.lane), 0));
    timeline.height = 52 + 26 * Math.min(lanes, 24);
    timeline.element.style.height = `${timeline.height}px`;
    timeline.set({
      x: { low: 0, high: whole / unit },
      y: {
        low: -0.5,
        high: lanes - 0.5,
        words: Array.from({ length: lanes }, (_, lane) => `worker ${lane + 1}`),
      },
      names: [minutes ? 'minutes' : 'seconds', ''],
      marks,
    });
  }

  function workerRow(one) {
    const n = one.number,
      pinning = button('Pin', () => pin(facts, n, done), { kind: 'small', 'aria-label': `Pin trial ${n}` }),
      stopping = button('Stop', () => stopTrial(facts, n, done), {
        kind: 'small',
        'aria-label': `Stop trial ${n}`,
      });
    const cells = [
      h('td', {}),
      h('td', {}, h('a', { href: `#/sweep/${path(sweep)}/trial/${n}` }, `trial ${n}`)),
      h('td', {}),
      h('td', {}),
      h('td', {}),
      h(
        'td',
        { class: 'values' },
        Object.entries(one.params)
          .map(([name, value]) => `${name} ${param(value)}`)
          .join(', '),
      ),
      h('td', { class: 'buttons' }, pinning, stopping),
    ];
    return { line: h('tr', {}, cells), cells, pinning, stopping };
  }

  function drawSlice() {
    const one = facts?.space.find(dimension => dimension.name === which.value);
    if (one === undefined) return;
    const marks = leaders()
      .filter(trial => trial.params[one.name] !== undefined)
      .reverse()
      .map(trial => {
        const spread = one.choices ? 0.5 * (((trial.number * 0.618) % 1) - 0.5) : 0;
        return {
          n: trial.number,
          dot: [axisValue(one, trial.params[one.name]) + spread, trial.value],
          colour: 'blue',
          alpha: 0.25 + (0.7 * trial.number) / Math.max(1, trials.size),
          radius: trials.size > 2000 ? 2 : 3.5,
        };
      });
    slice.set({
      x: axisOf(one),
      y: axisAround(
        leaders().map(trial => trial.value),
        isPercent(facts.metric),
      ),
      names: [one.name, facts.metric],
      marks,
    });
  }

  function drawParallel() {
    const rows = leaders()
      .filter(one => facts.space.every(dimension => one.params[dimension.name] !== undefined))
      .slice(0, MAX_CURVES);
    parallel.setRows({
      dimensions: facts.space,
      rows,
      y: axisAround(
        rows.map(one => one.value),
        isPercent(facts.metric),
      ),
      name: facts.metric,
      high: sign() > 0,
    });
  }

  function drawRequests() {
    const rules = Object.entries(facts.warnings),
      failed = [...trials.values()].filter(one => one.state === 'failed').slice(0, 20);
    redraw(warnings, [rules, failed.map(one => one.number)], () => [
      rules.length
        ? h(
            'table',
            { class: 'plainly' },
            h(
              'tbody',
              {},
              rules.map(([name, many]) => {
                const rule = name.split('.').pop(),
                  some = [...trials.values()].filter(one => one.warnings.includes(rule)).slice(0, 12);
                return h(
                  'tr',
                  {},
                  h('td', {}, rule.replaceAll('_', ' '), h('small', {}, ` ${name.split('.')[0]}`)),
                  h('td', {}, plural(many, 'trial')),
                  h(
                    'td',
                    { class: 'values' },
                    some.map((one, index) => [
                      index ? ', ' : '',
                      h('a', { href: `#/sweep/${path(sweep)}/trial/${one.number}` }, String(one.number)),
                    ]),
                  ),
                );
              }),
            ),
          )
        : h('p', { class: 'muted' }, 'No rule had anything to say.'),
      failures(failed),
    ]);
    redraw(requests, facts.requests, () =>
      facts.requests.length
        ? h(
            'ul',
            { class: 'requests' },
            [...facts.requests]
              .reverse()
              .slice(0, 30)
              .map(one =>
                h(
                  'li',
                  {},
                  h('b', {}, one.asked),
                  ' ',
                  h('small', {}, `${one.who}, ${clock(one.when)}`),
                  h('br'),
                  h(
                    'span',
                    { class: one.status === 'refused' ? 'bad' : one.status === 'kept' ? 'muted' : '' },
                    one.status === 'refused' ? 'refused: ' : '',
                    one.answer,
                  ),
                ),
              ),
          )
        : h('p', { class: 'muted' }, 'Nothing yet.'),
    );
  }

  function failures(failed) {
    return failed.length
      ? [
          h('h3', {}, 'Failures'),
          h(
            'ul',
            {},
            failed.map(one =>
              h(
                'li',
                {},
                h('a', { href: `#/sweep/${path(sweep)}/trial/${one.number}` }, `trial ${one.number}`),
                ': ',
                one.reason,
              ),
            ),
          ),
        ]
      : null;
  }

  function drawLog(lines) {
    const key = `${lines.length} ${lines[0]?.time}`;
    if (key === logged) return;
    logged = key;
    replace(
      log,
      lines.length
        ? lines.map(line =>
            h(
              'div',
              {},
              h('time', {}, clock(line.time)),
              h(
                'span',
                {},
                line.what === 'request'
                  ? `${line.who}: ${line.asked}`
                  : `trial ${line.trial} ${line.what}${line.epoch ? ` at epoch ${line.epoch}` : ''}`,
              ),
              h('span', { class: 'muted' }, line.reason),
            ),
          )
        : h('p', { class: 'muted' }, 'no decision yet'),
    );
  }

  return { poll, leave: () => clearTimeout(refresh) };
}
