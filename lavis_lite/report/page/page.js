"use strict";
(() => {
  const started = performance.now();
  const data = JSON.parse(document.getElementById("data").textContent);
  const samples = data.samples;
  const PER_PAGE = 48, BINS = 20;
  const at = (id) => document.getElementById(id);
  const root = document.documentElement;

  // Everything that was in a data set or came from a model is shown as text.
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined && text !== null) node.textContent = text;
    return node;
  };
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    if (Number.isInteger(value)) return value.toLocaleString("en");
    const size = Math.abs(value);
    return size >= 1000 || size < 0.0005 ? value.toPrecision(3) : value.toFixed(size < 10 ? 3 : 2);
  };
  const plural = (count, noun) => `${count.toLocaleString("en")} ${count === 1 ? noun : noun === "query" ? "queries" : `${noun}s`}`;

  for (const [index, one] of samples.entries()) {
    one.n = index;
    one.score = one.s ? Object.values(one.s)[0] : null;
    one.text = [one.i, one.h, one.p, one.a, one.g, ...(one.r || [])].filter((part) => part !== undefined).join("\n").toLowerCase();
  }
  const ranked = samples.some((one) => one.k !== undefined);
  const searched = ranked && samples.every((one) => one.a === undefined); // retrieval: nothing is said, only found
  const many = (count) => plural(count, searched ? "query" : "sample");
  const judged = samples.some((one) => one.ok !== undefined);
  const scored = samples.some((one) => one.score !== null);
  const groups = [...new Set(samples.map((one) => one.g).filter((name) => name !== undefined))];

  // Pictures: base64 lies in inert chunks; an <img> is made when its position comes near the screen.
  const chunks = new Map();
  let parsed = document.readyState !== "loading";
  const waiting = new Set();
  const base64 = (index) => {
    const which = Math.floor(index / data.chunk);
    if (!chunks.has(which)) {
      const element = at(`chunk${which}`);
      // the last chunk in the document may still be coming in
      if (!element || (!parsed && !element.nextElementSibling)) return undefined;
      chunks.set(which, element.textContent.split("\n"));
    }
    return chunks.get(which)[index % data.chunk];
  };
  const show = (holder) => {
    const index = Number(holder.dataset.picture);
    const content = base64(index);
    if (content === undefined && !parsed) { waiting.add(holder); return; }
    if (!content) { holder.append(make("small", "", data.errors[index] || "no picture")); return; }
    const image = new Image();
    image.alt = holder.dataset.alt;
    image.decoding = "async";
    image.src = `data:image/jpeg;base64,${content}`;
    holder.append(image);
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      show(entry.target);
    }
  }, { rootMargin: "300px" });
  const picture = (index, alt) => {
    const holder = make("span", "pic");
    holder.dataset.picture = index;
    holder.dataset.alt = alt;
    near.observe(holder);
    return holder;
  };
  document.addEventListener("DOMContentLoaded", () => {
    parsed = true;
    for (const holder of waiting) show(holder);
    waiting.clear();
    root.dataset.parsed = Math.round(performance.now());
  });

  // State: what is looked at stands in the address, so that a view can be kept and sent.
  const state = { filter: "all", q: "", group: "", min: "", max: "", order: "file", page: 1, sample: "" };
  const initial = { ...state };
  const read = () => {
    Object.assign(state, initial);
    const words = new URLSearchParams(location.hash.slice(1));
    for (const [key, value] of words) if (key in state) state[key] = key === "page" ? Math.max(1, parseInt(value, 10) || 1) : value;
  };
  const write = () => {
    const words = new URLSearchParams();
    for (const key of Object.keys(state)) if (String(state[key]) !== String(initial[key])) words.set(key, state[key]);
    history.replaceState(null, "", words.size ? `#${words}` : location.pathname + location.search);
  };
  const set = (changes) => { Object.assign(state, { page: 1 }, changes); write(); draw(); };

  // Filtering
  const verdict = (one) => one.ok === true ? "right" : one.ok === false ? (one.score > 0 && one.score < 1 && !ranked ? "part" : "wrong") : "";
  const inRange = (one) => {
    const value = ranked ? one.k : one.score;
    if (state.min === "" && state.max === "") return true;
    if (value === null || value === undefined) return false;
    const comparable = ranked && value === 0 ? Infinity : value;
    return (state.min === "" || comparable >= Number(state.min)) && (state.max === "" || comparable <= Number(state.max));
  };
  const wanted = (skip) => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    return samples.filter((one) =>
      (state.filter === "all" || skip === "filter" || (state.filter === "right") === (one.ok === true) && one.ok !== undefined)
      && (!state.group || one.g === state.group)
      && (skip === "range" || inRange(one))
      && words.every((word) => one.text.includes(word)));
  };
  const ORDERS = { file: "as in the split", worst: "lowest score first", best: "highest score first", longest: "longest prediction first" };
  const worth = (one) => ranked && one.k !== undefined ? -(one.k || Infinity) : one.score ?? -Infinity;
  const ordered = (list) => {
    const ways = { worst: (a, b) => worth(a) < worth(b) ? -1 : worth(a) > worth(b) ? 1 : a.n - b.n,
      best: (a, b) => worth(a) > worth(b) ? -1 : worth(a) < worth(b) ? 1 : a.n - b.n,
      longest: (a, b) => (b.a || "").length - (a.a || "").length };
    return ways[state.order] ? list.sort(ways[state.order]) : list;
  };

  // One sample
  const chips = (one, all) => {
    const line = make("div", "chips");
    const kind = verdict(one), main = Object.keys(one.s || {})[0];
    const mark = { right: "✓ ", wrong: "✗ ", part: "~ ", "": "" }[kind];
    if (one.k !== undefined) line.append(make("span", `chip ${kind}`, mark + (one.k ? `rank ${one.k}` : "not found")));
    else if (one.score !== null) line.append(make("span", `chip ${kind}`, `${mark}${all ? `${main} ` : ""}${number(one.score)}`));
    else if (kind) line.append(make("span", `chip ${kind}`, mark + kind));
    // parts of the main score, such as accuracy_question_color, say the same of a single sample
    const others = Object.entries(one.s || {}).filter(([name]) => !name.startsWith(`${main}_`) && (name !== main || one.k !== undefined));
    if (all) for (const [name, value] of others) line.append(make("span", "chip", `${name} ${number(value)}`));
    if (one.g !== undefined) line.append(make("span", "chip", one.g));
    if (!all) line.append(opener(one));
    return line;
  };
  const opener = (one) => { // what the keyboard reaches; the whole card takes clicks
    const button = make("button", "id open", one.i);
    button.type = "button";
    button.setAttribute("aria-label", `open ${searched ? "query" : "sample"} ${one.i}`);
    button.setAttribute("aria-haspopup", "dialog");
    return button;
  };
  const track = (share) => {
    const box = make("span", "track"), fill = make("i");
    fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    box.append(fill);
    return box;
  };
  const candidates = (one, most) => {
    const pictures = one.c.some((each) => each.t !== undefined);
    const list = make("ol", pictures ? "strip" : "list");
    one.c.slice(0, most).forEach((each, index) => {
      const row = make("li", each.ok ? "right" : "");
      if (pictures) {
        if (each.t !== undefined) row.append(picture(each.t, each.x || `candidate ${index + 1}`));
        row.append(make("span", "", `${each.ok ? "✓ " : ""}${index + 1}${each.v === undefined ? "" : ` · ${number(each.v)}`}`));
      } else {
        row.append(make("em", "", index + 1), make("span", "", `${each.ok ? "✓ " : ""}${each.x}`));
        if (each.w !== undefined) {
          row.classList.add("barred");
          row.append(track(each.w));
          row.title = `${(each.w * 100).toFixed(1)} % of the probability of all candidates; log-likelihood ${number(each.v)}`;
        }
        row.append(make("b", "", each.v === undefined ? "" : number(each.v)));
      }
      list.append(row);
    });
    return list;
  };
  const looks = (one) => {
    const list = make("ol", "strip");
    for (const each of one.w) {
      const row = make("li");
      row.append(picture(each.t, `where the model looks for ${each.x}`), make("span", "", each.x));
      list.append(row);
    }
    return list;
  };
  const references = (one) => {
    const list = make("ul", "refs");
    for (const text of one.r) list.append(make("li", "", text));
    return list;
  };
  const said = (one) => one.a ? make("p", "said", one.a) : make("p", "said silent", "(empty)");
  const card = (one) => {
    const box = make("article", one.t === undefined ? "card bare" : "card");
    box.dataset.id = one.i;
    if (one.t !== undefined) box.append(picture(one.t, `picture of ${one.i}`));
    const words = make("div", "words");
    if (one.p) words.append(make("p", "prompt", one.p));
    if (one.a || !one.c) words.append(said(one));
    if (one.r) words.append(references(one));
    const beside = one.t !== undefined && one.c && !one.a; // a picture that searches among texts
    if (beside && one.r && one.c.some((each) => each.ok)) words.replaceChildren();
    words.append(chips(one, false));
    box.append(words);
    if (one.c) (beside ? words : box).append(candidates(one, 5));
    box.addEventListener("click", () => { if (!String(getSelection())) set({ sample: String(one.i), page: state.page }); });
    return box;
  };

  // The open sample
  const dialog = at("detail");
  dialog.tabIndex = -1;
  const detail = (one) => {
    const head = make("div", "head");
    const step = (name, text, by) => {
      const button = make("button", "button", text);
      button.title = name;
      button.setAttribute("aria-label", name);
      button.addEventListener("click", () => by === 0 ? dialog.close() : walk(by));
      return button;
    };
    const link = make("a", "id", one.i), index = current.indexOf(one);
    link.href = location.hash;
    link.title = "the address of this view";
    head.append(link, make("span", "count", index < 0 ? "" : `${(index + 1).toLocaleString("en")} of ${current.length.toLocaleString("en")}`),
      step("previous", "←", -1), step("next", "→", 1), step("close", "✕", 0));
    head.children[2].disabled = index === 0;
    head.children[3].disabled = index === current.length - 1;
    const body = make("div", one.t === undefined ? "body bare" : "body");
    if (one.t !== undefined) body.append(picture(one.t, `picture of ${one.i}`));
    const words = make("div", "words");
    if (one.h) words.append(make("h3", "", "context"), make("p", "prompt", one.h));
    if (one.p) words.append(make("h3", "", searched ? "query" : "prompt"), make("p", "prompt", one.p));
    if (one.a || !one.c) words.append(make("h3", "", "prediction"), said(one));
    if (one.r) words.append(make("h3", "", "references"), references(one));
    const barred = one.c && one.c.some((each) => each.w !== undefined);
    if (one.c) words.append(make("h3", "", barred ? "candidates: share of the probability, log-likelihood" : "candidates"), candidates(one, 200));
    if (one.w) words.append(make("h3", "", "where the model looks for each word"), looks(one));
    words.append(chips(one, true));
    body.append(words);
    dialog.replaceChildren(head, body);
    if (!dialog.open) dialog.showModal();
    dialog.focus();
    dialog.scrollTop = 0;
  };
  dialog.addEventListener("close", () => {
    const left = state.sample;
    if (left === "") return;
    set({ sample: "", page: state.page });
    const card = [...at("cards").children].find((box) => box.dataset.id === left);
    if (card) card.querySelector(".open").focus();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  const walk = (by) => {
    const index = current.findIndex((one) => String(one.i) === state.sample) + by;
    if (index >= 0 && index < current.length) set({ sample: String(current[index].i), page: Math.floor(index / PER_PAGE) + 1 });
  };

  // The overview: drawn once, but for the histogram
  const headline = () => {
    const named = (name) => data.scores.find((one) => one.name === name && one.value !== null);
    const mains = [...new Set(samples.filter((one) => one.s).map((one) => Object.keys(one.s)[0]))].map(named).filter(Boolean);
    if (!mains.length && data.scores.length && !data.scores[0].baseline) mains.push(data.scores[0]);
    for (const one of [...mains, ...data.scores.filter((each) => each.baseline)].slice(0, 5)) {
      const tile = make("div", one.baseline ? "baseline" : "");
      tile.append(make("b", "", number(one.value)), make("span", "", one.name));
      at("headline").append(tile);
    }
    const share = samples.filter((one) => one.ok === true).length;
    if (judged && !ranked) {
      const tile = make("div");
      tile.append(make("b", "", `${share.toLocaleString("en")} / ${samples.length.toLocaleString("en")}`), make("span", "", "right"));
      at("headline").append(tile);
    }
  };
  const table = () => {
    const box = make("table");
    for (const one of data.scores) {
      const row = box.insertRow();
      if (one.baseline) row.className = "baseline";
      const name = row.insertCell(), meter = row.insertCell(), value = row.insertCell();
      name.className = "name"; meter.className = "meter"; value.className = "value";
      name.textContent = one.name;
      if (one.baseline) name.append(make("span", "tag", "no model"));
      if (/(^|\/)agg_metrics$/.test(one.name)) name.append(make("span", "tag", "chooses the best checkpoint"));
      if (one.value !== null && one.value >= 0 && one.value <= 1 && !/(^|\/)loss/.test(one.name)) meter.append(track(one.value));
      value.textContent = number(one.value);
    }
    at("scores").append(box);
    at("scores").classList.toggle("long", data.scores.length > 9);
    if (!data.scores.length) at("table").hidden = true;
  };
  const values = samples.map((one) => one.score).filter((value) => value !== null);
  const low = Math.min(0, ...new Set(values)), high = Math.max(1, ...new Set(values));
  const worstRank = samples.reduce((worst, one) => Math.max(worst, one.k || 0), 1), missed = samples.some((one) => one.k === 0);
  const rankBins = [...(worstRank <= 6 ? Array.from({ length: worstRank }, (_, index) => [index + 1, index + 1, String(index + 1)])
    : [[1, 1, "1"], [2, 5, "2–5"], [6, 10, "6–10"], ...(worstRank > 10 ? [[11, Number.MAX_SAFE_INTEGER, "> 10"]] : [])]),
  ...(missed ? [[Infinity, Infinity, "not found"]] : [])];
  const bins = ranked ? rankBins : Array.from({ length: BINS }, (_, index) => {
    const edge = (step) => Number((low + (high - low) * step / BINS).toPrecision(6));
    return [edge(index), edge(index + 1), ""];
  });
  const binOf = (one) => {
    if (ranked) return one.k === undefined ? -1 : one.k === 0 ? rankBins.length - 1 : rankBins.findIndex((bin) => one.k <= bin[1]);
    return one.score === null ? -1 : Math.min(BINS - 1, Math.floor((one.score - low) / (high - low) * BINS + 1e-9));
  };
  const counted = (list) => {
    const counts = bins.map(() => 0);
    for (const one of list) { const bin = binOf(one); if (bin >= 0) counts[bin] += 1; }
    return counts;
  };
  const allCounts = counted(samples);
  const histogram = () => {
    const counts = counted(wanted("range")), most = Math.max(...allCounts, 1);
    const row = make("div", "bins");
    bins.forEach((bin, index) => {
      const last = index === bins.length - 1;
      const chosen = state.min !== "" && Number(state.min) === bin[0] && Number(state.max) === bin[1];
      const inside = ranked ? (state.min === "" || bin[0] >= Number(state.min)) && (state.max === "" || bin[1] <= Number(state.max))
        : (state.min === "" || bin[1] > Number(state.min)) && (state.max === "" || bin[0] <= Number(state.max));
      const button = make("button"), bar = make("i"), fill = make("i");
      button.type = "button";
      button.title = `${bin[2] || `${number(bin[0])} to ${number(bin[1])}`}: ${counts[index]} of ${many(allCounts[index])}`;
      button.setAttribute("aria-label", button.title);
      button.setAttribute("aria-pressed", String(chosen));
      bar.style.height = `${allCounts[index] / most * 86}%`;
      fill.style.height = allCounts[index] && inside ? `${counts[index] / allCounts[index] * 100}%` : "0";
      bar.append(fill);
      button.append(make("span", "", allCounts[index] ? counts[index].toLocaleString("en") : ""), bar);
      button.addEventListener("click", () => set(chosen ? { min: "", max: "" }
        : { min: String(bin[0]), max: String(ranked || last ? bin[1] : Number((bin[1] - 1e-9).toPrecision(12))) }));
      row.append(button);
    });
    const axis = make("div", ranked ? "axis each" : "axis");
    const marks = ranked ? bins.map((bin) => bin[2]) : [0, 1, 2, 3, 4].map((step) => number(Number((low + (high - low) * step / 4).toPrecision(4))));
    for (const mark of marks) axis.append(make("span", "", mark));
    at("histogram").replaceChildren(row, axis);
    at("histogram-title").textContent = ranked ? `${searched ? "Queries" : "Samples"} by rank of the ${searched ? "first " : ""}right candidate` : `Samples by ${data.main}`;
  };

  // The list
  let current = [];
  const verdicts = () => {
    const pool = wanted("filter");
    const right = pool.filter((one) => one.ok === true).length, wrong = pool.filter((one) => one.ok === false).length;
    const counts = { all: pool.length, right, wrong };
    at("filter").replaceChildren(...Object.entries(counts).map(([name, count]) => {
      const button = make("button", "", name[0].toUpperCase() + name.slice(1));
      button.append(make("small", "", count.toLocaleString("en")));
      button.setAttribute("aria-pressed", String(state.filter === name));
      button.addEventListener("click", () => set({ filter: name }));
      return button;
    }));
  };
  const pager = (pages) => {
    const box = at("pager");
    box.replaceChildren();
    if (pages < 2) return;
    const turn = (text, page) => {
      const button = make("button", "button", text);
      button.disabled = page < 1 || page > pages;
      button.addEventListener("click", () => turnTo(page));
      return button;
    };
    box.append(turn("← Previous", state.page - 1), make("span", "", `page ${state.page} of ${pages}`), turn("Next →", state.page + 1));
  };
  const turnTo = (page) => { set({ page }); at("bar").scrollIntoView({ block: "start" }); };
  let drawn = "";
  const draw = () => {
    current = ordered(wanted());
    const pages = Math.max(1, Math.ceil(current.length / PER_PAGE));
    state.page = Math.min(state.page, pages);
    const key = JSON.stringify({ ...state, sample: "" });
    if (key !== drawn) {
      drawn = key;
      list(pages);
    }
    const open = state.sample === "" ? undefined : samples.find((one) => String(one.i) === state.sample);
    if (open) detail(open); else if (dialog.open) dialog.close();
  };
  const nothing = () => {
    const box = make("p", "empty", samples.length ? "Nothing fits these filters. " : "There are no samples.");
    const clear = make("button", "button", "Clear them");
    clear.addEventListener("click", () => set({ ...initial, order: state.order }));
    if (samples.length) box.append(clear);
    return box;
  };
  const list = (pages) => {
    const first = (state.page - 1) * PER_PAGE;
    const shown = current.slice(first, first + PER_PAGE);
    near.disconnect();
    waiting.clear();
    at("cards").replaceChildren(...shown.map(card));
    at("cards").classList.toggle("wide", samples.some((one) => one.c));
    if (!shown.length) at("cards").append(nothing());
    const part = data.total > samples.length ? ` · ${samples.length.toLocaleString("en")} of ${data.total.toLocaleString("en")} are on this page, evenly taken; scores are of all` : "";
    at("count").textContent = `${current.length === samples.length ? many(samples.length) : `${current.length.toLocaleString("en")} of ${many(samples.length)}`}${part}`;
    at("count").dataset.found = current.length;
    if (judged) verdicts();
    if (scored || ranked) histogram();
    pager(pages);
    for (const key of ["min", "max", "group", "order"]) if (document.activeElement !== at(key)) at(key).value = state[key] === "Infinity" ? "" : state[key];
    if (document.activeElement !== at("search")) at("search").value = state.q;
  };

  // Beginning
  const option = (value, text) => { const one = make("option", "", text); one.value = value; return one; };
  at("order").append(...Object.entries(ORDERS).filter(([key]) => scored || ranked || key === "file" || key === "longest").map(([key, text]) => option(key, text)));
  at("group").append(option("", "all"), ...groups.sort().map((name) => option(name, name)));
  at("group-field").hidden = groups.length < 2;
  at("filter").hidden = !judged;
  at("range-field").hidden = !(scored || ranked);
  at("range-field").firstElementChild.textContent = ranked ? "Rank" : data.main || "Score";
  at("distribution").hidden = !(scored || ranked);
  at("training").hidden = !at("training").querySelector("figure");
  let typing = 0;
  at("search").addEventListener("input", () => { cancelAnimationFrame(typing); typing = requestAnimationFrame(() => set({ q: at("search").value })); });
  at("search").addEventListener("keydown", (event) => { if (event.key === "Escape" && !at("search").value) at("search").blur(); });
  for (const key of ["min", "max"]) at(key).addEventListener("input", () => set({ [key]: at(key).value }));
  for (const key of ["group", "order"]) at(key).addEventListener("change", () => set({ [key]: at(key).value }));
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && dialog.open) { event.preventDefault(); walk(by); }
    else if (by) { const page = state.page + by; if (page >= 1 && page <= Math.ceil(current.length / PER_PAGE)) turnTo(page); }
    else if (event.key === "/" && !dialog.open) { event.preventDefault(); at("search").focus(); }
  });
  addEventListener("hashchange", () => { read(); draw(); });
  headline();
  table();
  read();
  draw();
  root.dataset.ready = Math.round(performance.now());
  root.dataset.script = Math.round(performance.now() - started);
  addEventListener("load", () => { root.dataset.loaded = Math.round(performance.now()); });
})();
