"use strict";
// Fetches the page again and puts what is new in its place. What it gets is HTML in which the server has escaped all
// that others wrote; the policy of the page lets no script run that is not this file.
const EVERY = 2000;
const PATIENCE = 10000;
let last = "";

async function again() {
  // Nobody looks, or somebody copies a text that would go from under the cursor.
  if (document.hidden || !getSelection().isCollapsed) return;
  const lost = document.getElementById("lost");
  try {
    const answer = await fetch(".", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(answer.statusText);
    const text = await answer.text();
    lost.hidden = true;
    if (text === last) return;
    last = text;
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const part of ["header", "main"]) {
      document.querySelector(part).replaceWith(document.adoptNode(page.querySelector(part)));
    }
    document.title = page.title;
  } catch {
    lost.hidden = false;
  }
}

async function follow() {
  await again();
  setTimeout(follow, EVERY);
}

setTimeout(follow, EVERY);
document.addEventListener("visibilitychange", again);
