// Elements and texts. Whatever comes from a sweep enters the page as text, never as markup.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'class') element.className = value;
    else if (name in element && name !== 'list' && name !== 'form') element[name] = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

// Sets a text only where it differs, so that a page that is looked at does not flicker.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Draws an element anew only where what it shows has changed: links and buttons in it stay what they are otherwise.
const shown = new WeakMap();
export function redraw(element, values, draw) {
  const key = JSON.stringify(values);
  if (shown.get(element) === key) return;
  shown.set(element, key);
  replace(element, draw());
}

export function metric(name, value) {
  if (value === null || value === undefined) return '-';
  return isPercent(name) ? `${(100 * value).toFixed(1)}%` : number(value);
}

export const isPercent = name => name.includes('accuracy');

export function number(value) {
  if (value === null || value === undefined) return '-';
  if (typeof value !== 'number') return String(value);
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

// A parameter's value, short.
export function param(value) {
  if (value === undefined || value === null) return '';
  if (typeof value !== 'number' || Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return '-';
  const whole = Math.max(0, Math.round(seconds)),
    two = value => String(value).padStart(2, '0');
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

export function clock(seconds) {
  const when = new Date(1000 * seconds),
    today = new Date().toDateString() === when.toDateString();
  const time = when.toLocaleTimeString([], {
    hour: '2-digit',
    minute: '2-digit',
    second: '2-digit',
    hour12: false,
  });
  return today
    ? time
    : `${when.getFullYear()}-${String(when.getMonth() + 1).padStart(2, '0')}-${String(when.getDate()).padStart(2, '0')} ${time}`;
}

export const plural = (count, word) => `${count.toLocaleString('en')} ${word}${count === 1 ? '' : 's'}`;

export const pill = state => h('span', { class: `pill ${state}` }, state);

export const path = (...parts) => parts.map(encodeURIComponent).join('/');

export function toast(text, bad = false) {
  const one = h(
    'div',
    { class: bad ? 'toast bad' : 'toast' },
    text,
    h('button', { class: 'plain', 'aria-label': 'Dismiss', onclick: () => one.remove() }, '×'),
  );
  document.getElementById('toasts').append(one);
  setTimeout(() => one.remove(), bad ? 15000 : 8000);
}

export function section(title, ...children) {
  return h('section', {}, h('h2', {}, title), children);
}

export function facts(rows) {
  return h(
    'dl',
    { class: 'facts' },
    rows.filter(Boolean).map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]),
  );
}
