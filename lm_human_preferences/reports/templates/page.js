// Sorts and filters the cards of #samples. data-v of a card holds its numbers in the order of the options of #by.
const box = document.getElementById("samples");
const cards = [...box.children];
const values = cards.map((card) => JSON.parse(card.dataset.v));
const words = cards.map((card) => [...card.querySelectorAll("p")].map((p) => p.textContent).join("\n").toLowerCase());
const [tools, find, by, up, count] = ["tools", "find", "by", "up", "count"].map((id) => document.getElementById(id));

function show() {
  const wanted = find.value.trim().toLowerCase();
  const key = Number(by.value);
  const sign = up.checked ? 1 : -1;
  const value = (i) => values[i][key] ?? sign * Infinity; // what has no number comes last
  const order = cards.map((_, i) => i);
  if (key >= 0) {
    order.sort((a, b) => (value(a) === value(b) ? a - b : sign * (value(a) - value(b))));
  }
  for (const i of order) {
    cards[i].hidden = !words[i].includes(wanted);
    box.append(cards[i]);
  }
  count.textContent = cards.filter((card) => !card.hidden).length + " of " + cards.length;
}

for (const input of [find, by, up]) {
  input.addEventListener("input", show);
}
tools.hidden = false; // without a script there is nothing to sort with
show();
