"use strict";
// The link in the address is all that this page knows; it is sent to this server alone.
const KEPT_LANGUAGE = "prepaid-language";
const ASK_MS = 2000;
const ASKS = 90;
const UNSETTLED = ["created", "open"];

const place = (id) => document.getElementById(id);
const link = location.pathname.split("/")[2];
const order = new URLSearchParams(location.search).get("order");
let words = {};
let facts = null;
let payment = null;
let problem = null;
let language = "en";

function word(name, values = {}) {
  const text = words[language][name];
  return Object.entries(values).reduce((said, [key, value]) => said.replace(`{${key}}`, value), text);
}

function money(minor, currency) {
  const shown = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  const amount = (Math.abs(minor) / 100).toLocaleString("en-IN", shown);
  return `${minor < 0 ? "-" : ""}${currency === "INR" ? "₹" : `${currency} `}${amount}`;
}

async function ask(path, body) {
  const sent = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const answered = await fetch(`/v1/recharge/${link}${path}`, sent || {});
  const told = await answered.json();
  if (!answered.ok) throw told.error || {};
  return told;
}

function say(error) {
  problem = error && error.code ? error.code : "away";
  render();
}

function renderFacts() {
  place("facts").hidden = !facts;
  if (!facts) return;
  const { currency } = facts;
  place("whose").textContent = word("whose", { name: facts.consumer, account: facts.account_number });
  place("balance").textContent = money(facts.balance_minor, currency);
  place("balance").className = facts.balance_minor < 0 ? "debt" : "";
  place("supply").textContent = word(`supply_${facts.supply}`);
  place("supply").className = facts.supply;
  const restores = facts.restores_with_minor;
  place("restores").textContent = restores ? word("restores", { amount: money(restores, currency) }) : "";
  place("limits").textContent = word("limits", {
    least: money(facts.vend_min_minor, currency),
    most: money(facts.vend_max_minor, currency),
  });
  place("amounts").replaceChildren(...facts.suggested_minor.map(amountButton));
}

function amountButton(minor) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = money(minor, facts.currency);
  const amount = (minor / 100).toFixed(2);
  button.setAttribute("aria-pressed", String(place("amount").value === amount));
  button.addEventListener("click", () => {
    place("amount").value = amount;
    renderFacts();
  });
  return button;
}

function renderOutcome() {
  place("outcome").hidden = !payment;
  if (!payment) return;
  const amount = money(payment.amount_minor, payment.currency);
  place("outcome-title").textContent = word(`title_${payment.state}`);
  const comesBack = payment.state === "credited" && payment.supply_after === "on";
  const said = word(`text_${payment.state}`, { amount });
  place("outcome-text").textContent = comesBack ? `${said} ${word("comes_back")}` : said;
  place("token").textContent = payment.token || "";
  place("token-text").textContent = payment.token ? word("token") : "";
  place("order").textContent = word("order", { order: payment.order_id });
}

function render() {
  document.documentElement.lang = language;
  document.title = word("title");
  place("language").value = language;
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  place("problem").hidden = !problem;
  place("problem").textContent = problem ? words[language][problem] || word("refused") : "";
  renderFacts();
  renderOutcome();
  if (problem) document.body.dataset.state = "problem";
  else if (payment) document.body.dataset.state = payment.state;
  else document.body.dataset.state = facts ? "shown" : "starting";
}

async function follow(asksLeft) {
  payment = await ask(`/payments/${order}`);
  facts = await ask("");
  render();
  if (UNSETTLED.includes(payment.state) && asksLeft) {
    setTimeout(() => follow(asksLeft - 1).catch(say), ASK_MS);
  }
}

async function pay(event) {
  event.preventDefault();
  const button = place("pay").querySelector("button[type=submit]");
  button.disabled = true;
  try {
    const begun = await ask("/payments", { amount: place("amount").value.trim(), language });
    location.assign(begun.pay_link);
  } catch (error) {
    button.disabled = false;
    say(error);
  }
}

function chosenLanguage() {
  const kept = localStorage.getItem(KEPT_LANGUAGE) || navigator.language.split("-")[0];
  return words[kept] ? kept : "en";
}

async function start() {
  words = await (await fetch("/consumer/recharge_words.json")).json();
  language = chosenLanguage();
  place("language").addEventListener("change", (event) => {
    language = event.target.value;
    localStorage.setItem(KEPT_LANGUAGE, language);
    render();
  });
  place("pay").addEventListener("submit", pay);
  if (order) {
    await follow(ASKS);
  } else {
    facts = await ask("");
    render();
  }
}

start().catch(say);
