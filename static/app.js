// PrefLab's only script of its own: keys, local times, copying, toasts, the confirm dialog. Curves are in curves.js.
// Everything works without it except the keys and the curves; pages hold no state here.
"use strict";

// --- keys: an element with data-key="1" is clicked (or, if one types into it, focused) when that key is pressed ----------
const TYPING = "input:not([type=radio],[type=checkbox],[type=range],[type=button],[type=submit]), textarea, select, [contenteditable]";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
  if (event.target.closest(TYPING)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const key = CSS.escape(event.key.toLowerCase());
  const group = event.target.closest("[data-keys]"); // where several groups have the same keys, the one in focus is meant
  const found = [...(group?.querySelectorAll(`[data-key="${key}" i]`) ?? []), ...document.querySelectorAll(`[data-key="${key}" i]`)];
  const wanted = found.find((e) => e.checkVisibility() && !e.disabled);
  if (!wanted || wanted.closest(".htmx-request")) return; // a second press while the first is on its way does nothing
  event.preventDefault();
  if (wanted.matches(TYPING)) wanted.focus();
  else wanted.click();
  if (wanted.matches("[data-keys] [type=radio]")) (nextGroup(wanted) ?? wanted).focus();
});

function nextGroup(radio) {
  const groups = [...document.querySelectorAll("[data-keys]")];
  return groups[groups.indexOf(radio.closest("[data-keys]")) + 1]?.querySelector("input");
}

// --- small clicks: copy text, open a dialog, close a toast ---------------------------------------------------------------
document.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    const source = document.querySelector(copy.dataset.copy);
    if (!source) return;
    try {
      await navigator.clipboard.writeText(source.value ?? source.textContent);
      toast("Copied.");
    } catch {
      getSelection().selectAllChildren(source);
      toast("The browser refused to copy; the text is selected, press Ctrl+C.", true);
    }
  }
  const opens = event.target.closest("[data-opens]");
  if (opens) document.querySelector(opens.dataset.opens)?.showModal();
  const closes = event.target.closest("[data-closes]");
  if (closes) closes.closest("dialog, .toast, .flash")?.[closes.closest("dialog") ? "close" : "remove"]();
  if (event.target.closest("[data-print]")) print();
});

function toast(text, isBad = false) {
  const region = document.getElementById("toasts");
  if (!region) return;
  const note = document.createElement("p");
  note.className = isBad ? "toast is-bad" : "toast";
  note.textContent = text;
  region.append(note);
  setTimeout(() => note.remove(), isBad ? 12000 : 4000);
}

// A response may send HX-Trigger: {"toast": {"text": "…", "isBad": false}}; no answer at all is said too.
document.addEventListener("toast", (event) => toast(event.detail?.text ?? event.detail?.value ?? "", Boolean(event.detail?.isBad)));
let saidLost = 0; // a poll every second must not fill the page with the same sentence
document.addEventListener("htmx:error", (event) => {
  if (!(event.detail?.error instanceof TypeError) || Date.now() - saidLost < 15000) return;
  saidLost = Date.now();
  toast("The server did not answer. It will be asked again, or try once more.", true);
});

// --- hx-confirm asks in the page's own dialog ----------------------------------------------------------------------------
document.addEventListener("htmx:confirm", (event) => {
  const dialog = document.getElementById("confirm");
  if (!dialog || dialog.open) return;
  event.preventDefault();
  const { ctx, issueRequest, dropRequest } = event.detail;
  dialog.querySelector("[data-question]").textContent = ctx.confirm;
  dialog.returnValue = "";
  dialog.addEventListener("close", () => (dialog.returnValue === "yes" ? issueRequest() : dropRequest()), { once: true });
  dialog.showModal();
});

// --- times: the server writes UTC; the reader sees their own zone and finds UTC on hover -----------------------------------
const LOCAL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" }); // of a log's line

function localiseTimes() {
  for (const time of document.querySelectorAll("time[datetime]:not([data-is-local])")) {
    const when = new Date(time.dateTime);
    if (Number.isNaN(when.getTime())) continue;
    time.title = when.toISOString().replace("T", " ").slice(0, 19) + " UTC";
    time.textContent = ("clock" in time.dataset ? CLOCK : LOCAL).format(when);
    time.dataset.isLocal = "";
  }
}

function settle() {
  localiseTimes();
  window.startCurves?.();
}

document.addEventListener("DOMContentLoaded", () => {
  settle();
  const here = document.querySelector(".rail a[aria-current]");
  const strip = here?.closest("nav");
  if (strip && strip.scrollWidth > strip.clientWidth) strip.scrollLeft = here.offsetLeft - strip.clientWidth / 3;
});
document.addEventListener("htmx:after:swap", settle);
