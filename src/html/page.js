// Keeps a page current: requests its rows every five seconds while it is visible, and changes only what
// differs, so that focus, opened details, selection and scroll position stay. While answers fail, a banner says since
// when, and the numbers are greyed: a page that stands still must not look alive.
'use strict';
(() => {
  const PERIOD_MS = 5000;
  const TIMEOUT_MS = 10000;
  const TYPING_MS = 200;
  const PARTS = ['summary', 'verdicts', 'shown', 'modules', 'pages', 'extra'];
  const THEMES = ['auto', 'light', 'dark'];
  const root = document.documentElement;
  const at = id => document.getElementById(id);

  // The theme is set before the page is drawn; this script is loaded in the head.
  function stored() {
    try { return localStorage.getItem('theme'); } catch { return null; }
  }
  function setTheme(theme) {
    root.classList.remove('light', 'dark');
    if (theme !== 'auto') root.classList.add(theme);
    try { localStorage.setItem('theme', theme); } catch { /* Then it is kept for this page alone. */ }
    const button = at('theme');
    if (button) button.textContent = 'Theme: ' + theme;
  }
  let theme = THEMES.includes(stored()) ? stored() : 'auto';
  if (theme !== 'auto') root.classList.add(theme);

  // Makes `from` equal to `to`. Elements with a data-id are recognised wherever they move.
  function morph(from, to) {
    // What the user opened or closed meanwhile stays so.
    for (const { name, value } of to.attributes) {
      if (name !== 'open' && from.getAttribute(name) !== value) from.setAttribute(name, value);
    }
    for (const { name } of [...from.attributes]) {
      if (name !== 'open' && !to.hasAttribute(name)) from.removeAttribute(name);
    }
    if (from.type === 'checkbox') from.checked = to.checked;
    const id = node => node.dataset?.id;
    const known = new Map([...from.children].filter(id).map(child => [id(child), child]));
    let next = from.firstChild;
    for (const wanted of to.childNodes) {
      const have = id(wanted) ? known.get(id(wanted)) : next;
      if (!have || have.nodeName !== wanted.nodeName || id(have) !== id(wanted)) {
        from.insertBefore(document.importNode(wanted, true), next);
        continue;
      }
      if (have === next) next = next.nextSibling;
      else from.insertBefore(have, next);
      if (have.nodeType !== Node.ELEMENT_NODE) {
        if (have.data !== wanted.data) have.data = wanted.data;
      } else if (!have.isEqualNode(wanted)) {
        morph(have, wanted);
      }
    }
    while (next) {
      const rest = next.nextSibling;
      next.remove();
      next = rest;
    }
  }

  function verdicts() {
    const named = row => ({ verdict: row.dataset.verdict, name: row.querySelector('th bdi')?.textContent });
    return new Map([...document.querySelectorAll('tbody[data-verdict]')].map(row => [row.dataset.id, named(row)]));
  }

  // Says in one sentence which rows got another verdict; the table itself would be too much to read out.
  function announce(before, after) {
    const words = new Map();
    // A row that was not there before had the best verdict, whose rows may be hidden, or is new.
    const best = at('verdicts').querySelector('label:last-child input').value;
    for (const [id, { verdict, name }] of after) {
      if (verdict !== (before.get(id)?.verdict ?? best)) words.set(verdict, [...(words.get(verdict) ?? []), name]);
    }
    const sentences = [...words].map(([verdict, names]) =>
      (names.length === 1 ? names[0] : `${names.length} ${at('summary').dataset.things}`) + ' became ' + verdict);
    if (sentences.length) at('live').textContent = sentences.join(', ');
  }

  // Durations as the server writes them.
  function span(ms) {
    const seconds = Math.max(0, Math.floor(ms / 1000));
    if (seconds < 100) return seconds + ' s';
    if (seconds < 6000) return Math.floor(seconds / 60) + ' min';
    if (seconds < 172800) return Math.floor(seconds / 3600) + ' h';
    return Math.floor(seconds / 86400) + ' d';
  }

  let ahead = 0; // How far the clock of the server is ahead of ours, in ms.
  function tick() {
    for (const time of document.querySelectorAll('time')) {
      const text = span(Date.now() + ahead - Date.parse(time.dateTime));
      if (time.textContent !== text) time.textContent = text;
    }
  }

  // `before` are the verdicts of the same query; null if the query is another one, which is nothing to announce.
  function show(text, before) {
    const fresh = new DOMParser().parseFromString(text, 'text/html');
    const summary = fresh.getElementById('summary');
    if (!summary) throw new Error('the answer has no rows');
    // After an update of the daemon this script may not fit its pages.
    if (summary.dataset.version !== at('summary').dataset.version) return location.reload();
    const focused = document.activeElement;
    for (const part of PARTS) if (at(part)) morph(at(part), fresh.getElementById(part));
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    document.title = summary.dataset.title;
    ahead = Date.parse(summary.dataset.now) - Date.now();
    tick();
    if (before) announce(before, verdicts());
  }

  let boxesChosen = false; // Whether the user chose the verdicts; else the server does.
  let page = null;
  function query() {
    const form = at('filter');
    const chosen = new URLSearchParams();
    const set = (name, value) => value && chosen.append(name, value);
    set('filter', form.elements.filter.value.trim());
    if (boxesChosen) for (const box of at('verdicts').querySelectorAll('input:checked')) set('verdict', box.value);
    set('cluster', form.elements.cluster?.value);
    set('sort', form.elements.sort?.value);
    set('page', page);
    for (const open of document.querySelectorAll('tbody[data-id] > .more details[open]')) {
      set('open', open.closest('tbody').dataset.id);
    }
    const text = chosen.toString();
    return text && '?' + text;
  }

  let timer, request, etag, shown, answered = Date.now();
  async function refresh() {
    clearTimeout(timer);
    request?.abort();
    const own = request = new AbortController();
    const timeout = setTimeout(() => own.abort(), TIMEOUT_MS);
    const wanted = query();
    try {
      const same = wanted === shown;
      const headers = same && etag ? { 'If-None-Match': etag } : {};
      const answer = await fetch('/rows' + wanted, { headers, cache: 'no-store', signal: own.signal });
      if (answer.status !== 304) {
        if (!answer.ok) throw new Error('status ' + answer.status);
        const text = await answer.text();
        if (own !== request) return;
        show(text, same ? verdicts() : null);
        etag = answer.headers.get('ETag');
        shown = wanted;
      }
      answered = Date.now();
      setLost(false);
    } catch {
      if (own === request) setLost(true);
    } finally {
      clearTimeout(timeout);
      if (own === request && !document.hidden) timer = setTimeout(refresh, PERIOD_MS);
    }
  }

  function setLost(lost) {
    const banner = at('banner');
    if (lost && banner.hidden) {
      const text = 'No answer since ' + new Date(answered).toLocaleTimeString() + '. The numbers are from then.';
      banner.textContent = text;
      at('live').textContent = text;
    }
    if (!lost && !banner.hidden) at('live').textContent = 'Answers again.';
    banner.hidden = !lost;
    root.classList.toggle('lost', lost);
  }

  // What the user chose goes into the address, so that it can be sent to a colleague and survives a reload.
  function keepInAddress() {
    history.replaceState(null, '', '/' + query());
  }

  function changed(pause) {
    page = null;
    clearTimeout(timer);
    timer = setTimeout(() => {
      keepInAddress();
      refresh();
    }, pause);
  }

  function start() {
    const form = at('filter');
    const text = form.elements.filter;
    const asked = new URLSearchParams(location.search);
    boxesChosen = asked.has('verdict');
    page = asked.get('page');
    at('theme').hidden = false;
    at('send').hidden = true;
    setTheme(theme);
    at('theme').addEventListener('click', () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      setTheme(theme);
    });
    form.addEventListener('submit', event => {
      event.preventDefault();
      changed(0);
    });
    form.addEventListener('input', event => {
      if (event.target.name === 'verdict') boxesChosen = true;
      changed(event.target === text ? TYPING_MS : 0);
    });
    document.addEventListener('keydown', event => {
      const isTyping = event.target.closest?.('input:not([type=checkbox]), select, textarea');
      if (event.key === '/' && !isTyping && !event.ctrlKey && !event.altKey && !event.metaKey) {
        event.preventDefault();
        text.focus();
        text.select();
      } else if (event.key === 'Escape' && event.target === text && text.value) {
        event.preventDefault();
        text.value = '';
        changed(0);
      }
    });
    // The event does not bubble, so it is captured.
    document.addEventListener('toggle', event => {
      keepInAddress();
      if (event.target.open && !event.target.querySelector('table')) refresh();
    }, true);
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) clearTimeout(timer);
      else refresh();
    });
    ahead = Date.parse(at('summary').dataset.now) - Date.now();
    setInterval(tick, 1000);
    shown = query();
    timer = setTimeout(refresh, PERIOD_MS);
  }

  document.addEventListener('DOMContentLoaded', start);
})();
