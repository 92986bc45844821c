// The dashboard works without this script. With it, open pages stay up to date: parts marked data-live
// are compared with a fresh copy and only what differs is changed, so that ticks, focus, scrolling
// and open details stay as they are.
"use strict";

const least = 2;
const every = Math.max(least, Number(document.body.dataset.refresh) || 5) * 1000;
const texts = document.body.dataset; // in the language of the page
const live = document.getElementById("live");
let paused = false;
let timer = 0;
let since = null; // when the connection was lost

const keyOf = (node) => (node.nodeType === 1 ? node.dataset.key || node.id : "") || "";
const alike = (a, b) => a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
const ticked = (node) => node.nodeType === 1 && node.matches("tr") && node.querySelector("input:checked");

function copyAttributes(old, fresh) {
  const own = old.nodeName === "DETAILS" ? ["open"] : ["value", "checked"];
  const kept = (name) => own.includes(name) && /^(INPUT|DETAILS)$/.test(old.nodeName) && old.type !== "hidden";
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !kept(name) && old.className !== "plot") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !kept(name)) old.setAttribute(name, value);
  }
}

function morph(old, fresh) {
  if (old.nodeType !== 1) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  copyAttributes(old, fresh);
  if (old.nodeName === "SELECT" && old === document.activeElement) return;
  const keyed = new Map([...old.childNodes].filter(keyOf).map((node) => [keyOf(node), node]));
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    // A selected row stays, even if the fresh page no longer has it.
    while (at && ticked(at) && !fresh.querySelector(`[data-key="${CSS.escape(keyOf(at))}"]`)) at = at.nextSibling;
    const known = keyOf(child) && keyed.get(keyOf(child));
    if (known && known.nodeName === child.nodeName) {
      if (known === at) at = at.nextSibling;
      else old.insertBefore(known, at);
      morph(known, child);
    } else if (at && !keyOf(child) && alike(at, child)) {
      const next = at.nextSibling;
      morph(at, child);
      at = next;
    } else {
      old.insertBefore(document.importNode(child, true), at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    if (!ticked(at) && !at.dataset?.own) at.remove();
    at = next;
  }
}

function say(text) {
  if (live && live.textContent !== text) live.textContent = text;
}

async function refresh() {
  if (document.hidden || paused) return;
  try {
    const answer = await fetch(location.href, { headers: { "X-Qsync-Refresh": "1" } });
    if (answer.status === 401 || answer.status === 403) {
      paused = true;
      say(texts.signedOut);
      return;
    }
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const parts = [...document.querySelectorAll("[data-live]")];
    const found = parts.map((part) => fresh.querySelector(`[data-live="${part.dataset.live}"]`));
    if (answer.status >= 500 || !found.some(Boolean)) throw new Error("no such part");
    parts.forEach((part, at) => found[at] && alike(part, found[at]) && !part.isEqualNode(found[at]) && morph(part, found[at]));
    count();
    localize();
    follow();
    since = null;
    say(texts.upToDate);
  } catch {
    since = since || new Date();
    say(texts.disconnected.replace("{time}", since.toLocaleTimeString(document.documentElement.lang)));
  }
}

function again() {
  clearTimeout(timer);
  timer = setTimeout(() => refresh().finally(again), every);
}

function count() {
  for (const form of document.querySelectorAll("[data-ticks]")) {
    const boxes = [...form.querySelectorAll("tbody input[type=checkbox]")];
    const all = form.querySelector("thead input") || addAll(form);
    const on = boxes.filter((box) => box.checked).length;
    if (!all) continue;
    all.checked = on > 0 && on === boxes.length;
    all.indeterminate = on > 0 && on < boxes.length;
    all.title = texts.selected.replace("{on}", on).replace("{all}", boxes.length);
    for (const button of form.querySelectorAll("[data-counted]")) {
      button.textContent = button.dataset.counted.replace("#", on ? ` (${on})` : "");
    }
  }
}

function addAll(form) {
  const head = form.querySelector("th.tick");
  if (!head) return null;
  const all = Object.assign(document.createElement("input"), { type: "checkbox" });
  all.dataset.own = "1";
  all.setAttribute("aria-label", texts.selectAll);
  all.addEventListener("change", () => {
    for (const box of form.querySelectorAll("tbody input[type=checkbox]")) box.checked = all.checked;
    count();
  });
  head.append(all);
  return all;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  await navigator.clipboard?.writeText(document.getElementById(button.dataset.copy).textContent);
  button.textContent = button.dataset.copied;
});
document.addEventListener("change", count);
document.addEventListener("visibilitychange", () => !document.hidden && refresh().finally(again));
count();
if (document.querySelector("[data-live]")) again();
const onward = document.querySelector("form[data-continue]");
if (onward) setTimeout(() => onward.requestSubmit(), 300);

