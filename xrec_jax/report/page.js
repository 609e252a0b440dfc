(() => {
"use strict";

const byId = (id) => document.getElementById(id);
// Every text becomes a text node: nothing of a run is ever read as markup.
const make = (name, attributes, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

/* Light or dark: as the system says, until the reader decides. */
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const stored = (value) => {
  try {
    if (value) localStorage.setItem("xrec-theme", value);
    return localStorage.getItem("xrec-theme");
  } catch { return null; }  // a page from a file may have no storage
};
const given = stored();
if (given === "light" || given === "dark") root.dataset.theme = given;
byId("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  stored(root.dataset.theme);
});

/* The link of the section that is being read. */
const strip = document.querySelector(".contents ul");
const links = new Map([...strip.querySelectorAll("a")].map((a) => [a.hash.slice(1), a]));
let current = null;
const mark = () => {
  let found = null;
  for (const id of links.keys()) {
    const section = byId(id);
    if (section && section.getBoundingClientRect().top < innerHeight * 0.35) found = id;
  }
  if (found === current) return;
  if (current) links.get(current).removeAttribute("aria-current");
  current = found;
  if (!found) return;
  const link = links.get(found);
  link.setAttribute("aria-current", "location");
  if (strip.scrollWidth > strip.clientWidth) {
    strip.scrollTo({ left: link.offsetLeft - (strip.clientWidth - link.offsetWidth) / 2 });
  }
};
let waiting = false;
addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; mark(); });
}, { passive: true });
mark();

/* Curves: a line at the pointer and the values there. */
const tip = byId("tip");
for (const plot of document.querySelectorAll(".plot")) {
  const svg = plot.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const lines = JSON.parse(plot.dataset.lines);
  const steps = [...new Map(lines.flatMap((line) => line.x.map((x, k) => [x, line.at[k][0]])))]
    .sort((a, b) => a[0] - b[0]);
  let place = -1;
  const hide = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  const show = (index) => {
    place = Math.max(0, Math.min(steps.length - 1, index));
    const [x, at] = steps[place];
    const rows = [make("b", {}, `${plot.dataset.x} ${x}`)];
    for (const line of lines) {
      const k = line.x.indexOf(x);
      if (k >= 0) rows.push(make("div", {}, make("span", {}, line.label), make("span", {}, line.y[k])));
    }
    tip.replaceChildren(...rows);
    tip.hidden = false;
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.style.visibility = "visible";
    const box = svg.getBoundingClientRect();
    const left = box.left + (at / svg.viewBox.baseVal.width) * box.width;
    const width = tip.offsetWidth;
    tip.style.left = `${Math.max(4, left + 12 + width > innerWidth ? left - width - 12 : left + 12)}px`;
    tip.style.top = `${Math.max(4, box.top + 8)}px`;
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let best = 0;
    steps.forEach((step, k) => {
      if (Math.abs(step[1] - at) < Math.abs(steps[best][1] - at)) best = k;
    });
    show(best);
  };
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(steps.length - 1); });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (event.key === "Escape") hide();
    if (!move) return;
    event.preventDefault();
    show(place + move);
  });
}

/* Texts over the rounds: those of one user and seed; without this script all of them stand there. */
const tools = byId("joint-tools");
if (tools) {
  const [seed, user] = [byId("joint-seed"), byId("joint-user")];
  const articles = [...document.querySelectorAll("#joint-samples > article")];
  const pick = () => {
    for (const article of articles) {
      const { dataset } = article;
      article.hidden = dataset.seed !== seed.value || dataset.user !== user.value;
    }
    byId("joint-nothing").hidden = articles.some((article) => !article.hidden);
  };
  for (const chosen of [seed, user]) {
    chosen.closest(".field").hidden = chosen.options.length < 2;
    chosen.addEventListener("change", pick);
  }
  tools.hidden = seed.options.length < 2 && user.options.length < 2;
  pick();
}

/* Recommendations: only the rows of one page are ever drawn. */
const source = byId("pairs-data");
if (!source) return;
const data = JSON.parse(source.textContent);
const PAGE = 5;
const UNSUPPORTED = data.kinds.indexOf("unsupported");
const list = byId("pairs-list");
const search = byId("pairs-search");
const filter = byId("pairs-filter");
const sort = byId("pairs-sort");
const back = byId("pairs-back");
const next = byId("pairs-next");
const where = byId("pairs-place");

const unsupported = (text) => (text ? text[1].filter((span) => span[2] === UNSUPPORTED).length : 0);
const grounded = (text) => (text ? text[1].length - unsupported(text) : 0);

