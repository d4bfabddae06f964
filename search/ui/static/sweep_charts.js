// The charts of one sweep: learning curves, the best value so far, one parameter, all parameters.

import { Chart, Parallel, axisAround, axisOf, axisValue, isPercent, told } from '/static/charts.js';
import { h, replace, redraw, section } from '/static/dom.js';

const MAX_CURVES = 300; // the best ones; those that run are drawn in any case

// `view` is what sweep.js knows of its sweep; `chartsOf` gives the elements and what draws them.
export function chartsOf(view) {
  const tipOf = n => told(view.facts, view.trials.get(n));
  const charted = (label, more) => new Chart({ label, told: tipOf, open: view.openTrial, ...more });
  const curves = charted('Learning curves', { height: 300 }),
    course = charted('Best value so far', { height: 300 }),
    curvesNote = h('p', { class: 'key' }),
    slice = charted('A parameter against the value', { height: 260 }),
    parallel = new Parallel({
      label: 'Parallel coordinates',
      height: 280,
      left: 16,
      told: tipOf,
      open: view.openTrial,
    });
  const which = h('select', { 'aria-label': 'Parameter', onchange: () => drawSlice() });

  function fillChoices() {
    if (which.options.length) return;
    const names = view.facts.space.map(one => h('option', {}, one.name));
    replace(which, names);
  }

  // Shows the parameter that matters most, unless one was chosen before.
  function show(name) {
    if (which.dataset.chosen) return;
    fillChoices();
    which.value = name;
    which.dataset.chosen = '1';
    drawSlice();
  }

  function drawCurves() {
    const { facts, trials, leaders, sign } = view;
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

  function drawSlice() {
    const { facts, trials, leaders } = view;
    fillChoices();
    const one = facts.space.find(dimension => dimension.name === which.value);
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
    const { facts, leaders, sign } = view;
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

  return {
    first: h(
      'div',
      { class: 'pair' },
      section('Learning curves', curves.element, curvesNote),
      section('Best so far', course.element),
    ),
    slice: h('section', {}, h('div', { class: 'title' }, h('h2', {}, 'One parameter'), which), slice.element),
    parallel: section('All parameters', parallel.element),
    show,
    drawCurves,
    drawSlice,
    drawParallel,
  };
}
