// A table of any length: only the rows in sight are elements of the page.

import { h, replace, say } from '/static/dom.js';

const ROW = 30,
  AROUND = 8;

export class Table {
  // columns: { name, text(row), value(row), left, state }; open(row) is called on Enter or a click.
  constructor({ label, columns, open, sort, empty = 'nothing yet', rows = 16, mark = () => '' }) {
    Object.assign(this, { columns, open, empty, mark, rows: [], all: [], active: 0, words: '' });
    this.order = sort ?? { column: 0, up: true };
    this.head = h('tr', {});
    const filler = () => h('tr', { class: 'filler', 'aria-hidden': 'true' });
    Object.assign(this, {
      above: filler(),
      below: filler(),
      none: h(
        'tr',
        { class: 'filler', hidden: true },
        h('td', { class: 'left none', colSpan: columns.length }),
      ),
      pool: [],
      first: 0,
    });
    this.body = h('tbody', {}, this.above, this.below, this.none);
    this.columnGroup = h('colgroup', {});
    this.table = h(
      'table',
      { class: 'grid', role: 'grid', 'aria-label': label },
      this.columnGroup,
      h('thead', {}, this.head),
      this.body,
    );
    this.box = h(
      'div',
      {
        class: 'scroll',
        tabIndex: 0,
        role: 'group',
        'aria-label': `${label}: arrow keys choose a row, Enter opens it`,
        onscroll: () => this.draw(),
        onkeydown: event => this.key(event),
      },
      this.table,
    );
    this.box.style.maxHeight = `${(rows + 1) * ROW + 14}px`;
    this.element = this.box;
    this.makeHead();
  }

  makeHead() {
    replace(
      this.head,
      this.columns.map((column, place) => {
        const up = this.order.column === place ? (this.order.up ? 'ascending' : 'descending') : 'none';
        return h(
          'th',
          { class: column.left ? 'left' : '', 'aria-sort': up, scope: 'col' },
          h(
            'button',
            {
              class: 'plain',
              tabIndex: -1,
              title: `Sort by ${column.name}`,
              onclick: () => this.sortBy(place),
            },
            column.name,
            up === 'none' ? '' : this.order.up ? ' ↑' : ' ↓',
          ),
        );
      }),
    );
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
    const parts = this.words.split(/\s+/).filter(Boolean),
      { column, up } = this.order,
      one = this.columns[column];
    const chosen = this.rows[this.active];
    this.rows = parts.length
      ? this.all.filter(row => {
          const text = this.textOf(row);
          return parts.every(part => text.includes(part));
        })
      : [...this.all];
    const value = one.value ?? one.text,
      sign = up ? 1 : -1;
    const keyed = this.rows.map(row => [value(row), row]);
    keyed.sort(([a], [b]) => {
      const noA = a === null || a === undefined || a === '',
        noB = b === null || b === undefined || b === '';
      if (noA || noB) return noA - noB;
      return (
        sign *
        (typeof a === 'number' && typeof b === 'number'
          ? a - b
          : String(a).localeCompare(String(b), 'en', { numeric: true }))
      );
    });
    this.rows = keyed.map(pair => pair[1]);
    const at = chosen
      ? this.rows.findIndex(row => row.number !== undefined && row.number === chosen.number)
      : -1;
    this.active = Math.min(at >= 0 ? at : this.active, Math.max(0, this.rows.length - 1));
    this.table.setAttribute('aria-rowcount', this.rows.length + 1);
    this.setWidths();
    this.drawn = '';
    this.draw();
  }

  textOf(row) {
    return this.columns
      .map(column => `${column.name} ${column.text(row)}`)
      .join(' ')
      .toLowerCase();
  }

  setWidths() {
    const sample =
      this.rows.length > 150
        ? this.rows.filter((_, place) => place < 60 || place % Math.ceil(this.rows.length / 60) === 0)
        : this.rows;
    const widths = this.columns.map(column =>
      Math.min(
        26,
        Math.max(column.name.length + 3, ...sample.map(row => String(column.text(row)).length)) +
          (column.state ? 5 : 2),
      ),
    );
    const key = widths.join();
    if (key === this.widths) return;
    this.widths = key;
    replace(
      this.columnGroup,
      widths.map(width => {
        const one = h('col', {});
        one.style.width = `${width}ch`;
        return one;
      }),
    );
    this.table.style.width = `max(100%, ${widths.reduce((a, b) => a + b, 0)}ch)`;
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - AROUND);
    const many = Math.ceil((this.box.clientHeight || 500) / ROW) + 2 * AROUND;
    const last = Math.min(this.rows.length, first + many),
      key = `${first}-${last}`;
    if (this.drawn === key) return;
    this.drawn = key;
    this.first = first;
    // Rows are filled anew, not made anew: a click that begins on a row ends on it, whatever has come meanwhile.
    this.above.style.height = `${first * ROW}px`;
    this.below.style.height = `${(this.rows.length - last) * ROW}px`;
    for (let place = this.pool.length; place < last - first; place++) this.addRow();
    this.pool.forEach(({ line, cells }, at) => {
      const place = first + at,
        row = this.rows[place];
      line.hidden = place >= last;
      if (!line.hidden) this.fill(line, cells, row, place);
    });
    this.none.hidden = this.rows.length > 0;
    say(this.none.firstChild, this.words ? 'nothing matches' : this.empty);
  }

  addRow() {
    const at = this.pool.length,
      cells = this.columns.map(column =>
        h('td', { class: column.left ? 'left' : '' }, column.state ? h('span', {}) : null),
      );
    const line = h('tr', { onclick: () => this.choose(this.first + at) }, cells);
    this.pool.push({ line, cells });
    this.below.before(line);
  }

  choose(place) {
    this.active = place;
    this.open(this.rows[place]);
  }

  fill(line, cells, row, place) {
    const is = place === this.active,
      kind = `${is ? 'active ' : ''}${this.mark(row)}`;
    if (line.className !== kind) line.className = kind;
    line.setAttribute('aria-rowindex', place + 2);
    line.setAttribute('aria-selected', is);
    this.columns.forEach((column, index) => {
      const text = String(column.text(row)),
        cell = cells[index];
      if (column.state) {
        const pill = cell.firstChild;
        if (pill.textContent !== text) {
          pill.textContent = text;
          pill.className = `pill ${text}`;
        }
      } else if (cell.textContent !== text) {
        cell.textContent = text;
        cell.title = text.length > 22 ? text : '';
      }
    });
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 2);
    const steps = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    };
    if (event.target !== this.box || !this.rows.length) return;
    if (event.key === 'Enter') this.choose(this.active);
    else if (event.key in steps) {
      event.preventDefault();
      this.active = Math.min(this.rows.length - 1, Math.max(0, this.active + steps[event.key]));
      const top = this.active * ROW,
        room = this.box.clientHeight - 2 * ROW;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top > this.box.scrollTop + room) this.box.scrollTop = top - room;
      this.drawn = '';
      this.draw();
    }
  }
}
