const rows = [...document.querySelectorAll("tr.problem")];
const kind = document.getElementById("kind"), words = document.getElementById("words");
const shown = document.getElementById("shown");
function filter() {
  const sought = words.value.toLowerCase();
  let count = 0;
  for (const row of rows) {
    const fits = (kind.value === "all" || row.dataset.kinds.split(" ").includes(kind.value))
      && row.textContent.toLowerCase().includes(sought);
    row.hidden = !fits;
    count += fits;
  }
  shown.textContent = `${count} of ${rows.length}`;
}
kind.addEventListener("change", filter);
words.addEventListener("input", filter);
document.querySelector(".controls").hidden = false;
filter();
