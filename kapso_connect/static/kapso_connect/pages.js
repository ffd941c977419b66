"use strict";

// The waiting page checks in the background until its status changes.
(() => {
  const status = document.querySelector("[data-kapso-refresh]");
  if (!status) return;

  const schedule = () => {
    const seconds = Number(status.dataset.kapsoRefresh);
    if (seconds) setTimeout(refresh, seconds * 1000);
  };

  const refresh = async () => {
    try {
      const response = document.hidden ? null : await fetch(location.href, { cache: "no-store" });
      if (response?.status === 202) {
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        const fresh = page.querySelector("main [role=status]");
        status.dataset.kapsoRefresh = fresh.dataset.kapsoRefresh ?? "";
        if (fresh.textContent !== status.textContent) status.replaceChildren(...fresh.childNodes);
      } else if (response && response.status < 500) {
        location.reload();
        return;
      }
    } catch {
      // The phone may be offline for a moment: try again.
    }
    schedule();
  };

  addEventListener("load", () => {
    // Cancels the Refresh header, which is for browsers without JavaScript: a reload makes screen
    // readers start the page again.
    window.stop();
    schedule();
  });
})();
