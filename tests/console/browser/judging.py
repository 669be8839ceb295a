"""Owns what is asked of every page: words that can be read, fields with names, landmarks, nothing inline, no scrolling
to the side."""

from typing import Any

LOOK = r"""
() => {
  const found = [];
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    probe.clearRect(0, 0, 1, 1);
    probe.fillStyle = text;
    probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data].map((part, at) => (at === 3 ? part / 255 : part));
  };
  const over = (top, below) => top.slice(0, 3).map((part, at) => part * top[3] + below[at] * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(rgba(getComputedStyle(one).backgroundColor));
    const paper = rgba(getComputedStyle(document.body).backgroundColor);
    return layers.reverse().reduce((below, layer) => over(layer, below), paper.slice(0, 3));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((part) => part / 255).map((part) =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const named = (element) => `<${element.localName} class="${element.getAttribute("class") ?? ""}">`;
  const judge = (element, colour, words) => {
    const below = ground(element);
    const ratio = contrast(over(rgba(colour), below), below);
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)} of ${named(element)} ${words.trim().slice(0, 30)}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const spoken = ["title", "desc", "script"].includes(element.localName);
    if (spoken || !node.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    judge(element, element.localName === "text" ? style.fill : style.color, node.data);
  }
  for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    if (!field.checkVisibility()) continue;
    if (!field.labels.length && !field.getAttribute("aria-label")) found.push(`no label: ${field.outerHTML}`);
    if (field.placeholder) judge(field, getComputedStyle(field, "::placeholder").color, field.placeholder);
  }
  for (const one of document.querySelectorAll("a, button, summary"))
    if (!one.textContent.trim() && !one.getAttribute("aria-label")) found.push(`no name: ${one.outerHTML}`);
  for (const one of document.querySelectorAll("th:not([scope])")) found.push(`no scope: ${one.outerHTML}`);
  for (const one of document.querySelectorAll("[style], style, script:not([src]), [onclick], [onload]"))
    found.push(`inline: ${one.outerHTML.slice(0, 80)}`);
  for (const [selector, count] of [["main", 1], ["h1", 1]])
    if (document.querySelectorAll(selector).length !== count) found.push(`not ${count} ${selector}`);
  if (document.querySelector(".top") && !document.querySelector("nav[aria-label]")) found.push("no nav");
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  for (const id of new Set(ids)) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`id twice: ${id}`);
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    const wide = [...document.querySelectorAll("body *")].filter((one) =>
      one.getBoundingClientRect().right > root.clientWidth + 1 && !one.closest(".panel, .scroll, .plot, .unseen"));
    found.push(`scrolls to the side: ${root.scrollWidth} > ${root.clientWidth}: ${wide.slice(0, 3).map(named)}`);
  }
  return [...new Set(found)];
}
"""

FOCUS = r"""
() => {
  const at = document.activeElement;
  if (!at || at === document.body || at.matches("main")) return "";
  const style = getComputedStyle(at);
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
  return seen ? "" : `focus not seen: ${at.outerHTML.slice(0, 80)}`;
}
"""

UNFOLD = "() => document.querySelectorAll('details').forEach((one) => { one.open = true; })"

FOLD = """
() => {
  document.querySelectorAll("details").forEach((one) => { one.open = false; });
  document.activeElement?.blur();
}
"""

TABS = 25
"""How often the Tab key is pressed."""


async def faults_of(page: Any) -> list[str]:
    """What is amiss on the page that is open, with all that can be unfolded unfolded."""
    await page.evaluate(UNFOLD)
    return list(await page.evaluate(LOOK))


async def faults_of_focus(page: Any) -> list[str]:
    """Whether somebody with a keyboard sees where they are."""
    found = set()
    for _ in range(TABS):
        await page.keyboard.press("Tab")
        found.add(await page.evaluate(FOCUS))
    return sorted(found - {""})
