// A table of any length: only the rows in sight are elements of the page.

import { h, replace } from '/static/dom.js';

const ROW = 30, AROUND = 8;

export class Table {
  // columns: { name, text(row), value(row), left, state }; open(row) is called on Enter or a click.
  constructor({ label, columns, open, sort, empty = 'nothing yet', rows = 16, mark = () => '' }) {
    Object.assign(this, { columns, open, empty, mark, rows: [], all: [], active: 0, words: '' });
    this.order = sort ?? { column: 0, up: true };
    this.head = h('tr', {});
    this.body = h('tbody', {});
    this.columnGroup = h('colgroup', {});
    this.table = h('table', { class: 'grid', role: 'grid', 'aria-label': label },
      this.columnGroup, h('thead', {}, this.head), this.body);
    this.box = h('div', { class: 'scroll', tabIndex: 0, role: 'group', 'aria-label': `${label}: arrow keys choose a row, Enter opens it`, onscroll: () => this.draw(), onkeydown: event => this.key(event) }, this.table);
    this.box.style.maxHeight = `${(rows + 1) * ROW + 14}px`;
    this.element = this.box;
    this.makeHead();
  }

  makeHead() {
    replace(this.head, this.columns.map((column, place) => {
      const up = this.order.column === place ? (this.order.up ? 'ascending' : 'descending') : 'none';
      return h('th', { class: column.left ? 'left' : '', 'aria-sort': up, scope: 'col' },
        h('button', { class: 'plain', tabIndex: -1, title: `Sort by ${column.name}`, onclick: () => this.sortBy(place) },
          column.name, up === 'none' ? '' : this.order.up ? ' ↑' : ' ↓'));
    }));
  }

  sortBy(place) {
    this.order = { column: place, up: this.order.column === place ? !this.order.up : true };
    this.makeHead();
    this.arrange();
  }

  set(rows) {
    this.all = rows;
    this.arrange();
  }

  filter(words) {
    this.words = words.trim().toLowerCase();
    this.arrange();
  }

  arrange() {
    const parts = this.words.split(/\s+/).filter(Boolean), { column, up } = this.order, one = this.columns[column];
    const chosen = this.rows[this.active];
    this.rows = parts.length ? this.all.filter(row => { const text = this.textOf(row); return parts.every(part => text.includes(part)); }) : [...this.all];
    const value = one.value ?? one.text, sign = up ? 1 : -1;
    const keyed = this.rows.map(row => [value(row), row]);
    keyed.sort(([a], [b]) => {
      const noA = a === null || a === undefined || a === '', noB = b === null || b === undefined || b === '';
      if (noA || noB) return noA - noB;
      return sign * (typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true }));
    });
    this.rows = keyed.map(pair => pair[1]);
    const at = chosen ? this.rows.findIndex(row => row.number !== undefined && row.number === chosen.number) : -1;
    this.active = Math.min(at >= 0 ? at : this.active, Math.max(0, this.rows.length - 1));
    this.table.setAttribute('aria-rowcount', this.rows.length + 1);
    this.setWidths();
    this.drawn = '';
    this.draw();
  }

  textOf(row) {
    return this.columns.map(column => `${column.name} ${column.text(row)}`).join(' ').toLowerCase();
  }

  setWidths() {
    const sample = this.rows.length > 150 ? this.rows.filter((_, place) => place < 60 || place % Math.ceil(this.rows.length / 60) === 0) : this.rows;
    const widths = this.columns.map(column => Math.min(26, Math.max(column.name.length + 2, ...sample.map(row => String(column.text(row)).length)) + (column.state ? 5 : 2)));
    const key = widths.join();
    if (key === this.widths) return;
    this.widths = key;
    replace(this.columnGroup, widths.map(width => { const one = h('col', {}); one.style.width = `${width}ch`; return one; }));
    this.table.style.width = `max(100%, ${widths.reduce((a, b) => a + b, 0)}ch)`;
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - AROUND);
    const many = Math.ceil((this.box.clientHeight || 500) / ROW) + 2 * AROUND;
    const last = Math.min(this.rows.length, first + many), key = `${first}-${last}`;
    if (this.drawn === key) return;
    this.drawn = key;
    if (!this.rows.length) {
      replace(this.body, h('tr', {}, h('td', { class: 'left none', colSpan: this.columns.length }, this.words ? 'nothing matches' : this.empty)));
      return;
    }
    const filler = rows => { const one = h('tr', { 'aria-hidden': 'true', class: 'filler' }); one.style.height = `${rows * ROW}px`; return one; };
    replace(this.body, filler(first), this.rows.slice(first, last).map((row, place) => this.row(row, first + place)), filler(this.rows.length - last));
  }

  row(row, place) {
    const is = place === this.active;
    return h('tr', { class: `${is ? 'active ' : ''}${this.mark(row)}`, 'aria-rowindex': place + 2, 'aria-selected': is ? 'true' : 'false', onclick: () => { this.active = place; this.open(row); } },
      this.columns.map(column => {
        const text = column.text(row);
        return h('td', { class: column.left ? 'left' : '', title: String(text).length > 22 ? text : undefined },
          column.state ? h('span', { class: `pill ${text}` }, text) : text);
      }));
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.target !== this.box || !this.rows.length) return;
    if (event.key === 'Enter') this.open(this.rows[this.active]);
    else if (event.key in steps) {
      event.preventDefault();
      this.active = Math.min(this.rows.length - 1, Math.max(0, this.active + steps[event.key]));
      const top = this.active * ROW, room = this.box.clientHeight - 2 * ROW;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top > this.box.scrollTop + room) this.box.scrollTop = top - room;
      this.drawn = '';
      this.draw();
    }
  }
}
