"use strict";

// Copy buttons: hidden without JavaScript.
(() => {
  const copy = async (input) => {
    input.focus();
    input.select();
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(input.value);
    } else if (!document.execCommand("copy")) {
      // Without https there is no clipboard API; the text stays selected.
      throw new Error("Copying is not allowed here.");
    }
  };

  // Records on the timeline that the customer's URL was given out.
  const recordSent = (field) => {
    const url = field.closest("[data-kapso-sent-url]")?.dataset.kapsoSentUrl;
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
        recordSent(field);
      },
      () => {},
    );
  });

  // Opening the QR code counts as giving out the URL.
  document.addEventListener(
    "toggle",
    (event) => {
      if (event.target.matches("details[data-kapso-sent-url]") && event.target.open) {
        recordSent(event.target);
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

// Disables fields that do not apply, and previews the chosen colours.
(() => {
  const updateDisabled = (field) => {
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
    document.querySelectorAll("[data-kapso-needs]").forEach(updateDisabled);
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

// Keeps the page of a batch up to date; does the batch's work if there are no task workers.
(() => {
  const PARTS = ["kapso-batch-state", "kapso-batch-progress", "kapso-batch-results"];
  const RETRY_MS = 5000;

  const fetchPage = async (progress) => {
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

  const updatePart = (page, id) => {
    const [current, updated] = [document.getElementById(id), page.getElementById(id)];
    if (!updated) {
      // Logged out: the login page leads back here.
      location.reload();
    } else if (current.innerHTML !== updated.innerHTML && !current.contains(document.activeElement)) {
      // A part that has the focus is not replaced.
      current.className = updated.className;
      current.replaceChildren(...updated.childNodes);
    }
    if (updated) {
      Object.keys(current.dataset).forEach((name) => delete current.dataset[name]);
      Object.assign(current.dataset, updated.dataset);
    }
  };

  const scheduleNext = () => {
    const progress = document.getElementById("kapso-batch-progress");
    if (progress && "kapsoPoll" in progress.dataset) {
      setTimeout(step, Number(progress.dataset.kapsoPoll));
    }
  };

  const step = async () => {
    try {
      const page = await fetchPage(document.getElementById("kapso-batch-progress"));
      PARTS.forEach((id) => updatePart(page, id));
      document.dispatchEvent(new Event("kapso:changed"));
      scheduleNext();
    } catch {
      setTimeout(step, RETRY_MS);
    }
  };

  document.addEventListener("DOMContentLoaded", scheduleNext);
})();
