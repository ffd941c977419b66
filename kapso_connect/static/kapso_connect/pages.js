"use strict";

// While the site answers, a button shows that it was pressed, and is not pressed again.
(() => {
  const pressed = new Map();

  addEventListener("submit", (event) => {
    const form = event.target;
    const button = form.querySelector("button");
    if (!form.dataset.kapsoPending || !button) return;
    if (pressed.has(button)) {
      event.preventDefault();
      return;
    }
    pressed.set(button, button.textContent);
    button.textContent = form.dataset.kapsoPending;
    button.setAttribute("aria-disabled", "true");
  });

  // The browser's Back button may show the page as it was left.
  addEventListener("pageshow", () => {
    for (const [button, text] of pressed) {
      button.textContent = text;
      button.removeAttribute("aria-disabled");
    }
    pressed.clear();
  });
})();

// In a window that popup.js opened, the page that opened it is told how it ended.
(() => {
  const WINDOW = "kapso_connect_window";
  try {
    // On the way to Kapso and back the window loses its name, and mostly also its opener, under the
    // header Cross-Origin-Opener-Policy. The storage of this window stays.
    if (window.name.startsWith("kapso_connect_")) sessionStorage.setItem(WINDOW, window.name);
    const name = sessionStorage.getItem(WINDOW);
    const result = document.querySelector("[data-kapso-result]");
    if (!name || !result) return;
    const { kapsoResult: status, kapsoError: error_code = "", kapsoClose } = result.dataset;
    const id = Math.random().toString(36);
    const message = { type: "kapso_connect", status, error_code, window: name, id };
    new BroadcastChannel("kapso_connect").postMessage(message);
    window.opener?.postMessage(message, location.origin);
    // What has gone wrong has to be read, so that window stays open.
    if (kapsoClose !== undefined) window.close();
  } catch {
    // The browser stores nothing for this site: the visitor closes the window.
  }
})();

// A time of day is that of the visitor, not of the site.
for (const time of document.querySelectorAll("[data-kapso-clock]")) {
  const options = { hour: "numeric", minute: "2-digit" };
  time.textContent = new Date(time.dateTime).toLocaleTimeString(document.documentElement.lang, options);
}

// The waiting page checks in the background until its status changes.
(() => {
  const status = document.querySelector("[data-kapso-refresh]");
  if (!status) return;

  const MAX_FAILURES_TO_SLOW_DOWN = 5;
  let failures = 0;
  let timer = 0;
  let isAsking = false;

  const schedule = (retryAfter = 0) => {
    const seconds = Number(status.dataset.kapsoRefresh);
    // After each failure it waits twice as long as before.
    const wait = seconds * 2 ** Math.min(failures, MAX_FAILURES_TO_SLOW_DOWN);
    clearTimeout(timer);
    if (seconds) timer = setTimeout(refresh, Math.max(wait, retryAfter) * 1000);
  };

  const refresh = async () => {
    let retryAfter = 0;
    isAsking = true;
    try {
      const response = document.hidden ? null : await fetch(location.href, { cache: "no-store" });
      if (response?.status === 202) {
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        const fresh = page.querySelector("main [role=status]");
        status.dataset.kapsoRefresh = fresh.dataset.kapsoRefresh ?? "";
        // Not the texts: the browser may have translated those of this page.
        if (fresh.dataset.kapsoState !== status.dataset.kapsoState) {
          status.dataset.kapsoState = fresh.dataset.kapsoState;
          status.replaceChildren(...fresh.childNodes);
        }
        failures = 0;
      } else if (response?.status === 429 || response?.status >= 500) {
        retryAfter = Math.min(Number(response.headers.get("Retry-After")) || 0, 300);
        failures += 1;
      } else if (response) {
        location.reload();
        return;
      }
    } catch {
      // The phone may be offline for a moment: try again.
      failures += 1;
    } finally {
      isAsking = false;
    }
    schedule(retryAfter);
  };

  // Whoever comes back to the page, or gets a signal again, waits no longer.
  const refreshNow = () => {
    if (document.hidden || isAsking) return;
    clearTimeout(timer);
    refresh();
  };

  addEventListener("load", () => {
    // Cancels the Refresh header, which is for browsers without JavaScript: a reload makes screen
    // readers start the page again.
    window.stop();
    schedule();
    document.addEventListener("visibilitychange", refreshNow);
    addEventListener("online", refreshNow);
  });
})();
