"use strict";
// The key / leads to the search, unless something is being written. Everything works without this file.
document.addEventListener("keydown", (event) => {
  const writing = event.target.closest("input, select, textarea, [contenteditable]");
  const search = document.getElementById("search");
  if (event.key !== "/" || writing || !search || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  search.focus();
  search.select();
});