// Full times are those of the reader, with UTC on hover.
function localize() {
  for (const time of document.querySelectorAll("time[data-local]")) {
    const at = new Date(time.dateTime);
    if (!isNaN(at)) time.textContent = at.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "medium" });
  }
}
localize();

// The values of a chart by keyboard: arrows, Home and End move over its steps.
const chosen = new WeakMap(); // chart -> step
function choose(plot, step) {
  const steps = [...plot.querySelectorAll(".steps li")];
  if (step === undefined) chosen.delete(plot);
  else chosen.set(plot, Math.max(0, Math.min(steps.length - 1, step)));
  const here = chosen.get(plot);
  steps.forEach((each, at) => each.classList.toggle("on", at === here));
  const shown = here ?? steps.length - 1;
  const attributes = {
    role: "slider", tabindex: 0, "aria-label": plot.querySelector("svg").getAttribute("aria-label"),
    "aria-valuemin": 0, "aria-valuemax": steps.length - 1, "aria-valuenow": shown, "aria-valuetext": steps[shown].textContent,
  };
  for (const [name, value] of Object.entries(attributes)) plot.setAttribute(name, value);
}
const plots = () => [...document.querySelectorAll(".plot")].filter((plot) => plot.querySelector(".steps li"));
const follow = () => plots().forEach((plot) => choose(plot, chosen.get(plot)));
follow();
document.addEventListener("keydown", (event) => {
  const plot = event.target;
  if (!plot.matches?.(".plot") || event.ctrlKey || event.metaKey || event.altKey) return;
  const last = plot.querySelectorAll(".steps li").length - 1;
  const here = chosen.get(plot) ?? last;
  const to = { ArrowLeft: here - 1, ArrowRight: here + 1, ArrowDown: here - 1, ArrowUp: here + 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(plot, to);
});
document.addEventListener("focusout", (event) => event.target.matches?.(".plot") && choose(event.target));

// Keys: / j k x ?
const typing = (node) => node.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(node.nodeName);
function step(by) {
  const links = [...document.querySelectorAll("main tbody tr")].map((row) => row.querySelector("a")).filter(Boolean);
  const here = links.findIndex((link) => link.closest("tr").contains(document.activeElement));
  const next = links[here < 0 ? (by > 0 ? 0 : links.length - 1) : here + by];
  if (next) next.focus();
}
const keys = {
  "/": () => document.getElementById("q")?.focus(),
  j: () => step(1),
  k: () => step(-1),
  x: () => document.activeElement.closest("tr")?.querySelector("input[type=checkbox]")?.click(),
  "?": () => document.getElementById("keys")?.showModal(),
};
document.addEventListener("keydown", (event) => {
  const box = event.target.type === "checkbox";
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || (typing(event.target) && !box)) return;
  if (document.querySelector("dialog[open]") || !Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});
document.querySelector("[data-keys]")?.addEventListener("click", (event) => {
  if (!document.getElementById("keys")) return;
  event.preventDefault();
  keys["?"]();
});

// A search goes on by itself, and adds what it finds, until the page is full or it is stopped.
async function scan(link) {
  let going = true;
  const stop = Object.assign(document.createElement("button"), { type: "button", textContent: document.body.dataset.stop });
  stop.addEventListener("click", () => {
    going = false;
    stop.remove();
  });
  const limit = Number(document.querySelector("[data-results]").dataset.results);
  const rowsOf = (node) => [...node.querySelectorAll("tbody tr")];
  while (link && going) {
    link.after(stop);
    const answer = await fetch(link.href);
    if (!answer.ok || !going) break;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-results]");
    const old = document.querySelector("[data-results]");
    if (!fresh || !going) break;
    const body = old.querySelector("tbody");
    const found = rowsOf(fresh).length + rowsOf(old).length;
    if (body && rowsOf(fresh).length) body.append(...rowsOf(fresh).map((row) => document.importNode(row, true)));
    const pages = document.importNode(fresh.querySelector(".pages"), true);
    if (body) old.querySelector(".pages").replaceWith(pages);
    else old.replaceChildren(...[...fresh.childNodes].map((node) => document.importNode(node, true)));
    old.querySelector("[data-found]").textContent = found;
    count();
    link = old.querySelector("a[data-scan]");
    if (found >= limit) link = null;
  }
  stop.remove();
}
const scanned = document.querySelector("a[data-scan]");
if (scanned) scan(scanned).catch(() => say(document.body.dataset.stopped));

// A page without a match searches on by itself until it is stopped.
const search = document.querySelector("a[data-search]");
if (search) {
  const following = setTimeout(() => location.replace(search.href), 300);
  const stop = Object.assign(document.createElement("button"), { type: "button", textContent: texts.stop });
  stop.dataset.own = "1";
  stop.addEventListener("click", () => {
    clearTimeout(following);
    stop.remove();
  });
  search.after(stop);
}
