// The index's filters: a card is shown if it is of the paper, has the method and contains the words.
const filters = [...document.querySelectorAll("[data-filter]")];
const cards = [...document.querySelectorAll(".sd-col:has([data-kinds])")];
function show() {
  for (const card of cards) {
    const kinds = card.querySelector("[data-kinds]").dataset.kinds.split("|");
    card.hidden = !filters.every(({ dataset: { filter }, value }) => !value || (filter === "words"
      ? (card.textContent + kinds).toLowerCase().includes(value.toLowerCase()) : kinds.includes(`${filter}=${value}`)));
  }
  document.getElementById("none").hidden = cards.some((card) => !card.hidden);
}
filters.forEach((filter) => filter.addEventListener("input", show));
