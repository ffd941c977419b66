"use strict";

// The waiting page checks in the background until its status changes.
(() => {
  const status = document.querySelector("[data-kapso-refresh]");
  if (!status) return;

  const MAX_FAILURES_TO_SLOW_DOWN = 5;
  let failures = 0;

  const schedule = (retryAfter = 0) => {
    const seconds = Number(status.dataset.kapsoRefresh);
    // After each failure it waits twice as long as before.
    const wait = seconds * 2 ** Math.min(failures, MAX_FAILURES_TO_SLOW_DOWN);
    if (seconds) setTimeout(refresh, Math.max(wait, retryAfter) * 1000);
  };

  const refresh = async () => {
    let retryAfter = 0;
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
    }
    schedule(retryAfter);
  };

  addEventListener("load", () => {
    // Cancels the Refresh header, which is for browsers without JavaScript: a reload makes screen
    // readers start the page again.
    window.stop();
    schedule();
  });
})();
