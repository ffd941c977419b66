"use strict";

// Shows the copy buttons, which are of no use without JavaScript, and lets them copy.
(() => {
  const copy = async (input) => {
    input.focus();
    input.select();
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(input.value);
    } else if (!document.execCommand("copy")) {
      // Pages that are not served by https have no clipboard; the text stays selected.
      throw new Error("Copying is not allowed here.");
    }
  };

  // Tells the timeline that the address was handed out, where the page says whom to tell.
  const note = (field) => {
    const url = field.closest("[data-kapso-noted]")?.dataset.kapsoNoted;
    const token = document.querySelector("[name=csrfmiddlewaretoken]");
    if (url && token) {
      const body = new URLSearchParams({ csrfmiddlewaretoken: token.value });
      fetch(url, { method: "POST", body, keepalive: true }).catch(() => {});
    }
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-kapso-copy]");
    if (!button) {
      return;
    }
    const field = button.closest(".kapso-copy");
    const status = field.querySelector("[role=status]");
    status.textContent = "";
    copy(field.querySelector("input, textarea")).then(
      () => {
        button.focus();
        status.textContent = button.dataset.copied;
        note(field);
      },
      () => {},
    );
  });

  // A QR code that was opened is there to be scanned.
  document.addEventListener(
    "toggle",
    (event) => {
      if (event.target.matches("details[data-kapso-noted]") && event.target.open) {
        note(event.target);
      }
    },
    true,
  );

  const reveal = () => {
    for (const button of document.querySelectorAll("[data-kapso-copy]")) {
      button.hidden = false;
    }
  };

  document.addEventListener("DOMContentLoaded", reveal);
  document.addEventListener("kapso:changed", reveal);
})();

// Disables what does not apply yet, and shows what the chosen colours look like.
(() => {
  const follow = (field) => {
    field.disabled = !document.getElementById(field.dataset.kapsoNeeds).checked;
  };

  const preview = (color) => {
    const isOwn = document.getElementById(color.dataset.kapsoColor).checked;
    for (const figure of document.querySelectorAll("[data-kapso-preview]")) {
      const name = `--kapso-${color.name.replaceAll("_", "-")}`;
      figure.style.setProperty(name, isOwn ? color.value : color.dataset.shown);
      figure.hidden = false;
    }
  };

  const update = () => {
    document.querySelectorAll("[data-kapso-needs]").forEach(follow);
    document.querySelectorAll("[data-kapso-color]").forEach(preview);
  };

  document.addEventListener("input", (event) => {
    if (event.target.matches("[data-kapso-color]")) {
      document.getElementById(event.target.dataset.kapsoColor).checked = true;
    }
  });
  for (const kind of ["input", "change", "DOMContentLoaded"]) {
    document.addEventListener(kind, update);
  }
})();

// Keeps the page of a batch up to date, and does the batch's work where nothing else does.
(() => {
  const PARTS = ["kapso-batch-state", "kapso-batch-progress", "kapso-batch-results"];
  const AGAIN_MS = 5000;

  const ask = async (progress) => {
    const options = {};
    if ("kapsoWork" in progress.dataset) {
      options.method = "POST";
      options.body = new FormData(progress.querySelector("form"));
      options.body.set("do", "work");
    }
    const response = await fetch(location.href, options);
    if (!response.ok) {
      throw new Error(response.statusText);
    }
    return new DOMParser().parseFromString(await response.text(), "text/html");
  };

  const take = (page, id) => {
    const [shown, news] = [document.getElementById(id), page.getElementById(id)];
    if (!news) {
      // Logged out meanwhile: the login knows the way back.
      location.reload();
    } else if (shown.innerHTML !== news.innerHTML && !shown.contains(document.activeElement)) {
      // What somebody works in stays as it is until they are done.
      shown.className = news.className;
      shown.replaceChildren(...news.childNodes);
    }
    if (news) {
      Object.keys(shown.dataset).forEach((name) => delete shown.dataset[name]);
      Object.assign(shown.dataset, news.dataset);
    }
  };

  const next = () => {
    const progress = document.getElementById("kapso-batch-progress");
    if (progress && "kapsoPoll" in progress.dataset) {
      setTimeout(step, Number(progress.dataset.kapsoPoll));
    }
  };

  const step = async () => {
    try {
      const page = await ask(document.getElementById("kapso-batch-progress"));
      PARTS.forEach((id) => take(page, id));
      document.dispatchEvent(new Event("kapso:changed"));
      next();
    } catch {
      setTimeout(step, AGAIN_MS);
    }
  };

  document.addEventListener("DOMContentLoaded", next);
})();
