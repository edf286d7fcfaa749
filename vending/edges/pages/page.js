"use strict";
// The key lives in this tab only; it is sent to this server alone, as a header, and never stands in an address.
const KEPT_KEY = "prepaid-key";
const KEPT_LANGUAGE = "prepaid-language";
const BARS = 31;
const NOTICES = 10;

const place = (id) => document.getElementById(id);
let words = {};
let facts = null;
let language = "en";

function word(name, values = {}) {
  const text = words[language][name];
  return Object.entries(values).reduce((said, [key, value]) => said.replace(`{${key}}`, value), text);
}

function money(minor) {
  const amount = (Math.abs(minor) / 100).toLocaleString("en-IN", {
    minimumFractionDigits: 2,
    maximumFractionDigits: 2,
  });
  const sign = facts.summary.currency === "INR" ? "₹" : `${facts.summary.currency} `;
  return `${minor < 0 ? "-" : ""}${sign}${amount}`;
}

function kwh(energyWh) {
  return `${(energyWh / 1000).toLocaleString("en-IN", { maximumFractionDigits: 2 })} ${word("kwh")}`;
}

function dayText(day) {
  const [, month, number] = day.split("-").map(Number);
  return `${number} ${word("months")[month - 1]}`;
}

function timeText(instant) {
  // Months have names of our own: browsers know few languages' ones.
  const shown = { dateStyle: "short", timeStyle: "short", timeZone: facts.summary.time_zone };
  const [day, time] = new Date(instant).toLocaleString("sv-SE", shown).split(" ");
  return `${dayText(day)} ${day.slice(0, 4)}, ${time}`;
}

function lineTitle(line) {
  const titles = words[language].lines || {};
  if (!line.line.startsWith("energy_")) return titles[line.line] || line.title;
  const limits = line.title.match(/\d+-\d+$/) || line.title.match(/above (\d+)$/);
  if (!titles.energy) return line.title;
  return limits ? `${titles.energy} ${limits[1] ? `> ${limits[1]}` : limits[0]}` : titles.energy;
}

function lasts(summary) {
  if (summary.mode === "postpaid") return "";
  if (summary.supply.restores_with_minor > 0) return word("used_up");
  if (!summary.forecast) return word("unknown");
  if (!summary.forecast.ends_on) return word("year");
  if (summary.forecast.ends_on === summary.today.day) return word("ends_today");
  return word("days_left", { n: summary.forecast.days_left, day: dayText(summary.forecast.ends_on) });
}

function useText(use) {
  return use ? `${kwh(use.energy_wh)}, ${money(use.charge_minor)}` : "–";
}

function made(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function showSummary(summary) {
  place("balance").textContent = money(summary.balance_minor);
  place("balance").className = summary.balance_minor < 0 ? "debt" : "";
  place("money-time").textContent = word("as_of", { time: timeText(summary.money_time) });
  place("days-left").textContent = lasts(summary);
  const arrears = summary.earlier_arrears_minor;
  place("arrears").textContent = arrears ? word("arrears", { amount: money(arrears) }) : "";
  const supply = summary.supply;
  const state = supply.reported || supply.desired;
  place("supply").textContent = word(state);
  place("supply").className = state;
  place("why").textContent = (words[language].why || {})[supply.why.code] || supply.why.text;
  place("until").textContent = supply.why.until ? word("until", { time: timeText(supply.why.until) }) : "";
  const restores = supply.restores_with_minor;
  place("restores").textContent = restores ? word("restores", { amount: money(restores) }) : "";
  place("waiting").textContent = supply.waiting ? word("waiting") : "";
  place("today").textContent = useText(summary.today);
  place("yesterday").textContent = useText(summary.yesterday);
  place("month").textContent = useText(summary.month);
  const lines = summary.month.lines.flatMap((line) => [made("dt", lineTitle(line)), made("dd", money(line.amount_minor))]);
  place("lines").replaceChildren(...lines);
}

function showBars(days) {
  const oldestFirst = [...days].reverse();
  const most = Math.max(1, ...oldestFirst.map((day) => day.energy_wh || 0));
  place("bars").replaceChildren(
    ...oldestFirst.map((day, number) => {
      const row = document.createElement("li");
      const bar = document.createElement("i");
      // Through the object model: a style attribute in markup is refused by the page's policy.
      bar.style.height = `${Math.round((85 * (day.energy_wh || 0)) / most)}%`;
      bar.className = day.posted ? "" : "open";
      const text = `${dayText(day.day)}: ${kwh(day.energy_wh || 0)}, ${money(day.charge_minor || 0)}`;
      row.title = text;
      row.setAttribute("aria-label", text);
      row.append(bar, made("span", number % 5 === 0 ? day.day.slice(8) : ""));
      return row;
    }),
  );
}

function showNotices(notices) {
  const rows = notices.map((told) => {
    const row = made("li", told.text);
    const at = made("p", timeText(told.at));
    at.className = "small";
    row.append(at);
    return row;
  });
  place("notices").replaceChildren(...(rows.length ? rows : [made("li", word("none"))]));
}

function showWords() {
  document.documentElement.lang = language;
  document.title = word("title");
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
}

function show(state, problem = "") {
  place("entry").hidden = state !== "key";
  place("facts").hidden = state !== "shown";
  place("problem").hidden = !problem;
  place("problem").textContent = problem;
  showWords();
  if (state === "shown") {
    showSummary(facts.summary);
    showBars(facts.days);
    showNotices(facts.notices);
  }
  document.body.dataset.state = state;
}

async function ask(what, key) {
  const answer = await fetch(`/v1/consumer/me/${what}`, { headers: { "X-Api-Key": key } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error.code);
  return body;
}

async function load() {
  const key = sessionStorage.getItem(KEPT_KEY);
  if (!key) return show("key");
  document.body.dataset.state = "loading";
  try {
    const [summary, daily, notices] = await Promise.all([
      ask("summary", key),
      ask(`daily?limit=${BARS}`, key),
      ask(`notices?limit=${NOTICES}&language=${language}`, key),
    ]);
    facts = { summary, days: daily.days, notices: notices.notices };
  } catch (error) {
    const refused = error.message === "api_key_wrong" || error.message === "not_allowed";
    if (refused) sessionStorage.removeItem(KEPT_KEY);
    return show(refused || !facts ? "key" : "shown", word(refused ? error.message : "away"));
  }
  return show("shown");
}

function speak(chosen) {
  language = chosen in words ? chosen : "en";
  place("language").value = language;
}

async function start() {
  words = await (await fetch("/consumer/words.json")).json();
  speak(localStorage.getItem(KEPT_LANGUAGE) || navigator.language.slice(0, 2));
  place("language").addEventListener("change", (event) => {
    localStorage.setItem(KEPT_LANGUAGE, event.target.value);
    speak(event.target.value);
    load();
  });
  place("entry").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEPT_KEY, place("key").value.trim());
    place("key").value = "";
    load();
  });
  place("refresh").addEventListener("click", load);
  place("forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEPT_KEY);
    facts = null;
    load();
  });
  await load();
}

start().catch(() => {
  place("problem").textContent = "No answer. Please try again.";
  place("problem").hidden = false;
});
