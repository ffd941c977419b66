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

// The form for setup links: disables fields that do not apply, counts who is left out, previews the
// chosen colours and warns of those that cannot be read.
(() => {
  const STATE = ["id_leave_out_connected", "id_leave_out_invited", "id_send_email_0"];
  const MIN_CONTRAST = 4.5;

  const isChecked = (id) => Boolean(document.getElementById(id)?.checked);

  const updateDisabled = (field) => {
    field.disabled = !isChecked(field.dataset.kapsoNeeds);
  };

  const updateText = (element) => {
    const state = STATE.map((id) => Number(isChecked(id))).join("");
    const name = element.matches("input") ? "value" : "textContent";
    element[name] = JSON.parse(element.dataset.kapsoTexts)[state];
  };

  const updateLeftOut = (mark) => {
    mark.hidden = !mark.dataset.kapsoLeftOut.trim().split(" ").some(isChecked);
  };

  const colorOf = (input) =>
    isChecked(input.dataset.kapsoColor) ? input.value : input.dataset.shown;

  const preview = (input) => {
    for (const figure of document.querySelectorAll("[data-kapso-preview]")) {
      figure.style.setProperty(`--kapso-${input.name.replaceAll("_", "-")}`, colorOf(input));
      figure.hidden = false;
    }
  };

  // As WCAG 2 defines it; see theme.py.
  const luminance = (color) => {
    const [red, green, blue] = [1, 3, 5]
      .map((start) => parseInt(color.slice(start, start + 2), 16) / 255)
      .map((share) => (share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };

  const contrast = (one, other) => {
    const [darker, lighter] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (lighter + 0.05) / (darker + 0.05);
  };

  const warn = (box) => {
    const warnings = [...box.querySelectorAll("[data-kapso-text]")];
    for (const warning of warnings) {
      const { kapsoText, kapsoBehind } = warning.dataset;
      const inputs = [kapsoText, kapsoBehind].map((name) => document.getElementById(`id_${name}`));
      const isOwn = inputs.some((input) => isChecked(input.dataset.kapsoColor));
      warning.hidden = !isOwn || contrast(...inputs.map(colorOf)) >= MIN_CONTRAST;
    }
    box.hidden = warnings.every((warning) => warning.hidden);
  };

  const update = () => {
    document.querySelectorAll("[data-kapso-needs]").forEach(updateDisabled);
    document.querySelectorAll("[data-kapso-texts]").forEach(updateText);
    document.querySelectorAll("[data-kapso-left-out]").forEach(updateLeftOut);
    document.querySelectorAll("[data-kapso-color]").forEach(preview);
    document.querySelectorAll("[data-kapso-warnings]").forEach(warn);
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
