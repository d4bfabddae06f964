// Charts on a canvas: thousands of marks stay fluid. Each has the same facts in a table of the page next to it.

import { h, isPercent, metric, number, param } from '/static/dom.js';

const LEFT = 56,
  RIGHT = 12,
  TOP = 10,
  BOTTOM = 34;
const tip = () => document.getElementById('tip');

export const STATE_COLOURS = {
  completed: 'blue',
  stopped: 'orange',
  failed: 'red',
  running: 'green',
  paused: 'grey',
  waiting: 'grey',
  interrupted: 'grey',
};
export const GROUP_COLOURS = ['blue', 'orange', 'green', 'red', 'grey'];

export function axisAround(values, percent = false) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === Infinity) [low, high] = [0, 1];
  const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  return { low: low - margin, high: high + margin, percent };
}

export function axisOf(dimension) {
  if (dimension.choices)
    return { low: -0.5, high: dimension.choices.length - 0.5, words: dimension.choices.map(String) };
  return { low: dimension.low, high: dimension.high, log: dimension.log };
}

export function axisValue(dimension, value) {
  return dimension.choices ? dimension.choices.indexOf(value) : value;
}

export function place(axis, value) {
  const at = axis.log ? Math.log : Number,
    low = at(axis.low),
    high = at(axis.high);
  return high === low ? 0.5 : (at(value) - low) / (high - low);
}

function ticks(axis, most) {
  if (axis.words) return axis.words.map((word, index) => [place(axis, index), word]);
  const text = value =>
    axis.percent
      ? `${Number((100 * value).toFixed(2))}%`
      : axis.text
        ? axis.text(value)
        : String(Number(value.toPrecision(6)));
  if (axis.log) {
    const found = [];
    for (let power = Math.ceil(Math.log10(axis.low) - 1e-9); power <= Math.log10(axis.high) + 1e-9; power++)
      found.push(10 ** power);
    const shown = found.length > 1 ? found : [axis.low, ...found, axis.high];
    return shown.map(value => [place(axis, value), param(value)]);
  }
  if (axis.high <= axis.low) return [[0.5, text(axis.low)]];
  let step = 10 ** Math.floor(Math.log10((axis.high - axis.low) / most));
  step *= [1, 2, 5, 10].find(factor => (axis.high - axis.low) / (step * factor) <= most);
  if (axis.whole) step = Math.max(1, step);
  const found = [];
  for (let n = Math.ceil(axis.low / step - 1e-9); n <= axis.high / step + 1e-9; n++)
    found.push(Number((n * step).toPrecision(10)));
  return found.map(value => [place(axis, value), text(value)]);
}

