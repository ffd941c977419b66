"use strict";

// The waiting page looks again, quietly, until there is news.
(() => {
  const status = document.querySelector("[data-kapso-refresh]");
  if (!status) return;

  const later = () => {
    const seconds = Number(status.dataset.kapsoRefresh);
    if (seconds) setTimeout(look, seconds * 1000);
  };

  const look = async () => {
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
      // A phone that is offline for a moment looks again, too.
    }
    later();
  };

  addEventListener("load", () => {
    // Calls off the reload that the server asks for where there is no JavaScript: it would begin
    // the page anew for those who listen to it.
    window.stop();
    later();
  });
})();
