// Where the workers of one sweep are, now and over time.

import { button, pinOrUnpin, stopTrial } from '/static/actions.js';
import { Chart, STATE_COLOURS, told } from '/static/charts.js';
import { clock, h, metric, param, path, say, section } from '/static/dom.js';

const HEADS = ['worker', 'trial', 'epoch', 'value', 'since', 'values', ''];
const COLOURED = {
  completed: 'completed',
  running: 'running',
  stopped: 'stopped',
  failed: 'failed',
  paused: 'paused or waiting',
};

// `view` is what sweep.js knows of its sweep.
export function workersOf(view) {
  const timeline = new Chart({
    label: 'Workers over time',
    told: n => told(view.facts, view.trials.get(n)),
    open: view.openTrial,
    height: 120,
    left: 76,
  });
  const rows = new Map(),
    idle = h('tr', {}, h('td', { colSpan: HEADS.length, class: 'muted' })),
    running = h('tbody', {}, idle);
  const heads = HEADS.map(name => h('th', { class: 'left' }, name));
  const element = section(
    'Workers',
    h(
      'div',
      { class: 'scroll-x' },
      h('table', { class: 'plainly' }, h('thead', {}, h('tr', {}, heads)), running),
    ),
    timeline.element,
    h(
      'p',
      { class: 'key' },
      Object.entries(COLOURED).map(([state, text]) => [
        h('i', { class: `box ${STATE_COLOURS[state]}` }),
        text,
      ]),
    ),
  );

  function draw() {
    const { facts, trials } = view;
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
      const { line, cells, pinning, stopping } = rows.get(one.number);
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
      const pinVerb = facts.pinned.includes(one.number) ? 'Unpin' : 'Pin';
      say(pinning, pinVerb);
      pinning.setAttribute('aria-label', `${pinVerb} trial ${one.number}`);
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
    drawTimeline(spans);
  }

  function drawTimeline(spans) {
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
    const lanes = Math.max(
      view.facts.workers,
      1 + spans.reduce((most, span) => Math.max(most, span.lane), 0),
    );
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
      pinning = button('Pin', () => pinOrUnpin(view.facts, n, view.done), {
        kind: 'small',
        'aria-label': `Pin trial ${n}`,
      }),
      stopping = button('Stop', () => stopTrial(view.facts, n, view.done), {
        kind: 'small',
        'aria-label': `Stop trial ${n}`,
      });
    const cells = [
      h('td', {}),
      h('td', {}, h('a', { href: `#/sweep/${path(view.sweep)}/trial/${n}` }, `trial ${n}`)),
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

  return { element, draw };
}
