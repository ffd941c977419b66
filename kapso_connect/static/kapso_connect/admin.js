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

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-kapso-copy]");
    if (!button) {
      return;
    }
    const field = button.closest(".kapso-copy");
    const status = field.querySelector("[role=status]");
    status.textContent = "";
    copy(field.querySelector("input")).then(
      () => {
        button.focus();
        status.textContent = button.dataset.copied;
      },
      () => {},
    );
  });

  document.addEventListener("DOMContentLoaded", () => {
    for (const button of document.querySelectorAll("[data-kapso-copy]")) {
      button.hidden = false;
    }
  });
})();