export class Chart {
  // label: what it shows, for those who do not see it; told(n): the tooltip of mark n; open(n): a click on it.
  constructor({ label, height = 260, left = LEFT, told = () => '', open = null }) {
    Object.assign(this, { height, left, told, open, marks: [], lit: null });
    this.canvas = h('canvas', { role: 'img', 'aria-label': label });
    this.element = h('div', { class: 'chart' }, this.canvas);
    this.element.style.height = `${height}px`;
    this.canvas.addEventListener('mousemove', event => this.point(event));
    this.canvas.addEventListener('mouseleave', () => this.light(null));
    this.canvas.addEventListener('click', () => {
      if (this.open && this.lit !== null) this.open(this.lit);
    });
    if (open) this.canvas.style.cursor = 'pointer';
    // Painted only while it is in sight: what nobody looks at costs nothing.
    this.inSight = false;
    new IntersectionObserver(found => {
      this.inSight = found.at(-1).isIntersecting;
      this.paint();
    }).observe(this.element);
    new ResizeObserver(() => this.paint()).observe(this.element);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.paint());
  }

  // marks in the order in which they are drawn: { line: [[x, y], ...], steps } | { dot: [x, y], cross } |
  // { bar: [x, until, y, thickness] }, each with colour, width, and n, the number that the tooltip is told.
  set({ x, y, names, marks }) {
    Object.assign(this, { x, y, names, marks });
    if (!this.asked) {
      this.asked = true;
      requestAnimationFrame(() => {
        this.asked = false;
        this.paint();
      });
    }
  }

  paint() {
    const width = this.element.clientWidth,
      ratio = devicePixelRatio || 1;
    if (!width || !this.x || !this.inSight) return;
    this.width = width;
    if (this.canvas.width !== Math.round(width * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(this.height * ratio);
    }
    const ctx = (this.ctx = this.canvas.getContext('2d')),
      style = getComputedStyle(document.documentElement);
    this.colours = new Map();
    this.colour = name => {
      if (!this.colours.has(name)) this.colours.set(name, style.getPropertyValue(`--${name}`).trim() || name);
      return this.colours.get(name);
    };
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, this.height);
    this.axes(ctx);
    ctx.save();
    ctx.beginPath();
    ctx.rect(this.left - 5, TOP - 6, width - this.left - RIGHT + 10, this.height - TOP - BOTTOM + 12);
    ctx.clip();
    for (const mark of this.marks) this.draw(ctx, mark, false);
    if (this.lit !== null) for (const mark of this.marks) if (mark.n === this.lit) this.draw(ctx, mark, true);
    ctx.restore();
    this.above(ctx);
  }

  above() {}

  axes(ctx) {
    const right = this.width - RIGHT,
      floor = this.height - BOTTOM;
    ctx.font = '11px system-ui, sans-serif';
    ctx.strokeStyle = this.colour('line');
    ctx.fillStyle = this.colour('muted');
    ctx.lineWidth = 1;
    ctx.textAlign = 'right';
    ctx.textBaseline = 'middle';
    for (const [at, text] of ticks(this.y, Math.max(2, Math.floor((floor - TOP) / 40)))) {
      const y = Math.round(floor - at * (floor - TOP)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(this.left, y);
      ctx.lineTo(right, y);
      ctx.stroke();
      ctx.fillText(text, this.left - 7, y, this.left - 9);
    }
    ctx.textAlign = 'center';
    ctx.textBaseline = 'alphabetic';
    for (const [at, text] of ticks(this.x, Math.max(2, Math.min(8, Math.floor((right - this.left) / 70))))) {
      const x = Math.round(this.left + at * (right - this.left)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(x, floor);
      ctx.lineTo(x, floor + 3);
      ctx.stroke();
      ctx.fillText(text, x, floor + 15, Math.max(30, (right - this.left) / 3));
    }
    ctx.fillStyle = this.colour('text');
    ctx.fillText(this.names[0], (this.left + right) / 2, this.height - 4);
    if (this.names[1]) {
      ctx.save();
      ctx.translate(11, (TOP + floor) / 2);
      ctx.rotate(-Math.PI / 2);
      ctx.fillText(this.names[1], 0, 0);
      ctx.restore();
    }
  }

  at([x, y]) {
    return [
      this.left + place(this.x, x) * (this.width - this.left - RIGHT),
      this.height - BOTTOM - place(this.y, y) * (this.height - TOP - BOTTOM),
    ];
  }

  draw(ctx, mark, lit) {
    ctx.strokeStyle = ctx.fillStyle = this.colour(lit ? 'lit' : mark.colour);
    ctx.globalAlpha = lit ? 1 : (mark.alpha ?? 1);
    if (mark.line) {
      ctx.lineWidth = lit ? 2.5 : (mark.width ?? 1.25);
      ctx.lineJoin = 'round';
      ctx.beginPath();
      let before = null;
      for (const point of mark.line) {
        if (point[1] === null) {
          before = null;
          continue;
        }
        const [x, y] = this.at(point);
        if (before === null) ctx.moveTo(x, y);
        else if (mark.steps) {
          ctx.lineTo(x, before);
          ctx.lineTo(x, y);
        } else ctx.lineTo(x, y);
        before = y;
      }
      ctx.stroke();
    } else if (mark.dot) {
      const [x, y] = this.at(mark.dot),
        r = (mark.radius ?? 3) + (lit ? 1 : 0);
      ctx.beginPath();
      if (mark.cross) {
        ctx.lineWidth = 1.5;
        ctx.moveTo(x - 3, y - 3);
        ctx.lineTo(x + 3, y + 3);
        ctx.moveTo(x + 3, y - 3);
        ctx.lineTo(x - 3, y + 3);
        ctx.stroke();
      } else {
        ctx.arc(x, y, r, 0, 2 * Math.PI);
        ctx.fill();
      }
    } else if (mark.bar) {
      const [x, until, y, thick] = mark.bar,
        [a, top] = this.at([x, y + thick / 2]),
        [b, bottom] = this.at([until, y - thick / 2]);
      ctx.fillRect(a, top, Math.max(1, b - a - 1), bottom - top);
    }
    ctx.globalAlpha = 1;
  }

  nearest(px, py) {
    let best = null,
      least = 12 ** 2;
    const near = (point, n) => {
      if (point[1] === null) return;
      const [x, y] = this.at(point),
        far = (x - px) ** 2 + (y - py) ** 2;
      if (far < least) [best, least] = [n, far];
    };
    for (const mark of this.marks) {
      if (mark.n === undefined) continue;
      if (mark.line) for (const point of mark.line) near(point, mark.n);
      else if (mark.dot) near(mark.dot, mark.n);
      else {
        const [x, until, y, thick] = mark.bar,
          [a, top] = this.at([x, y + thick / 2]),
          [b, bottom] = this.at([until, y - thick / 2]);
        if (px >= a && px <= Math.max(b, a + 3) && py >= top && py <= bottom) return mark.n;
      }
    }
    return best;
  }

  point(event) {
    if (!this.x) return;
    const box = this.canvas.getBoundingClientRect();
    this.light(this.nearest(event.clientX - box.left, event.clientY - box.top), event);
  }

  light(n, event) {
    if (n !== this.lit) {
      this.lit = n;
      this.paint();
    }
    showTip(n === null ? '' : this.told(n), event);
  }
}

export function showTip(text, event) {
  const box = tip();
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  box.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8))}px`;
}

// Parallel coordinates: a line per trial through its values, the best ones strong and on top.
export class Parallel extends Chart {
  setRows({ dimensions, rows, y, name, high }) {
    const axes = [...dimensions.map(axisOf), y];
    const good = value => (high ? place(y, value) : 1 - place(y, value));
    const marks = [...rows]
      .sort((a, b) => good(a.value) - good(b.value))
      .map(row => {
        const values = [...dimensions.map(one => axisValue(one, row.params[one.name])), row.value];
        const strong = good(row.value);
        return {
          n: row.number,
          colour: 'blue',
          alpha: 0.12 + 0.88 * Math.max(0, strong) ** 2,
          width: 1 + 1.2 * Math.max(0, strong) ** 3,
          line: values.map((value, index) => [index, place(axes[index], value)]),
        };
      });
    this.columns = axes.map((axis, index) => [
      index,
      [...dimensions.map(one => one.name), name][index],
      axis,
    ]);
    this.set({
      x: { low: -0.35, high: axes.length - 0.65 },
      y: { low: -0.02, high: 1.02 },
      names: ['', ''],
      marks,
    });
  }

  axes(ctx) {
    const floor = this.height - BOTTOM;
    ctx.strokeStyle = this.colour('faint');
    ctx.lineWidth = 1;
    for (const [index] of this.columns) {
      const [x] = this.at([index, 0]);
      ctx.beginPath();
      ctx.moveTo(x, TOP);
      ctx.lineTo(x, floor);
      ctx.stroke();
    }
  }

  above(ctx) {
    ctx.font = '11px system-ui, sans-serif';
    ctx.lineJoin = 'round';
    ctx.lineWidth = 3.5;
    ctx.strokeStyle = this.colour('card');
    ctx.fillStyle = this.colour('text');
    for (const [index, name, axis] of this.columns) {
      const [x] = this.at([index, 0]),
        last = index === this.columns.length - 1;
      ctx.textAlign = 'center';
      ctx.fillText(name, x, this.height - 8, (this.width - this.left) / this.columns.length - 6);
      ctx.textAlign = last ? 'right' : 'left';
      for (const [at, text] of ticks(axis, 4)) {
        const place = [text, last ? x - 5 : x + 5, this.at([0, at])[1] + 4, 110];
        ctx.strokeText(...place);
        ctx.fillText(...place);
      }
    }
  }
}

export const told = (facts, trial) =>
  trial === undefined
    ? ''
    : [
        `trial ${trial.number}: ${trial.value === null ? 'no result' : `${facts.metric} ${metric(facts.metric, trial.value)} at epoch ${trial.epoch}`}`,
        `${trial.state} after ${trial.done} of ${trial.epochs} epochs`,
        ...Object.entries(trial.params).map(([name, value]) => `${name}: ${param(value)}`),
      ].join('\n');

export { isPercent, number };