const filters = [["all", () => true]];
data.explainers.forEach((explainer, k) => {
  filters.push([`not borne out: ${explainer.name}`, (pair) => unsupported(pair.x[k]) > 0]);
});
data.explainers.forEach((explainer, k) => {
  if (data.planted) {
    filters.push([`no true reason: ${explainer.name}`, (pair) => pair.x[k] && (pair.w || []).length > 0 && !pair.x[k][3].length]);
  }
  filters.push([`names nothing: ${explainer.name}`, (pair) => pair.x[k] && !pair.x[k][1].length]);
  filters.push([`cut off: ${explainer.name}`, (pair) => pair.x[k] && pair.x[k][2] === 1]);
});
for (const verdict of [...new Set(data.pairs.flatMap((pair) => pair.v || []))].sort()) {
  filters.push([`judge: ${verdict}`, (pair) => (pair.v || []).includes(verdict)]);
}
filters.forEach(([name, keep], k) => {
  const count = data.pairs.filter(keep).length;
  if (k === 0 || count) {
    filter.append(make("option", { value: k }, `${name} (${count.toLocaleString("en")})`));
  }
});
const sorts = [["the file's order", null]];
if (data.pairs.some((pair) => pair.s !== undefined)) {
  sorts.push(["score, highest first", (pair) => -(pair.s ?? -Infinity)]);
}
data.explainers.forEach((explainer, k) => {
  sorts.push([`least borne out: ${explainer.name}`, (pair) => -unsupported(pair.x[k])]);
});
sorts.forEach(([name], k) => sort.append(make("option", { value: k }, name)));

let words = null;  // of every pair in lower case, made at the first search
const text = (k) => {
  if (!words) {
    words = data.pairs.map((pair) => [
      pair.u, pair.d, data.items[pair.i].t, pair.p || "",
      ...Object.values(data.items[pair.i].a), ...(pair.h || []).map((h) => data.items[h].t),
      ...(pair.w || []).map((reason) => reason[0]), ...pair.x.map((x) => (x ? x[0] : "")),
    ].join("\n").toLowerCase());
  }
  return words[k];
};

const chips = (attributes) => {
  const entries = Object.entries(attributes || {});
  if (!entries.length) return null;
  return make("ul", { class: "chips" }, ...entries.map(([name, value]) =>
    make("li", {}, make("b", {}, `${name} `), value)));
};
const marked = (content, spans) => {
  const nodes = [];
  let at = 0;
  for (const [start, end, kind] of spans) {
    nodes.push(content.slice(at, start));
    nodes.push(make("mark", { class: data.kinds[kind] }, content.slice(start, end)));
    at = end;
  }
  nodes.push(content.slice(at));
  return make("p", {}, ...nodes);
};
const tally = (content, x, reasons, blind) => {
  const number = content.split(/\s+/).filter(Boolean).length;
  const bad = unsupported(x);
  const parts = [blind ? `${number} words` : `${number} words, ${grounded(x)} borne out`];
  if (bad) parts.push(", ", make("b", {}, `${bad} not borne out`));
  if (reasons) parts.push(`, ${x[3].length} of ${reasons} true reasons`);
  if (x[2]) parts.push(", cut off");
  return make("p", { class: "tally" }, ...parts);
};
const history = (pair) => {
  if (!pair.h) {
    if (!pair.m) return null;
    return make("div", {}, make("h4", {}, "Prompt"), make("div", { class: "prompt", tabindex: 0 }, pair.m));
  }
  const entry = (h) => {
    const item = data.items[h];
    const facts = Object.values(item.a).join(", ");
    return make("li", {}, item.t, facts ? make("small", {}, facts) : null);
  };
  const shown = 4;
  const latest = make("ol", { start: Math.max(1, pair.h.length - shown + 1) }, ...pair.h.slice(-shown).map(entry));
  const parts = [make("h4", {}, "History, latest last")];
  if (pair.h.length > shown) {
    const more = pair.h.length - shown;
    parts.push(make("details", {}, make("summary", {}, `${more} earlier`), make("ol", {}, ...pair.h.slice(0, more).map(entry))));
  }
  return make("div", {}, ...parts, latest);
};
const card = (k) => {
  const pair = data.pairs[k];
  const item = data.items[pair.i];
  const from = [`user ${pair.u}`, `item ${pair.d}`];
  if (pair.y) from.push(pair.r ? `${pair.y}, rank ${pair.r}` : pair.y);
  if (pair.s !== undefined) from.push(`score ${pair.s.toPrecision(4)}`);
  const texts = pair.x.map((x, e) => {
    if (!x) return null;
    const explainer = data.explainers[e];
    return make("div", { class: `text ${explainer.colour}` },
      make("h4", {}, explainer.title), marked(x[0], x[1]), tally(x[0], x, data.planted ? (pair.w || []).length : 0, pair.n));
  });
  const node = make("article", { class: "pair", tabindex: -1, "aria-label": `${item.t} for user ${pair.u}` },
    make("header", {}, make("h3", {}, item.t), make("p", { class: "where" }, from.join(" \u00b7 "))),
    chips(item.a),
    make("div", { class: "sides" },
      make("div", { class: "user" },
        pair.p ? make("div", {}, make("h4", {}, "User"), make("p", {}, pair.p)) : chips(pair.a),
        history(pair)),
      make("div", { class: "texts", style: `--texts: ${texts.filter(Boolean).length}` }, ...texts)));
  const reasons = (pair.w || []).map(([phrase, side], w) => make("li", { class: side ? "for" : "against" }, phrase,
    ...pair.x.map((x, e) => (x && x[3].includes(w)
      ? make("i", { class: `given ${data.explainers[e].colour}`, title: `given by ${data.explainers[e].name}`, role: "img", "aria-label": `given by ${data.explainers[e].name}` })
      : null))));
  if (reasons.length) {
    node.append(make("div", { class: "reasons" }, make("h4", {}, "True reasons"), make("ul", { class: "chips" }, ...reasons)));
  }
  if (pair.v) {
    node.append(make("div", { class: "reasons" }, make("h4", {}, "Judge"),
      make("ul", { class: "chips" }, ...pair.v.map((verdict) => make("li", {}, verdict)))));
  }
  return node;
};

let chosen = [];
let page = 0;
const draw = (focus) => {
  const pages = Math.max(1, Math.ceil(chosen.length / PAGE));
  page = Math.max(0, Math.min(pages - 1, page));
  const rows = chosen.slice(page * PAGE, (page + 1) * PAGE);
  list.replaceChildren(...(rows.length ? rows.map(card) : [make("p", { class: "nothing" }, "Nothing fits. Clear the search or show all.")]));
  where.textContent = rows.length
    ? `${(page * PAGE + 1).toLocaleString("en")} to ${(page * PAGE + rows.length).toLocaleString("en")} of ${chosen.length.toLocaleString("en")}`
    : "none";
  back.disabled = page === 0;
  next.disabled = page >= pages - 1;
  if (focus && list.firstElementChild) {
    list.firstElementChild.scrollIntoView({ block: "start" });
    if (rows.length) list.firstElementChild.focus({ preventScroll: true });
  }
};
const choose = () => {
  const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const keep = filters[filter.value][1];
  const order = sorts[sort.value][1];
  chosen = [];
  data.pairs.forEach((pair, k) => {
    if (keep(pair) && (!asked.length || asked.every((word) => text(k).includes(word)))) chosen.push(k);
  });
  if (order) {
    const value = new Map(chosen.map((k) => [k, order(data.pairs[k])]));
    chosen.sort((a, b) => value.get(a) - value.get(b) || a - b);
  }
  page = 0;
  draw(false);
};
let later = 0;
search.addEventListener("input", () => { clearTimeout(later); later = setTimeout(choose, 150); });
filter.addEventListener("change", choose);
sort.addEventListener("change", choose);
byId("pairs-tools").addEventListener("submit", (event) => { event.preventDefault(); choose(); });
const turn = (by) => { page += by; draw(true); };
back.addEventListener("click", () => turn(-1));
next.addEventListener("click", () => turn(1));
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && event.target === search) { search.blur(); return; }
  if (event.target.closest && event.target.closest("input, select, textarea, svg")) return;
  const cards = [...list.querySelectorAll(".pair")];
  const at = cards.indexOf(document.activeElement && document.activeElement.closest(".pair"));
  const go = (k) => { if (cards[k]) { cards[k].scrollIntoView({ block: "start" }); cards[k].focus({ preventScroll: true }); } };
  if (event.key === "/") { event.preventDefault(); search.focus(); search.scrollIntoView({ block: "center" }); }
  else if (event.key === "n" && !next.disabled) turn(1);
  else if (event.key === "p" && !back.disabled) turn(-1);
  else if (event.key === "j") go(at + 1);
  else if (event.key === "k") go(Math.max(0, at - 1));
});
choose();
})();
